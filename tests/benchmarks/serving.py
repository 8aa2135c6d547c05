"""Requests per second, latencies and memory of `chorus serve` at 1, 8 and 32 clients, over real connections.

    python -m tests.benchmarks.serving MODEL_FOLDER RECORDINGS --requests 200 --memory-requests 2000

RECORDINGS is a folder of files, or one long file, of which stretches of `--seconds` are sent as WAV. The server is a
process of its own; clients are tasks of this one, each with a connection, which ask again as soon as they are answered.
"""

import argparse
import asyncio
import io
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile

CLIENTS = (1, 8, 32)
PATH = "/v1/audio/transcriptions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each recording")
    parser.add_argument("--requests", type=int, default=200, help="for each number of clients")
    parser.add_argument("--memory-requests", type=int, default=2000, help="over which memory is watched")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 1], help="largest batches, one server each")
    options = parser.parse_args()
    recordings = read_recordings(options.recordings, options.seconds)
    print(f"{len(recordings)} recordings of {options.seconds:g} s; {psutil.cpu_count()} cores")
    for number, batch in enumerate(options.batch):
        measure(options, recordings, batch, watches_memory=number == 0)


def measure(options: argparse.Namespace, recordings: list[bytes], batch: int, watches_memory: bool) -> None:
    """Start a server with batches up to `batch`, and print what it does."""
    command = [sys.executable, "-m", "launcher.cli", "serve", f"model={options.model}", "--port", "0"]
    with subprocess.Popen([*command, "--batch", str(batch)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            # What is compiled for the first shapes is no part of it.
            asyncio.run(ask(address, recordings, 8, 32))
            memory = psutil.Process(process.pid).memory_info
            print(f"\nbatches of up to {batch}, from {memory().rss / 1e6:.0f} MB")
            print("clients  requests/s  x real time  p50 ms  p95 ms  p99 ms  failed  MB")
            for clients in CLIENTS:
                print_row(
                    options, *asyncio.run(ask(address, recordings, clients, options.requests)), clients, memory().rss
                )
            if watches_memory:
                print("requests so far: MB")
                for part in range(1, 11):
                    asyncio.run(ask(address, recordings, 8, options.memory_requests // 10))
                    print(f"{part * options.memory_requests // 10}: {memory().rss / 1e6:.0f}")
        finally:
            process.terminate()
            process.wait(60)


def print_row(
    options: argparse.Namespace, wall_s: float, latencies_s: list[float], failed: int, clients: int, rss: int
) -> None:
    rate = len(latencies_s) / wall_s
    p50, p95, p99 = 1000 * np.percentile(latencies_s, [50, 95, 99])
    print(
        f"{clients:7}  {rate:10.1f}  {rate * options.seconds:11.1f}  {p50:6.0f}  {p95:6.0f}  {p99:6.0f}  {failed:6}  "
        f"{rss / 1e6:.0f}"
    )


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
