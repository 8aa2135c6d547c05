"""`chorus plan`: what a recipe would run, without running it."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.commands.run import read_recipe
from launcher.errors import ConfigError
from launcher.executor import claim_folder
from launcher.plain_text import make_console, table_cell
from launcher.planning.interconnect import Interconnect, read_interconnect
from launcher.planning.machine import machine_of
from launcher.planning.scaling import Nodes
from launcher.planning.table import plan_table
from launcher.processes.launchers import make_launcher
from launcher.processes.worker_command import shown
from launcher.recipe import check_inputs
from launcher.run_folder import TRAINING_KINDS
from launcher.stages.feasibility import feasibility_warnings
from launcher.stages.pipeline import Pipeline
from launcher.stages.start_checks import check_start, corpus_warnings

# The port is chosen when the processes start.
PORT_SHOWN = 29500
# Training stages beside each other in the table of sizes.
COLUMNS = 5
MIB = 2**20
# What --nodes may ask about.
MAX_NODES = 4096
MAX_CARDS = 64
DEFAULT_INTERCONNECT = "nvlink4-ndr"


def plan(options: argparse.Namespace) -> int:
    places, link = _read_nodes(options)
    recipe, run = read_recipe(options)
    # What a run would refuse, a plan refuses too.
    check_inputs(recipe)
    if run.path.exists():
        claim_folder(recipe, run)
    check_start(recipe, run)
    launcher = make_launcher(recipe.cluster)
    hosts = [len(host.slots) for host in launcher.topology.hosts]
    numbers = plan_table(recipe, run, hosts, machine_of(recipe.cluster, hosts), places, link)
    numbers["warnings"] += corpus_warnings(recipe, run)
    numbers["warnings"] += feasibility_warnings(recipe, run)

    stages = []
    for node, stage_status in Pipeline(recipe, run).statuses():
        # One command for each host; the other kinds of stages run in the launcher itself.
        commands = []
        if node.kind in TRAINING_KINDS:
            launch = launcher.training(run, node.name, PORT_SHOWN)
            commands = launch.record()["commands"]
        elif node.kind == "evaluate":
            launch = launcher.evaluation(run, node.name)
            commands = launch.record()["commands"]
        stages.append(
            {
                "name": node.name,
                "kind": node.kind,
                "done": stage_status.done,
                "reason": stage_status.reason,
                "commands": commands,
                # Only training stages have numbers.
                **numbers["stages"].get(node.name, {}),
            }
        )
    report = {
        "recipe": recipe.name,
        "run": str(run.path),
        **numbers,
        "hosts": str(launcher.topology),
        # In place of the training stages' numbers, which these include.
        "stages": stages,
    }
    if options.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print_report(report)
    return 0


def _read_nodes(options: argparse.Namespace) -> tuple[list[Nodes], Interconnect | None]:
    """Return the nodes that --nodes asks about and what connects them, or nothing. ConfigError for no number."""
    if options.nodes is None:
        if options.gpus_per_node is not None or options.interconnect is not None:
            raise ConfigError("--gpus-per-node and --interconnect belong to --nodes; add it, such as --nodes 1,8,64.")
        return [], None
    cards = 8 if options.gpus_per_node is None else options.gpus_per_node
    places = []
    for text in options.nodes.split(","):
        if not text.strip().isdecimal() or not 1 <= int(text) <= MAX_NODES or not 1 <= cards <= MAX_CARDS:
            raise ConfigError(
                f"--nodes is {options.nodes!r} and --gpus-per-node {cards}. Give numbers of nodes from 1 to "
                f"{MAX_NODES}, such as --nodes 1,8,64, and 1 to {MAX_CARDS} cards of each."
            )
        places.append(Nodes(int(text), cards))
    return places, read_interconnect(options.interconnect or DEFAULT_INTERCONNECT)


def _print_scaling(console: Console, stage: dict[str, Any]) -> None:
    """Print a table of what a step takes on many nodes."""
    print(f"\n{stage['name']} on many cards, with a micro-batch on each")
    print(
        "MiB: memory of a card, what it sends within its node, what a node sends to others; s: sent in all, and waited "
        "for where gradients travel beside the backward pass; computing: the share of such a step"
    )
    shared = stage["effective_encoder_parameters"] / stage["encoder_parameters"]
    if shared > 1:
        print(f"A shared block's gradient is sent once: one for each layer would be {shared:.1f} times the encoder's.")
    table = Table("", box=None, pad_edge=False)
    for heading in ("cards", "ep", "memory", "in node", "of node", "s sent", "s waited", "computing"):
        table.add_column(heading, justify="right")
    for row in stage["scaling"]:
        table.add_row(
            row["deepspeed"],
            f"{row['nodes']} x {row['cards']}",
            str(row["expert_parallel"]),
            _in_mebibytes(row["memory_bytes"]),
            _in_mebibytes(row["within_bytes"]),
            _in_mebibytes(row["between_bytes"]),
            f"{row['communication_s']:.3g}",
            f"{row['exposed_s']:.3g}",
            f"{row['efficiency']:.0%}",
        )
    console.print(table)


def _print_report(report: dict[str, Any]) -> None:
    console = make_console()
    print(f"{report['recipe']} in {report['run']}\n")
    states = Table("stage", "kind", "state", box=None, pad_edge=False)
    for stage in report["stages"]:
        state = "done"
        if not stage["done"]:
            state = f"to run: {stage['reason']}"
        states.add_row(table_cell(stage["name"]), table_cell(stage["kind"]), table_cell(state))
    console.print(states)

    training = [stage for stage in report["stages"] if "parameters" in stage]
    for first in range(0, len(training), COLUMNS):
        console.print(_sizes_table(training[first : first + COLUMNS]))
    for stage in training:
        _print_training_stage(console, stage)
        if stage["mixture"]:
            print(f"\n{stage['name']}: what its {stage['steps']:,} steps read of each corpus")
            console.print(mixture_table(stage["mixture"]))
        if "scaling" in stage:
            _print_scaling(console, stage)
    _print_advice(report)

    if not report["vocabulary_known"]:
        print(f"Before there is a tokenizer, {report['vocabulary_size']} pieces stand for its vocabulary.")
    rates = report["rates"]
    print(
        f"Operations and activations are those of utterances of {report['utterance_s']:g} s with "
        f"{report['tokens_per_s']:g} tokens a second. Times assume {_giga(rates['operations_per_s'])} GFLOP/s, "
        f"{_mebibytes(rates['within_host_bytes_per_s'])}/s within a host and "
        f"{_mebibytes(rates['between_hosts_bytes_per_s'])}/s between hosts.\n"
    )

    print(f"Hosts: {report['hosts']}\n")
    for stage in report["stages"]:
        if stage["done"]:
            continue
        for command in stage["commands"]:
            print(f"{stage['name']} on {command['host']}: {shown(command['command'])}")


def mixture_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of what a training reads of each corpus of a mixture."""
    table = Table("corpus", box=None, pad_edge=False)
    for heading in ("hours", "from step", "share", "hours read", "epochs"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            table_cell(row["corpus"]),
            f"{row['hours']:,.4g}",
            f"{row['from_step']:,}",
            f"{row['share']:.1%}",
            f"{row['hours_read']:,.4g}",
            f"{row['epochs']:,.2f}",
        )
    return table


def _print_advice(report: dict[str, Any]) -> None:
    """Print the proposal, the settings that change the recipe to it, and the warnings."""
    proposal = report["proposal"]
    print("\nProposed:")
    for name, proposed in proposal["stages"].items():
        print(f"- {name}: {proposed['deepspeed']}, because {proposed['deepspeed_reason']};")
        print(f"  expert parallelism {proposed['expert_parallel']}: {proposed['expert_parallel_reason']}.")
    if proposal["settings"]:
        options = [f"--set {setting}" for setting in proposal["settings"]]
        print(f"Pass {' '.join(options)}\n")
    else:
        print("The recipe has these settings.\n")

    for warning in report["warnings"]:
        place = ""
        # Those of the recipe as a whole belong to no stage.
        if warning["stage"]:
            place = f"{warning['stage']}: "
        print(f"Warning: {place}{warning['text']}")
    if report["warnings"]:
        print()


def _sizes_table(stages: list[dict[str, Any]]) -> Table:
    """Return a table with a column per training stage."""
    rows: dict[str, list[str]] = {}
    any_frozen = any(stage["frozen_parameters"] for stage in stages)
    any_adapted = any("trained_parameters" in stage for stage in stages)
    for stage in stages:
        cells = {"parameters": f"{stage['parameters']:,}"}
        if any_frozen:
            cells["  frozen"] = f"{stage['frozen_parameters']:,}"
        if any_adapted:
            trained = share = ""
            if "trained_parameters" in stage:
                trained = f"{stage['trained_parameters']:,}"
                share = f"{stage['trained_share']:.2%}"
            cells["  trained in adapting"] = trained
            cells["  over those of the base"] = share
        cells |= {
            "  of the encoder": f"{stage['encoder_parameters']:,}",
            "  effective": f"{stage['effective_encoder_parameters']:,}",
            "  activated": f"{stage['activated_encoder_parameters']:,}",
            "GFLOPs per s of audio": _giga(stage["operations_per_s"]),
            "  of the encoder's": _giga(stage["encoder_operations_per_s"]),
            "  in training": _giga(stage["training_operations_per_s"]),
            "memory per process": _mebibytes(stage["memory_bytes"]["total"]),
            "sent per step and process": _mebibytes(sum(stage["traffic_bytes"].values())),
            "  share of a step's time": f"{stage['communication_share']:.0%}",
            "checkpoint": _mebibytes(stage["checkpoint_bytes"]),
            "steps": f"{stage['steps']:,}",
            "lanes": f"{stage['lanes']} = {stage['processes']} x {stage['accumulation']}",
            "expert parallel": str(stage["expert_parallel"]),
            "ZeRO stage": str(stage["zero_stage"]),
        }
        for label, cell in cells.items():
            rows.setdefault(label, []).append(cell)

    table = Table("", box=None, pad_edge=False)
    for stage in stages:
        table.add_column(stage["name"], justify="right")
    for label, row in rows.items():
        table.add_row(label, *row)
    return table


def _print_training_stage(console: Console, stage: dict[str, Any]) -> None:
    """Print a table of the model's parts, and one of the memory that each choice needs."""
    print(f"\n{stage['name']}: parameters of its parts, and their share of a forward pass")
    parts = Table("", box=None, pad_edge=False)
    for heading in ("unique", "effective", "activated", "GFLOPs per s"):
        parts.add_column(heading, justify="right")
    for name, part in stage["parts"].items():
        parts.add_row(
            name,
            f"{part['unique']:,}",
            f"{part['effective']:,}",
            f"{part['activated']:,}",
            _giga(part["operations_per_s"]),
        )
    console.print(parts)

    # These are the same under every choice.
    common = stage["memory_bytes"]
    activations = "unknown"
    if common["activations"] is not None:
        activations = _in_mebibytes(common["activations"])
    print(f"\n{stage['name']}: memory per process in MiB, by DeepSpeed configuration and expert parallelism (ep)")
    print(
        f"beside what is kept: activations {activations}, teacher {_in_mebibytes(common['teacher'])}, libraries "
        f"{_in_mebibytes(common['framework'])}; total: the most at once"
    )

    choices = Table("", "ep", box=None, pad_edge=False)
    # The kinds come at different times of a step, so they add up to more than the total.
    for heading in ("weights", "gradients", "optimizer", "buffers", "update", "total", "s sent"):
        choices.add_column(heading, justify="right")
    choices.add_column("fits")
    for choice in stage["memory_choices"]:
        memory = choice["memory_bytes"]
        optimizer = memory["master"] + memory["moments"]
        buffers = memory["communication"] + memory["message"] + memory["gathered"] + memory["incoming"]
        choices.add_row(
            choice["deepspeed"],
            str(choice["expert_parallel"]),
            _in_mebibytes(memory["weights"]),
            _in_mebibytes(memory["gradients"]),
            _in_mebibytes(optimizer),
            _in_mebibytes(buffers),
            _in_mebibytes(memory["update"]),
            _in_mebibytes(memory["total"]),
            f"{choice['communication_s']:.3g}",
            "yes" if choice["fits"] else "no",
        )
    console.print(choices)


def _giga(operations: float) -> str:
    return f"{operations / 1e9:.3f}"


def _mebibytes(size_bytes: float) -> str:
    return f"{size_bytes / MIB:.1f} MiB"


def _in_mebibytes(size_bytes: int) -> str:
    """A cell of a table whose heading has the unit."""
    return f"{size_bytes / MIB:,.1f}"
