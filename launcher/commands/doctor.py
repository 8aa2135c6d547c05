"""`chorus doctor`: what this machine can do for a run."""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
from typing import Any

import psutil

from launcher.launch import accelerator, num_cores
from launcher.tracking import choose_mode

PACKAGES = ("chorus-asr", "torch", "torchaudio", "deepspeed", "webdataset", "sentencepiece", "wandb")


def doctor(options: argparse.Namespace) -> int:
    found = examine()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:12} {text}")
    return 0


def examine() -> dict[str, Any]:
    """Return versions, accelerator, processors, memory, disk and the W&B login, as short texts."""
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(os.getcwd())
    mode, reason = choose_mode("auto", os.environ)
    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES},
        "accelerator": _accelerator(),
        "processes": _processes(),
        "memory": f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}",
        "disk": f"{disk.free / 2**30:.1f} GiB free in {os.getcwd()}",
        "wandb": f"{mode}: {reason}",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _accelerator() -> str:
    if accelerator() != "cuda":
        return "none; training runs on the processors"
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)


def _processes() -> str:
    if accelerator() != "cuda":
        return f"{num_cores()} cores; one training process for each is a good start"
    import torch

    return f"up to {torch.cuda.device_count()}, one per GPU; {num_cores()} cores"
