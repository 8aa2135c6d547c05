"""The options of the commands over many runs: board, sweep and models."""

import argparse
from collections.abc import Callable
from typing import Any

from launcher.commands.common_options import add_json, add_listening, add_set


def add_watch(
    commands: Any, make_command: Callable[[str, str], Any], make_stoppable_command: Callable[[str, str], Any]
) -> None:
    """Add the commands to the parsers of `commands`; `make_command` gives what runs a function of a module."""
    _add_board(commands, make_command)
    _add_sweep(commands, make_stoppable_command)
    _add_models(commands, make_command)


def _add_board(commands: Any, make_command: Callable[[str, str], Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser("board", help="serve a page over many runs, as they go on")
    parser.add_argument("runs", metavar="RUNS", nargs="+", help="folders of runs, at any depth, or runs")
    add_listening(parser, port=8080)
    parser.set_defaults(command=make_command("board", "board"))


def _add_sweep(commands: Any, make_command: Callable[[str, str], Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "sweep", help="run a recipe under many settings; what is done is not repeated"
    )
    parser.add_argument("recipe", metavar="RECIPE", help="recipe file, or the name of a built-in recipe")
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="KEY=A,B,C",
        help="a setting and its values; with --random also KEY=uniform(A, B), log(A, B) or int(A, B); repeatable",
    )
    add_set(parser, "change a setting of all runs, such as stages.teacher.steps=30")
    parser.add_argument("--run-dir", metavar="DIR", help="folder of the sweep (default: runs/NAME-sweep)")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each point, under the seeds 1 to N")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    parser.add_argument("--random", type=int, metavar="N", help="draw N points instead of running all of the grid")
    parser.add_argument(
        "--budget", type=float, metavar="H", help="hours of all runs together, after which no run goes on"
    )
    parser.add_argument(
        "--stop-after",
        type=float,
        metavar="SHARE",
        help="from this share of a stage's steps on, stop runs whose validation is worse than the median of the others",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the runs, and start nothing")
    add_json(parser)
    parser.set_defaults(command=make_command("sweep", "sweep"))


def _add_models(commands: Any, make_command: Callable[[str, str], Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "models", help="list the models that finished runs left, and give them names"
    )
    parser.add_argument(
        "words",
        metavar="RUNS | promote MODEL NAME | history NAME",
        nargs="*",
        help="folders of runs (default: runs); promote: let NAME stand for a model, such as RUN/STAGE; history: what "
        "NAME has stood for",
    )
    parser.add_argument(
        "--models-dir",
        metavar="DIR",
        default="models",
        help="folder of names (default: models, where other commands look)",
    )
    parser.add_argument("--note", metavar="TEXT", help="with promote: a note for the history")
    add_json(parser)
    parser.set_defaults(command=make_command("models", "models"))
