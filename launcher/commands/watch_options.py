"""The options of `chorus models`."""

import argparse
from collections.abc import Callable
from typing import Any

from launcher.commands.common_options import add_json


def add_watch(commands: Any, make_command: Callable[[str, str], Any]) -> None:
    """Add the command to the parsers of `commands`; `make_command` gives what runs a function of a module."""
    _add_models(commands, make_command)


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
