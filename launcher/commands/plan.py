"""`chorus plan`: what a recipe would run, without running it."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from launcher.commands.run import read_recipe
from launcher.executor import claim_folder
from launcher.planning.machine import machine_of
from launcher.planning.table import plan_table
from launcher.processes.launchers import Launcher, make_launcher
from launcher.processes.worker_command import shown
from launcher.run_folder import TRAINING_KINDS, RunFolder
from launcher.stages.pipeline import Pipeline, StageNode

# The port is chosen when the processes start.
PORT_SHOWN = 29500
# Training stages beside each other in the table of sizes.
COLUMNS = 5


def plan(options: argparse.Namespace) -> int:
    recipe, run = read_recipe(options)
    if run.path.exists():
        claim_folder(recipe, run)
    launcher = make_launcher(recipe.cluster)
    hosts = [len(host.slots) for host in launcher.topology.hosts]
    numbers = plan_table(recipe, run, hosts, machine_of(recipe.cluster, hosts))
    stages = [
        {
            "name": node.name,
            "kind": node.kind,
            "done": stage_status.done,
            "reason": stage_status.reason,
            "commands": _commands(node, launcher, run),
            **numbers["stages"].get(node.name, {}),
        }
        for node, stage_status in Pipeline(recipe, run).statuses()
    ]
    found = {
        "recipe": recipe.name,
        "run": str(run.path),
        **numbers,
        "hosts": str(launcher.topology),
        "stages": stages,
    }
    if options.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        _show(found)
    return 0


def _commands(node: StageNode, launcher: Launcher, run: RunFolder) -> list[dict[str, Any]]:
    """Return the commands that a stage would start, one for each host; none for what runs in the launcher itself."""
    if node.kind in TRAINING_KINDS:
        return launcher.training(run, node.name, PORT_SHOWN).record()["commands"]
    if node.kind == "evaluate":
        return launcher.evaluation(run, node.name).record()["commands"]
    return []


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    print(f"{found['recipe']} in {found['run']}\n")
    console.print(_states(found["stages"]))
    training = [stage for stage in found["stages"] if "parameters" in stage]
    for first in range(0, len(training), COLUMNS):
        console.print(_sizes(training[first : first + COLUMNS]))
    for stage in training:
        print(f"\n{stage['name']}: parameters of its parts, and their share of a forward pass")
        console.print(_parts(stage))
        print(f"\n{stage['name']}: memory per process in MiB, by DeepSpeed configuration and expert parallelism (ep)")
        print(f"beside what is kept: {_common(stage['memory_bytes'])}; total: the most at once")
        console.print(_memory(stage))
    _show_advice(found)
    if not found["vocabulary_known"]:
        print(f"Before there is a tokenizer, {found['vocabulary_size']} pieces stand for its vocabulary.")
    print(
        f"Operations and activations are those of utterances of {found['utterance_s']:g} s with "
        f"{found['tokens_per_s']:g} tokens a second. Times assume {_giga(found['rates']['operations_per_s'])} GFLOP/s, "
        f"{_mebibytes(found['rates']['within_host_bytes_per_s'])}/s within a host and "
        f"{_mebibytes(found['rates']['between_hosts_bytes_per_s'])}/s between hosts.\n"
    )
    print(f"Hosts: {found['hosts']}\n")
    for stage in found["stages"]:
        for command in stage["commands"] if not stage["done"] else ():
            print(f"{stage['name']} on {command['host']}: {shown(command['command'])}")


def _show_advice(found: dict[str, Any]) -> None:
    """Print the proposal, the settings that change the recipe to it, and the warnings."""
    print("\nProposed:")
    for name, proposed in found["proposal"]["stages"].items():
        print(f"- {name}: {proposed['deepspeed']}, because {proposed['deepspeed_reason']};")
        print(f"  expert parallelism {proposed['expert_parallel']}: {proposed['expert_parallel_reason']}.")
    settings = " ".join(f"--set {setting}" for setting in found["proposal"]["settings"])
    print(f"Pass {settings}\n" if settings else "The recipe has these settings.\n")
    for warned in found["warnings"]:
        print(f"Warning: {': '.join(filter(None, (warned['stage'], warned['text'])))}")
    if found["warnings"]:
        print()


def _states(stages: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("stage", "kind", "state", box=None, pad_edge=False)
    for stage in stages:
        table.add_row(stage["name"], stage["kind"], "done" if stage["done"] else f"to run: {stage['reason']}")
    return table


def _sizes(stages: list[dict[str, Any]]) -> Any:
    """Return a table with a column per training stage."""
    from rich.table import Table

    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "parameters": lambda stage: f"{stage['parameters']:,}",
        "  of the encoder": lambda stage: f"{stage['encoder_parameters']:,}",
        "  effective": lambda stage: f"{stage['effective_encoder_parameters']:,}",
        "  activated": lambda stage: f"{stage['activated_encoder_parameters']:,}",
        "GFLOPs per s of audio": lambda stage: _giga(stage["operations_per_s"]),
        "  of the encoder's": lambda stage: _giga(stage["encoder_operations_per_s"]),
        "  in training": lambda stage: _giga(stage["training_operations_per_s"]),
        "memory per process": lambda stage: _mebibytes(stage["memory_bytes"]["total"]),
        "sent per step and process": lambda stage: _mebibytes(sum(stage["traffic_bytes"].values())),
        "  share of a step's time": lambda stage: f"{stage['communication_share']:.0%}",
        "checkpoint": lambda stage: _mebibytes(stage["checkpoint_bytes"]),
        "steps": lambda stage: f"{stage['steps']:,}",
        "lanes": lambda stage: f"{stage['lanes']} = {stage['processes']} x {stage['accumulation']}",
        "expert parallel": lambda stage: str(stage["expert_parallel"]),
        "ZeRO stage": lambda stage: str(stage["zero_stage"]),
    }
    table = Table("", box=None, pad_edge=False)
    for stage in stages:
        table.add_column(stage["name"], justify="right")
    for label, cell in rows.items():
        table.add_row(label, *(cell(stage) for stage in stages))
    return table


def _parts(stage: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("", box=None, pad_edge=False)
    for heading in ("unique", "effective", "activated", "GFLOPs per s"):
        table.add_column(heading, justify="right")
    for name, part in stage["parts"].items():
        numbers = (f"{part[key]:,}" for key in ("unique", "effective", "activated"))
        table.add_row(name, *numbers, _giga(part["operations_per_s"]))
    return table


def _memory(stage: dict[str, Any]) -> Any:
    """Return a table with a row per configuration and expert-parallel size, and a column per kind of memory.

    Kinds come at different times of a step; the total is the most of them at once.
    """
    from rich.table import Table

    table = Table("", "ep", box=None, pad_edge=False)
    for heading in ("weights", "gradients", "optimizer", "buffers", "update", "total", "s sent"):
        table.add_column(heading, justify="right")
    table.add_column("fits")
    for choice in stage["memory_choices"]:
        memory = choice["memory_bytes"]
        optimizer = memory["master"] + memory["moments"]
        buffers = sum(memory[kind] for kind in ("communication", "message", "gathered", "incoming"))
        numbers = (memory["weights"], memory["gradients"], optimizer, buffers, memory["update"], memory["total"])
        cells = [f"{number / 2**20:,.1f}" for number in numbers]
        sending, fitting = f"{choice['communication_s']:.3g}", "yes" if choice["fits"] else "no"
        table.add_row(choice["deepspeed"], str(choice["expert_parallel"]), *cells, sending, fitting)
    return table


def _common(memory: dict[str, int | None]) -> str:
    """Return what a process needs whatever its ZeRO stage, in MiB."""
    kinds = {"activations": "activations", "teacher": "teacher", "framework": "libraries"}
    sizes = {name: memory[kind] for kind, name in kinds.items()}
    return ", ".join(f"{name} {'unknown' if n is None else f'{n / 2**20:,.1f}'}" for name, n in sizes.items())


def _giga(operations: float) -> str:
    return f"{operations / 1e9:.3f}"


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
