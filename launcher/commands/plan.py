"""`chorus plan`: what a recipe would run, without running it."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from launcher.commands.run import read_recipe
from launcher.execution import claim_folder
from launcher.launch import evaluation_command, shown, training_command
from launcher.pipeline import Node, Pipeline
from launcher.planning import plan_table
from launcher.recipe import Recipe
from launcher.run_folder import RunFolder

# The port is chosen when the processes start.
PORT_SHOWN = 29500


def plan(options: argparse.Namespace) -> int:
    recipe, run = read_recipe(options)
    if run.path.exists():
        claim_folder(recipe, run)
    numbers = plan_table(recipe, run)
    stages = [
        {
            "name": node.name,
            "kind": node.kind,
            "done": standing.done,
            "reason": standing.reason,
            "command": _command(node, recipe, run),
            **numbers["stages"].get(node.name, {}),
        }
        for node, standing in Pipeline(recipe, run).standings()
    ]
    found = {"recipe": recipe.name, "run": str(run.path), **numbers, "stages": stages}
    if options.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        _show(found)
    return 0


def _command(node: Node, recipe: Recipe, run: RunFolder) -> str | None:
    """Return the command that a stage would start; None for what runs in the launcher itself."""
    if node.kind in ("pretrain", "distill"):
        return shown(training_command(recipe.cluster.processes, run, node.name, PORT_SHOWN))
    if node.kind == "evaluate":
        return shown(evaluation_command(run, node.name))
    return None


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    print(f"{found['recipe']} in {found['run']}\n")
    console.print(_states(found["stages"]))
    console.print(_sizes([stage for stage in found["stages"] if "parameters" in stage]))
    if not found["vocabulary_known"]:
        print(f"Before there is a tokenizer, {found['vocabulary_size']} pieces stand for its vocabulary.")
    print("Memory is that of weights, gradients and optimizer; activations come on top of it.\n")
    for stage in found["stages"]:
        if stage["command"] and not stage["done"]:
            print(f"{stage['name']}: {stage['command']}")


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
        "memory per process": lambda stage: _mebibytes(stage["memory_bytes"]["total"]),
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


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
