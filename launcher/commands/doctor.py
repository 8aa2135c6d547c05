"""`chorus doctor`: what this machine, or with a hostfile every host of a run, can do for a run."""

import argparse
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import psutil

from launcher.devices import ON_PROCESSORS, accelerator
from launcher.doctor.host_checks import HostChecks
from launcher.doctor.host_probe import package_version
from launcher.errors import ConfigError, exit_code
from launcher.plain_text import make_console, table_cell
from launcher.processes.worker_command import num_cores
from launcher.recipe import ClusterConfig, validate
from launcher.recipe.hostfile import read_topology
from launcher.recipe.yaml_io import apply_override
from launcher.tracking import choose_mode

PACKAGES = ("chorus-asr", "torch", "torchaudio", "deepspeed", "webdataset", "sentencepiece", "wandb")
GIB = 2**30
MIB = 2**20


def doctor(options: argparse.Namespace) -> int:
    if options.hostfile:
        return examine_hosts(options)
    facts = examine()
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            versions = [f"{package} {version}" for package, version in value.items()]
            value = ", ".join(versions)
        print(f"{name:12} {value}")
    return 0


def examine_hosts(options: argparse.Namespace) -> int:
    """Examine the hosts of a hostfile; return 2 when something is in the way of a run."""
    values: dict[str, Any] = {"cluster": {"hostfile": options.hostfile}}
    for override in options.set:
        apply_override(values, override)
    cluster = validate(ClusterConfig, values.pop("cluster"), "The options of chorus doctor")

    topology = read_topology(options.hostfile, cluster.include, cluster.exclude)
    checks = HostChecks(cluster, topology, Path(options.run_dir).expanduser().absolute())
    checks.run()
    if options.json:
        print(json.dumps(checks.record(), indent=2))
    else:
        print(f"Hosts: {topology}\n")
        _show_hosts(checks)
    if checks.problems:
        # As a run on these hosts would end.
        return exit_code(ConfigError())
    return 0


def _show_hosts(checks: HostChecks) -> None:
    from rich.table import Table

    table = Table("", box=None, pad_edge=False)
    for host in checks.hosts:
        table.add_column(table_cell(host))
    # Every host reports the same facts. None may have answered.
    first_facts = next(iter(checks.hosts.values()), {})
    for name in first_facts:
        cells = []
        for facts in checks.hosts.values():
            value = facts.get(name)
            if value is None:
                cells.append("-")
            elif name == "free_bytes":
                cells.append(f"{value / GIB:.1f} GiB")
            elif name == "exchange_bytes_per_s":
                cells.append(f"{value / MIB:.0f} MiB/s")
            else:
                cells.append(str(value))
        table.add_row(name, *map(table_cell, cells))
    make_console().print(table)
    print()
    for problem in checks.problems:
        print(f"- {problem}")
    if not checks.problems:
        print("Nothing is in the way of a run.")


def examine() -> dict[str, Any]:
    """Return versions, accelerator, processors, memory, disk and the W&B login, as short texts."""
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(os.getcwd())
    mode, reason = choose_mode("auto", os.environ)

    accelerators = "none; training runs on the processors"
    processes = f"{num_cores()} cores; one training process for each is a good start"
    if accelerator() == "cuda":
        import torch

        gpus = range(torch.cuda.device_count())
        accelerators = ", ".join(torch.cuda.get_device_name(index) for index in gpus)
        processes = f"up to {len(gpus)}, one per GPU; {num_cores()} cores"
        if not gpus:
            # DS_ACCELERATOR asks for what PyTorch does not see.
            accelerators = "GPUs are asked for, and PyTorch sees none"
            processes = f"none before there are GPUs; on the processors with {ON_PROCESSORS}"

    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "versions": {package: package_version(package) for package in PACKAGES},
        "accelerator": accelerators,
        "processes": processes,
        "memory": f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}",
        "disk": f"{disk.free / GIB:.1f} GiB free in {os.getcwd()}",
        "wandb": f"{mode}: {reason}",
    }
