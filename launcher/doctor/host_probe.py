"""What `chorus doctor` has each host of a run say: `python -m launcher.doctor.host_probe PART ...`.

facts FOLDER MARK: one line of JSON on this host, and a mark left in the folder; then, for every line read, its clock.
marks FOLDER: the marks that this host sees. exchange FOLDER MARK: removes the mark and takes part in an all-to-all with
the other hosts; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are those of a training process. The last line printed is
JSON.
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

MARK = ".doctor-"
PACKAGES = ("torch", "deepspeed", "torchaudio", "webdataset", "sentencepiece")
TIMEOUT = timedelta(seconds=30)
EXCHANGED_BYTES = 8 << 20
ROUNDS = 3


def main(arguments: list[str]) -> int:
    part, folder = arguments[0], Path(arguments[1])
    if part == "facts":
        print(json.dumps(facts(folder, arguments[2])), flush=True)
        for _ in sys.stdin:
            print(time.time(), flush=True)
    elif part == "marks":
        print(json.dumps(sorted(path.name for path in folder.iterdir() if path.name.startswith(MARK))))
    else:
        (folder / arguments[2]).unlink(missing_ok=True)
        print(json.dumps(exchange()), flush=True)
    return 0


def facts(folder: Path, mark: str) -> dict[str, Any]:
    """Return versions, accelerator, free disk in bytes; `folder_error` says why the folder cannot be written."""
    from launcher.processes.worker_command import PACKAGES as CODE
    from launcher.processes.worker_command import accelerator, num_cores

    found: dict[str, Any] = {
        "host": platform.node(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "chorus": _code_digest(CODE),
        "accelerator": accelerator(),
        "gpus": _num_gpus() if accelerator() == "cuda" else 0,
        "cores": num_cores(),
        "folder_error": None,
        "free_bytes": None,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).write_text(platform.node())
        found["free_bytes"] = shutil.disk_usage(folder).free
    except OSError as error:
        found["folder_error"] = str(error)
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _code_digest(packages: Path) -> str:
    """Return the first digits of a SHA-256 over Chorus's own sources: a version number does not tell of an edit."""
    digest = hashlib.sha256()
    for package in ("data", "launcher", "model"):
        for path in sorted((packages / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def exchange() -> dict[str, Any]:
    """Join the other hosts and exchange with all; return how far that went, and bytes per s sent by this one."""
    import torch
    import torch.distributed as dist

    from launcher.processes.worker_command import accelerator

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    step, right, took_s = "port", False, 0.0
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            address, port, world, is_master=rank == 0, timeout=TIMEOUT
        )
        step = "exchange"
        cuda = accelerator() == "cuda"
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world, timeout=TIMEOUT)
        sent = torch.full((world, EXCHANGED_BYTES // world // 4), float(rank), device="cuda" if cuda else "cpu")
        received = torch.empty_like(sent)
        for _ in range(ROUNDS):  # the first makes the connections
            started = time.perf_counter()
            dist.all_to_all_single(received, sent)
            right = bool((received[:, 0].cpu() == torch.arange(world)).all())
            took_s = time.perf_counter() - started
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:  # whatever went wrong is what is asked for
        return {"step": step, "error": " ".join(str(error).split())[:300]}
    elsewhere = sent.numel() * 4 * (world - 1) / world
    return {"step": "done" if right else "exchange", "error": None, "bytes_per_s": elsewhere / took_s}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
