"""`chorus plan`: what a recipe would run, without running it."""

import argparse
import json
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
    stages = [
        {
            "name": node.name,
            "kind": node.kind,
            "done": standing.done,
            "reason": standing.reason,
            "command": _command(node, recipe, run),
        }
        for node, standing in Pipeline(recipe, run).standings()
    ]
    found = {
        "recipe": recipe.name,
        "run": str(run.path),
        "stages": stages,
        "numbers": plan_table(recipe, run),
    }
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
    from rich.table import Table

    console = Console()
    console.print(f"{found['recipe']} in {found['run']}", highlight=False)
    table = Table("stage", "kind", "state", box=None, pad_edge=False)
    for stage in found["stages"]:
        table.add_row(stage["name"], stage["kind"], "done" if stage["done"] else f"to run: {stage['reason']}")
    console.print(table)
    for stage in found["stages"]:
        if stage["command"] and not stage["done"]:
            console.print(f"{stage['name']}: {stage['command']}", highlight=False, soft_wrap=True)
