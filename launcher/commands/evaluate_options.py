"""The options of `chorus evaluate`."""

import argparse
from collections.abc import Callable
from typing import Any

from launcher.commands.common_options import add_adapter, add_json, add_set
from launcher.commands.search_options import add_search_options

# As in launcher/evaluation/normalisation.py and launcher/inference/precision.py, whose neighbours take long to import.
NORMALISATIONS = ("none", "basic", "english")
DTYPES = ("fp32", "bf16", "int8")
# What an option has that was not given, of those that are for sets alone.
SET_DEFAULTS: dict[str, Any] = {
    "split": None,
    "out": None,
    "jobs": 1,
    "dtype": "fp32",
    "normalise": "none",
    "calibrate_on": [],
    "robustness": 0,
    "noise": None,
    "adapter": None,
}


def add_evaluate(commands: Any, make_command: Callable[[str, str], Any]) -> None:
    """Add the command to the parsers of `commands`; `make_command` gives what runs a function of a module."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate", help="evaluate a run's models, or any finished model on shards or a manifest"
    )
    parser.add_argument(
        "run", metavar="MODEL", help="a run, or one of its models or evaluations; with DATA any finished model"
    )
    data = parser.add_argument(
        "data", metavar="DATA", nargs="+", default=[], help="shards (a folder or URL) or manifests to recognise"
    )
    # With "*" argparse takes none where options stand between MODEL and DATA, and then refuses DATA.
    data.required = False
    parser.add_argument("--split", metavar="NAME", help="split of DATA (default: test of shards, all of a manifest)")
    parser.add_argument(
        "--normalise",
        choices=NORMALISATIONS,
        default=SET_DEFAULTS["normalise"],
        help="what is done to references and hypotheses before they are compared (default: none)",
    )
    parser.add_argument("--out", metavar="DIR", help="write evaluation.md, evaluation.json and utterances.jsonl there")
    parser.add_argument(
        "--jobs", type=int, default=SET_DEFAULTS["jobs"], metavar="N", help="processes that recognise (default: 1)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default=SET_DEFAULTS["dtype"], help="numbers that the model computes with on CPUs"
    )
    parser.add_argument(
        "--calibrate-on",
        action="append",
        default=SET_DEFAULTS["calibrate_on"],
        metavar="DATA",
        help="fit a temperature of the confidences there (of a folder of splits: on dev); may be given again",
    )
    parser.add_argument(
        "--robustness",
        type=int,
        default=SET_DEFAULTS["robustness"],
        metavar="N",
        help="recognise N utterances under noise, in rooms, through lines and codecs, and at other speeds",
    )
    parser.add_argument("--noise", metavar="SET", help="recordings of noise for --robustness (default: white noise)")
    add_adapter(parser)
    add_search_options(parser)
    add_set(
        parser,
        "change a setting of an evaluation of a run, such as stages.evaluation.search.beam=20, or of the search "
        "on DATA, such as ctc_weight=0.4",
    )
    add_json(parser)
    parser.set_defaults(command=make_command("evaluate", "evaluate"))


def options_of_sets(options: argparse.Namespace) -> list[str]:
    """The options that were given and are for sets alone."""
    given = []
    for name, default in SET_DEFAULTS.items():
        if getattr(options, name) != default:
            given.append(f"--{name.replace('_', '-')}")
    return given
