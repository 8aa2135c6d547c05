"""Requests per second, latencies and memory of `chorus serve` at 1, 8 and 32 clients, over real connections.

    python -m tests.benchmarks.serving MODEL_FOLDER RECORDINGS --requests 200 --rounds 3 --memory-requests 2000

RECORDINGS is a folder of files, or one long file, of which stretches of `--seconds` are sent as WAV. Each server is a
process of its own, and they are asked in turns, so that other work of the machine meets all of them alike; the CPU time
of a request does not count such work at all. Clients are tasks of this process, each with a connection, which ask again
as soon as they are answered.
"""

import argparse
import asyncio
import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile

CLIENTS = (1, 8, 32)
PATH = "/v1/audio/transcriptions"
# Of the metrics of a server: how many recordings were in batches, and how many batches.
BATCHED = re.compile(r"^chorus_batch_size_(sum|count)\{.*\} (\S+)$", re.MULTILINE)


@dataclass
class Server:
    """A server with batches up to `batch`, and what was measured of it at each number of clients."""

    batch: int
    address: str
    process: psutil.Process
    measured: "dict[int, list[Round]]" = field(default_factory=dict)

    def rss_mb(self) -> float:
        return self.process.memory_info().rss / 1e6

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def batched(self) -> tuple[float, float]:
        """How many recordings were in batches so far, and how many batches."""
        values = dict(BATCHED.findall(httpx.get(f"{self.address}/metrics").text))
        return float(values["sum"]), float(values["count"])


@dataclass(frozen=True)
class Round:
    """Wall and CPU time, the latency of each request that was answered, those that were not, and the mean batch."""

    wall_s: float
    cpu_s: float
    latencies_s: list[float]
    failed: int
    batch: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each recording")
    parser.add_argument("--requests", type=int, default=200, help="for each number of clients in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-requests", type=int, default=2000, help="over which memory is watched; 0: not at all")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 1], help="largest batches, one server each")
    options = parser.parse_args()
    recordings = read_recordings(options.recordings, options.seconds)
    print(f"{len(recordings)} recordings of {options.seconds:g} s; {psutil.cpu_count()} cores", flush=True)
    with ExitStack() as stack:
        servers = [stack.enter_context(running_server(options.model, batch)) for batch in options.batch]
        for server in servers:
            # What is compiled for the first shapes is no part of it.
            asyncio.run(ask(server.address, recordings, 8, 32))
        for _ in range(options.rounds):
            for clients in CLIENTS:
                for server in servers:
                    measured = measure(server, recordings, clients, options.requests)
                    server.measured.setdefault(clients, []).append(measured)
        print("batches up to  clients  requests/s  x real time  CPU ms  batch  p50 ms  p95 ms  p99 ms  failed  MB")
        for clients in CLIENTS:
            for server in servers:
                print_row(server, clients, options.seconds)
        watch_memory(servers[0], recordings, options.memory_requests)


@contextmanager
def running_server(model: Path, batch: int) -> Iterator[Server]:
    command = [sys.executable, "-m", "launcher.cli", "serve", f"model={model}", "--port", "0", "--batch", str(batch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(batch, process.stdout.readline().split()[-1], psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(60)


def measure(server: Server, recordings: list[bytes], clients: int, requests: int) -> Round:
    cpu_s = server.cpu_s()
    recordings_before, batches_before = server.batched()
    wall_s, latencies_s, failed = asyncio.run(ask(server.address, recordings, clients, requests))
    recordings_after, batches_after = server.batched()
    batch = (recordings_after - recordings_before) / (batches_after - batches_before)
    return Round(wall_s, server.cpu_s() - cpu_s, latencies_s, failed, batch)


def print_row(server: Server, clients: int, seconds: float) -> None:
    """The medians of the rounds; percentiles and failures are of all requests."""
    rounds = server.measured[clients]
    rate = float(np.median([len(measured.latencies_s) / measured.wall_s for measured in rounds]))
    cpu_ms = float(np.median([1000 * measured.cpu_s / len(measured.latencies_s) for measured in rounds]))
    batch = float(np.median([measured.batch for measured in rounds]))
    latencies_s = np.concatenate([measured.latencies_s for measured in rounds])
    p50, p95, p99 = 1000 * np.percentile(latencies_s, [50, 95, 99])
    failed = sum(measured.failed for measured in rounds)
    print(
        f"{server.batch:13}  {clients:7}  {rate:10.1f}  {rate * seconds:11.1f}  {cpu_ms:6.1f}  {batch:5.1f}  "
        f"{p50:6.0f}  {p95:6.0f}  {p99:6.0f}  {failed:6}  {server.rss_mb():.0f}",
        flush=True,
    )


def watch_memory(server: Server, recordings: list[bytes], requests: int) -> None:
    if not requests:
        return
    print("requests so far: MB")
    for part in range(1, 11):
        asyncio.run(ask(server.address, recordings, 8, requests // 10))
        print(f"{part * requests // 10}: {server.rss_mb():.0f}", flush=True)


async def ask(address: str, recordings: list[bytes], clients: int, requests: int) -> tuple[float, list[float], int]:
    """Wall time, the latency of each request that was answered, and how many were not."""
    numbers = iter(range(requests))
    latencies_s: list[float] = []
    failed = 0

    async def one_client() -> None:
        nonlocal failed
        async with httpx.AsyncClient(base_url=address, timeout=600) as client:
            for number in numbers:
                files = {"file": ("a.wav", recordings[number % len(recordings)])}
                started_s = time.perf_counter()
                answer = await client.post(PATH, files=files, data={"model": "model"})
                if answer.status_code == 200:
                    latencies_s.append(time.perf_counter() - started_s)
                else:
                    failed += 1

    started_s = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(clients)))
    return time.perf_counter() - started_s, latencies_s, failed


def read_recordings(path: Path, seconds: float) -> list[bytes]:
    """WAV files of so many seconds."""
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    pieces = []
    rate_hz = 0
    for file in paths:
        samples, rate_hz = soundfile.read(file, dtype="float32")
        pieces.append(samples)
        if sum(map(len, pieces)) > 200 * seconds * rate_hz:
            break
    whole = np.concatenate(pieces)
    length = round(seconds * rate_hz)
    recordings = []
    for start in range(0, len(whole) - length + 1, length):
        file = io.BytesIO()
        soundfile.write(file, whole[start : start + length], rate_hz, format="WAV")
        recordings.append(file.getvalue())
    return recordings[:200]


if __name__ == "__main__":
    main()
