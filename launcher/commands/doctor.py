"""`chorus doctor`: what this machine, or with a hostfile every host of a run, can do for a run."""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from launcher.doctor.host_checks import HostChecks
from launcher.errors import ConfigError, exit_code
from launcher.processes.worker_command import accelerator, num_cores
from launcher.recipe import ClusterConfig, explain
from launcher.recipe.hostfile import read_topology
from launcher.recipe.yaml_io import apply_override
from launcher.tracking import choose_mode

PACKAGES = ("chorus-asr", "torch", "torchaudio", "deepspeed", "webdataset", "sentencepiece", "wandb")


def doctor(options: argparse.Namespace) -> int:
    if options.hostfile:
        return examine_hosts(options)
    found = examine()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:12} {text}")
    return 0


def examine_hosts(options: argparse.Namespace) -> int:
    """Examine the hosts of a hostfile; return 2 when something is in the way of a run."""
    values: dict[str, Any] = {"cluster": {"hostfile": options.hostfile}}
    for override in options.set:
        apply_override(values, override)
    try:
        cluster = ClusterConfig.model_validate(values.pop("cluster"))
    except ValidationError as error:
        raise ConfigError(explain(error, ClusterConfig, values, "The options of chorus doctor")) from None
    topology = read_topology(options.hostfile, cluster.include, cluster.exclude)
    examination = HostChecks(cluster, topology, Path(options.run_dir).expanduser().absolute())
    examination.run()
    if options.json:
        print(json.dumps(examination.record(), indent=2))
    else:
        _show_hosts(examination, str(topology))
    return exit_code(ConfigError()) if examination.problems else 0


def _show_hosts(examination: HostChecks, topology: str) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"Hosts: {topology}\n")
    table = Table("", *examination.hosts, box=None, pad_edge=False)
    for name in next(iter(examination.hosts.values()), {}):
        table.add_row(name, *(_shown(name, facts.get(name)) for facts in examination.hosts.values()))
    Console().print(table)
    print()
    for problem in examination.problems:
        print(f"- {problem}")
    if not examination.problems:
        print("Nothing is in the way of a run.")


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "free_bytes":
        return f"{value / 2**30:.1f} GiB"
    return f"{value / 2**20:.0f} MiB/s" if name == "exchange_bytes_per_s" else str(value)


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
