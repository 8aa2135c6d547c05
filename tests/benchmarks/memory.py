"""Memory as `chorus plan` says it against trainings: `python tests/benchmarks/memory.py [--model NAME ...]`.

Each training has processes of its own, takes a few steps on random features, and is measured in two ways: the distinct
storages that tensors held at once, whatever an allocator makes of it, and the growth of the resident set after a step
of a tiny model has loaded and allocated what libraries do. For that, glibc is told to give back what is freed, unless
--usual-allocator; it keeps a part otherwise.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
sys.path[:0] = [str(ROOT), str(HELPERS)]

import processes  # noqa: E402
from memory_worker import MEL_BINS, MODELS, VOCABULARY, Case  # noqa: E402

from launcher.planning.memory import memory_per_process, parameter_sizes  # noqa: E402
from launcher.recipe import read_deepspeed_config  # noqa: E402
from model.costs.activation_memory import activation_bytes  # noqa: E402
from model.recognizer import Recognizer  # noqa: E402

CASES = [
    *(Case("dense", zero, accumulation=accumulation) for zero in range(4) for accumulation in (1, 2)),
    *(Case("dense", zero, processes=2) for zero in range(4)),
    *(Case("experts", zero, accumulation=2) for zero in (0, 2)),
    *(Case("experts", zero, 2, parallel, 2) for parallel in (1, 2) for zero in range(4) if zero or parallel == 1),
    *(Case("experts, layers run again", 2, 2, parallel, 2) for parallel in (1, 2)),
    Case("experts, layers run again", 2, 2, 2, 2, "bf16"),
]
# Blocks from 64 KiB on are mapped on their own, and unmapped when they are freed.
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Measured:
    """Bytes of the first process: what was predicted, held by tensors, and added to its resident set; and what the
    process took before."""

    predicted: int
    tensors: int
    resident: int
    framework: int

    @property
    def error(self) -> float:
        """Of the prediction, relative to what tensors held."""
        return self.predicted / self.tensors - 1


def predict(case: Case) -> int:
    with torch.device("meta"):
        recognizer = Recognizer(case.model, MEL_BINS, VOCABULARY)
    zero = read_deepspeed_config(case.deepspeed_file)["zero_optimization"]
    sizes = parameter_sizes(recognizer)
    memory = memory_per_process(sizes, case.processes, case.expert_parallel, zero, case.accumulation)
    value_bytes = 2 if case.precision == "bf16" else 4
    return memory.peak(activation_bytes(recognizer, case.size, value_bytes))


def measure(case: Case) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        worker = Path(__file__).with_name("memory_worker.py")
        processes.run([str(worker), folder, case.dump()], case.processes, out / "log", timeout_s=600)
        found = json.loads((out / "rank-0.json").read_text())
    return Measured(predict(case), found["tensors"], found["resident"], found["framework"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), action="append", help="only cases of this model")
    parser.add_argument("--usual-allocator", action="store_true", help="glibc's settings as they are")
    arguments = parser.parse_args()
    if not arguments.usual_allocator:
        os.environ |= GIVING_BACK
    print("| model | processes | ep | ZeRO | micro-batches | predicted | tensors | error | resident set | before |")
    print("|---|---|---|---|---|---:|---:|---:|---:|---:|")
    for case in CASES:
        if arguments.model and case.name not in arguments.model:
            continue
        found = measure(case)
        name = case.name if case.precision == "fp32" else f"{case.name}, {case.precision}"
        cells = (name, case.processes, case.expert_parallel, case.zero, case.accumulation)
        sizes = [f"{size / 2**20:.0f}" for size in (found.predicted, found.tensors, found.resident, found.framework)]
        print("|", " | ".join(map(str, (*cells, *sizes[:2], f"{found.error:+.1%}", *sizes[2:]))), "|", flush=True)


if __name__ == "__main__":
    main()
