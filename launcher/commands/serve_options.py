"""The options of `chorus serve`."""

import argparse
from collections.abc import Callable
from typing import Any

from launcher.commands.common_options import add_listening, add_set
from launcher.commands.search_options import add_search_options


def add_serve(commands: Any, make_command: Callable[[str, str], Any]) -> None:
    """Add the command to the parsers of `commands`; `make_command` gives what runs a function of a module."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve", help="serve finished models over HTTP and WebSocket, with an interface like OpenAI's"
    )
    parser.add_argument(
        "models",
        metavar="[NAME=]MODEL",
        nargs="+",
        help="finished stages (RUN/STAGE), models' folders or names; NAME is what requests call them",
    )
    add_listening(parser, port=8000)
    parser.add_argument("--max-mb", type=float, default=25, metavar="N", help="largest upload, in MiB (default: 25)")
    parser.add_argument(
        "--max-seconds", type=float, default=1800, metavar="S", help="longest recording or stream (default: 1800)"
    )
    parser.add_argument(
        "--max-requests", type=int, default=32, metavar="N", help="requests and streams at once (default: 32)"
    )
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="longest time of a request (default: 120)"
    )
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="recordings in a batch (default: 16)")
    parser.add_argument(
        "--batch-wait-ms", type=float, default=5, metavar="MS", help="what a batch waits for more (default: 5)"
    )
    parser.add_argument(
        "--stop-seconds", type=float, default=30, metavar="S", help="what runs has to finish (default: 30)"
    )
    parser.add_argument(
        "--ffmpeg", action="store_true", help="let ffmpeg decode what libsndfile does not read; see docs/serving.md"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "int8"), default="fp32", help="numbers that models compute with on CPUs"
    )
    add_search_options(parser)
    add_set(parser, "change a setting of the search, such as ctc_weight=0.4")
    parser.set_defaults(command=make_command("serve", "serve"))
