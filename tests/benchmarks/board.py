"""What the board costs: 200 runs and one of a million rows, its memory and how long its answers take.

    python -m tests.benchmarks.board [--runs 200] [--rows 1000000]

The runs are written by hand into a temporary folder; about a gigabyte. The board is a process of its own.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from run_folders import training_row, write_results, write_rows, write_run

# Of each of the other runs.
ROWS = 2_000
ROUNDS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        write_runs(runs, options.runs, options.rows)
        command = [sys.executable, "-m", "launcher.cli", "board", str(runs), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as board:
            try:
                assert board.stdout
                address = re.findall(r"http://\S+", board.stdout.readline())[0]
                measure(board.pid, address, runs, options)
            finally:
                board.terminate()


def write_runs(runs: Path, num_runs: int, num_rows: int) -> None:
    loads = {f"experts/layer-{layer:02d}/load": [0.26, 0.24, 0.23, 0.27] for layer in range(6)}
    for number in range(num_runs):
        run = write_run(runs / f"run-{number:03d}", steps=10 * ROWS, done=0, name=f"recipe-{number % 7}")
        rows = [training_row(10 * step, **loads) for step in range(1, ROWS)]
        write_rows(run.stage("teacher").metrics_file, rows)
        write_results(run, {"teacher": {"parameters": 10**6, "test": {"cer": 0.1, "wer": 0.3}}})
    run = write_run(runs / "long", steps=num_rows + 1, done=0)
    with run.stage("teacher").metrics_file.open("w") as file:
        for step in range(1, num_rows + 1):
            file.write(json.dumps(training_row(step, **loads)) + "\n")
            if step % 1000 == 0:
                validation = {"step": step, "validation/loss": 2.0, "validation/cer": 0.2, "validation_s": 4.0}
                file.write(json.dumps({**validation, "time": training_row(step)["time"]}) + "\n")


def measure(process: int, address: str, runs: Path, options: argparse.Namespace) -> None:
    started = time.monotonic()
    worst_s = 0.0
    # Answers while the metrics are read for the first time, too.
    while True:
        before = time.monotonic()
        answer = ask(f"{address}/api/runs")
        worst_s = max(worst_s, time.monotonic() - before)
        seen = [run for run in answer["runs"] if run]
        if len(seen) == options.runs + 1 and all(run["read_share"] == 1.0 for run in seen):
            break
        time.sleep(0.05)
    gigabytes = (runs / "long" / "teacher" / "metrics.jsonl").stat().st_size / 1e9
    print(f"{options.runs} runs, and one of {options.rows} rows ({gigabytes:.2f} GB)")
    processor_s = psutil.Process(process).cpu_times().user
    print(
        f"all read after {time.monotonic() - started:.1f} s, {processor_s:.1f} s of processor time; slowest answer "
        f"meanwhile {1000 * worst_s:.0f} ms"
    )
    for path in ("/", "/api/runs", "/api/run?run=long", "/api/run?run=run-007", "/metrics"):
        times_s = []
        for _ in range(ROUNDS):
            before = time.monotonic()
            num_bytes = len(fetch(f"{address}{path}"))
            times_s.append(time.monotonic() - before)
            time.sleep(0.02)
        median_ms = 1000 * statistics.median(times_s)
        print(f"{path}: {num_bytes} bytes, median {median_ms:.0f} ms, slowest {1000 * max(times_s):.0f} ms")
    memory = psutil.Process(process).memory_info()
    print(f"memory {memory.rss / 2**20:.0f} MiB")
    before = psutil.Process(process).cpu_times().user
    time.sleep(10)
    print(f"processor time while nothing changes: {(psutil.Process(process).cpu_times().user - before) * 100:.0f} ms/s")


def fetch(address: str) -> bytes:
    # Of a server on this machine, whose address is ours.
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()


def ask(address: str) -> dict:
    return json.loads(fetch(address))


if __name__ == "__main__":
    main()
