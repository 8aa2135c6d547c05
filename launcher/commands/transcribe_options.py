"""The options of `chorus transcribe`."""

import argparse
from collections.abc import Callable
from typing import Any

from launcher.commands.common_options import add_adapter, add_json, add_set
from launcher.commands.search_options import add_search_options

# As in launcher/inference/transcript_formats.py, whose neighbours take long to import.
FORMAT_NAMES = ("text", "json", "srt", "vtt", "ctm", "textgrid")


def add_transcribe(commands: Any, make_command: Callable[[str, str], Any]) -> None:
    """Add the command to the parsers of `commands`; `make_command` gives what runs a function of a module."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "transcribe", help="recognise recordings with a finished model"
    )
    parser.add_argument("model", metavar="MODEL", help="a finished stage (RUN/STAGE), a model's folder or name")
    parser.add_argument(
        "audio", metavar="INPUT", nargs="+", help="audio files, folders, patterns, URLs, or - for standard input"
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=FORMAT_NAMES,
        help="what to write (default: text); with --out may be given again",
    )
    parser.add_argument("--out", metavar="DIR", help="write a file of each format for each recording into this folder")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that recognise (default: 1)")
    parser.add_argument(
        "--cut",
        choices=("auto", "always", "never"),
        default="auto",
        help="cut at silences: recordings above a minute (auto), all or none",
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "int8"), default="fp32", help="numbers that the model computes with on CPUs"
    )
    parser.add_argument(
        "--stream", action="store_true", help="read chunk by chunk, and show the text as it grows; needs --chunk"
    )
    add_adapter(parser)
    add_search_options(parser)
    add_set(parser, "change a setting of the search, such as ctc_weight=0.4")
    add_json(parser)
    parser.set_defaults(command=make_command("transcribe", "transcribe"))
