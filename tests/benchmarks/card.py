"""What only a card can show, in under ten minutes: `python -m tests.benchmarks.card`, or `make gpu`.

The tests marked `gpu`, then the benchmarks of experts and encoder, each with a limit of time that keeps the whole below
ten minutes. Where PyTorch sees no card it says so and leaves with 0: nothing was measured, and nothing is wrong.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
# Arguments of Python, and the most seconds of each part.
PARTS = {
    "tests marked gpu": (["-m", "pytest", "-q", "-m", "gpu", "--durations=10", "tests"], 390),
    "experts against a dense layer": (
        ["-m", "tests.benchmarks.experts", "--device", "cuda", "--width", "512", "--frames", "32768"],
        80,
    ),
    "encoder against torchaudio's": (["-m", "tests.benchmarks.encoder", "--device", "cuda", "--rounds", "15"], 80),
}


def main() -> int:
    if not torch.cuda.is_available():
        print("PyTorch sees no CUDA card here, so nothing of this was run: it needs one.")
        return 0
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, torch {torch.__version__}")
    environment = {**os.environ, "DS_ACCELERATOR": "cuda", "OMP_NUM_THREADS": "1"}
    results = []
    for name, (arguments, limit_s) in PARTS.items():
        print(f"\n## {name}\n", flush=True)
        started = time.monotonic()
        try:
            finished = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, timeout=limit_s)
            outcome = "passed" if finished.returncode == 0 else f"exit code {finished.returncode}"
        except subprocess.TimeoutExpired:
            outcome = f"not done after {limit_s} s"
        results.append((name, outcome, time.monotonic() - started))

    print("\n| part | outcome | s |\n|---|---|---:|")
    for name, outcome, seconds in results:
        print(f"| {name} | {outcome} | {seconds:.0f} |")
    failed = [name for name, outcome, _ in results if outcome != "passed"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
