"""The options of `chorus pseudo-label`."""

import argparse
from collections.abc import Callable
from typing import Any

from launcher.commands.common_options import add_json


def add_pseudo_label(commands: Any, make_command: Callable[[str, str], Any]) -> None:
    """Add the command to the parsers of `commands`; `make_command` gives what runs a function of a module."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "pseudo-label", help="write the texts of a set of shards anew, as a model hears them"
    )
    parser.add_argument("folder", metavar="SHARDS", help="the shards of a split, or a folder of splits")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        required=True,
        help="RUN/STAGE, a model's folder or name, or one of transformers",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the new set (default: SHARDS-pseudo-labels)")
    parser.add_argument("--splits", metavar="A,B", help="only these splits (default: all)")
    parser.add_argument("--min-confidence", type=float, metavar="P", help="drop texts of lower confidence, from 0 to 1")
    parser.add_argument(
        "--compare-with", metavar="MODEL|transcripts", help="texts to compare with: a second model's, or the set's own"
    )
    parser.add_argument("--max-cer", type=float, metavar="R", help="drop texts of a higher character error rate")
    parser.add_argument("--max-wer", type=float, metavar="R", help="drop texts of a higher word error rate")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="drop longer utterances without hearing them")
    parser.add_argument(
        "--language", default="", metavar="TAG", help="what is spoken, such as en (default: Whisper hears which it is)"
    )
    parser.add_argument("--normalize", choices=("lower", "none"), help="case of the texts (default: as the set's own)")
    parser.add_argument("--punctuation", choices=("remove", "keep"), help="punctuation (default: as the set's own)")
    parser.add_argument(
        "--batch-seconds", type=float, default=60.0, metavar="S", help="padded audio recognised at a time (default: 60)"
    )
    parser.add_argument(
        "--shard-seconds", type=float, default=600.0, metavar="S", help="audio per shard in seconds (default: 600)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add_json(parser)
    parser.set_defaults(command=make_command("pseudo_label", "pseudo_label"))
