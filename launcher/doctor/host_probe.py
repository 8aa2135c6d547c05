"""What `chorus doctor` has each host of a run report: `python -m launcher.doctor.host_probe PART ...`.

facts FOLDER MARK: what this host is, and a mark left in the folder; then, for every line read, its clock.
marks FOLDER: the marks that this host sees. exchange FOLDER MARK: removes the mark and takes part in an all-to-all with
the other hosts; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are those of a training process. Each is an answer as in
processes/remote_answer.py.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.processes.remote_answer import print_answer

MARK = ".doctor-"
LIBRARIES = ("torch", "deepspeed", "torchaudio", "webdataset", "sentencepiece")
TIMEOUT = timedelta(seconds=30)
EXCHANGED_BYTES = 8 << 20
FLOAT32_BYTES = 4
# The first makes the connections; only the last is timed.
ROUNDS = 3
LONGEST_ERROR = 300
DIGITS = 12


def main(arguments: list[str]) -> int:
    part = arguments[0]
    folder = Path(arguments[1])
    # As for an agent: variables that must not stand on a command line come first.
    os.environ.update(json.loads(sys.stdin.readline() or "{}"))
    if part == "facts":
        print_answer(facts(folder, arguments[2]))
        # Whoever asks sends a line and compares the clock of the answer with its own.
        for _ in sys.stdin:
            print_answer(time.time())
    elif part == "marks":
        marks = sorted(path.name for path in folder.glob(f"{MARK}*"))
        print_answer(marks)
    else:
        (folder / arguments[2]).unlink(missing_ok=True)
        print_answer(exchange())
    return 0


def facts(folder: Path, mark: str) -> dict[str, Any]:
    """Return versions, accelerator, free disk in bytes; `folder_error` says why the folder cannot be written."""
    from launcher.devices import accelerator
    from launcher.processes.worker_command import PACKAGES, num_cores

    facts: dict[str, Any] = {"host": platform.node(), "python": platform.python_version()}
    for library in LIBRARIES:
        facts[library] = package_version(library)
    # Chorus's own sources: a version number does not tell of an edit.
    digest = hashlib.sha256()
    for package in ("data", "launcher", "model"):
        for path in sorted((PACKAGES / package).rglob("*.py")):
            digest.update(path.read_bytes())
    facts["chorus"] = digest.hexdigest()[:DIGITS]

    facts["accelerator"] = accelerator()
    facts["gpus"] = 0
    if accelerator() == "cuda":
        import torch

        facts["gpus"] = torch.cuda.device_count()
    facts["cores"] = num_cores()

    facts["folder_error"] = None
    facts["free_bytes"] = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).write_text(platform.node())
        facts["free_bytes"] = shutil.disk_usage(folder).free
    except OSError as error:
        facts["folder_error"] = str(error)
    return facts


def package_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def exchange() -> dict[str, Any]:
    """Join the other hosts and exchange with all; return how far that went, and bytes per s sent by this one."""
    import torch
    import torch.distributed as dist

    from launcher.devices import accelerator

    rank = int(os.environ["RANK"])
    world_size = int(os.environ["WORLD_SIZE"])
    backend = "gloo"
    device = "cpu"
    if accelerator() == "cuda":
        backend = "nccl"
        device = "cuda"

    # Two steps that fail for different reasons: a closed port, or the wrong network interface.
    step = "port"
    all_arrived = False
    took_s = 0.0
    try:
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            world_size,
            is_master=rank == 0,
            timeout=TIMEOUT,
        )
        step = "exchange"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
        num_values = EXCHANGED_BYTES // world_size // FLOAT32_BYTES
        sent = torch.full((world_size, num_values), float(rank), device=device)
        received = torch.empty_like(sent)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            dist.all_to_all_single(received, sent)
            # The comparison on the CPU also waits for the GPU, so that the whole exchange is timed.
            all_arrived = bool((received[:, 0].cpu() == torch.arange(world_size)).all())
            took_s = time.perf_counter() - started
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:  # whatever went wrong is what is asked for
        message = " ".join(str(error).split())
        return {"step": step, "error": message[:LONGEST_ERROR]}

    if all_arrived:
        step = "done"
    # What a host sends to itself does not cross the network.
    sent_bytes = sent.numel() * FLOAT32_BYTES * (world_size - 1) / world_size
    return {"step": step, "error": None, "bytes_per_s": sent_bytes / took_s}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
