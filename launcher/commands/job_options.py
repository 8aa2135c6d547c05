"""The options of the commands that have to do with engines: submit, jobs, logs, stop and node."""

import argparse
from collections.abc import Callable
from typing import Any

from launcher.commands.common_options import add_json, add_set
from launcher.commands.store_options import add_store_options

# As in launcher/engines/placement.py and launcher/engines/submission.py, which take longer to import.
NODE_ENGINES = ("slurm", "torchrun", "skypilot", "mpi")
JOB_ENGINES = ("slurm", "kubernetes", "skypilot")


def add_jobs(
    commands: Any, make_command: Callable[[str, str], Any], make_stoppable_command: Callable[[str, str], Any]
) -> None:
    """Add the commands to the parsers of `commands`; `make_command` gives what runs a function of a module."""
    _add_submit(commands, make_command)
    _add_node(commands, make_stoppable_command)

    parser = commands.add_parser("jobs", help="list the jobs of an engine, in its own words")
    _add_engine(parser)
    parser.set_defaults(command=make_command("jobs", "jobs"))

    parser = commands.add_parser("logs", help="show what a job has written")
    parser.add_argument("job", metavar="JOB", help="name or number of the job, as `chorus jobs` lists it")
    parser.add_argument("-f", "--follow", action="store_true", help="go on showing what comes")
    _add_engine(parser)
    parser.set_defaults(command=make_command("jobs", "logs"))

    parser = commands.add_parser("stop", help="stop a job: its run saves and leaves")
    parser.add_argument("job", metavar="JOB", help="name or number of the job, as `chorus jobs` lists it")
    _add_engine(parser)
    parser.set_defaults(command=make_command("jobs", "stop"))


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on", choices=JOB_ENGINES, required=True, help="engine of the job")
    parser.add_argument("--namespace", metavar="NAME", help="namespace of Kubernetes (default: that of kubectl)")
    add_json(parser)


def _add_submit(commands: Any, make_command: Callable[[str, str], Any]) -> None:
    parser = commands.add_parser("submit", help="hand a recipe to SLURM, Kubernetes or SkyPilot as a job")
    parser.add_argument("recipe", metavar="RECIPE", help="recipe file, or the name of a built-in recipe")
    parser.add_argument("--to", choices=JOB_ENGINES, required=True, help="engine that runs the job")
    parser.add_argument("--run-dir", metavar="DIR", help="run folder, as the nodes see it")
    add_set(parser, "change a setting")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the job (default: 1)")
    parser.add_argument("--gpus-per-node", type=int, metavar="G", help="GPUs of each node (default: processors alone)")
    parser.add_argument("--name", help="name of the job (default: that of the recipe)")
    parser.add_argument("--priority", help="priority, in the engine's words: a class, or a number")
    parser.add_argument("--namespace", metavar="NAME", help="namespace of Kubernetes (default: that of kubectl)")
    parser.add_argument("--image", help="container image with Chorus, for Kubernetes and SkyPilot")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the job, no secret; again"
    )
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="secret of the engine's own store that the job gets as variables; may be given again",
    )
    parser.add_argument("--dry-run", action="store_true", help="write, show and check the description; submit nothing")
    add_json(parser)
    parser.set_defaults(command=make_command("submit", "submit"))


def _add_node(commands: Any, make_stoppable_command: Callable[[str, str], Any]) -> None:
    parser = commands.add_parser("node", help="run a recipe as one node of a job; an engine starts it on each")
    parser.add_argument("recipe", metavar="RECIPE", help="recipe file, or the name of a built-in recipe")
    parser.add_argument("--run-dir", metavar="DIR", help="run folder, which all nodes share (default: runs/NAME)")
    add_store_options(parser)
    add_set(parser, "change a setting")
    parser.add_argument(
        "--engine", choices=NODE_ENGINES, help="whose variables count where several are set (default: all agree)"
    )
    parser.add_argument(
        "--processes-per-node", type=int, metavar="N", help="processes of each node (default: its GPUs)"
    )
    parser.add_argument(
        "--join-timeout-s",
        type=float,
        default=1800.0,
        metavar="S",
        help="longest time until all nodes have started, in s (default: 1800)",
    )
    parser.set_defaults(command=make_stoppable_command("node", "node"))
