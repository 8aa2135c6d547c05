"""The parsers of `chorus shards` and its actions. What they say of settings is as in data/shard_tools, which takes long
to import."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

from launcher.commands.common_options import add_json

Command = Callable[[argparse.Namespace], int]
# Quoted: argparse's class takes no parameter when the program runs.
Actions: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
CommandOf = Callable[[str, str], Command]
"""From a module in launcher/commands and a function there to a command that imports it when it is called."""


def add_shards(commands: Actions, command: CommandOf) -> None:
    parser = commands.add_parser("shards", help="inspect shards, and make new sets of them")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_inspection(actions, command)
    _add_rewriting(actions, command)


def _add_action(actions: Actions, name: str, text: str, run: Command) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text)
    action.add_argument("folder", metavar="DIR", help="the shards of a split, or a folder of splits")
    add_json(action)
    action.set_defaults(command=run)
    return action


def _add_inspection(actions: Actions, command: CommandOf) -> None:
    verify = _add_action(
        actions,
        "verify",
        "read everything, compare it with its records, and say what is broken (exit code 3) and what is odd (0)",
        command("shards", "verify_shards"),
    )
    verify.add_argument("--tokenizer", metavar="DIR", help="count these tokens for CTC (default: a token a character)")
    verify.add_argument(
        "--held-out-speakers",
        action="store_true",
        help="name every speaker of two splits (default: only where at most half of them are in both)",
    )

    stats = _add_action(
        actions,
        "stats",
        "count and measure, and show what a run would make of them",
        command("shards", "stats_shards"),
    )
    stats.add_argument("--lanes", type=int, metavar="N", help="batches.lanes of the run (default: that of recipes)")
    stats.add_argument("--seconds", type=float, metavar="S", help="batches.seconds of the run")
    stats.add_argument("--pool-shards", type=int, metavar="N", help="batches.pool_shards of the run")
    stats.add_argument("--html", metavar="FILE", help="draw it all as a page of one file")

    play = _add_action(
        actions, "play", "write the audio and the text of one utterance", command("shard_sets", "play_utterance")
    )
    play.add_argument("key", metavar="KEY", help="the utterance, as SPLIT/KEY where several splits have it")
    play.add_argument("--out", metavar="FILE", help=".wav or .flac to write, its text beside it (default: KEY.wav)")


def _add_rewriting(actions: Actions, command: CommandOf) -> None:
    reshard = _add_action(
        actions, "reshard", "write a set anew in shards of another size", command("shard_sets", "reshard")
    )
    _add_output(reshard)
    reshard.add_argument("--seed", type=int, metavar="N", help="shuffle by this seed (default: the order stays)")

    merge = actions.add_parser("merge", help="write one set of several: a split has what their splits of its name have")
    merge.add_argument("folders", metavar="DIR", nargs="+", help="sets, each a split or a folder of splits")
    merge.add_argument("--prefixes", metavar="A,B", help="put these before the keys, one for each set")
    merge.add_argument("--seed", type=int, default=1, metavar="N", help="decides the order (default: 1)")
    add_json(merge)
    merge.set_defaults(command=command("shard_sets", "merge"))
    _add_output(merge)

    sample = _add_action(
        actions, "sample", "write a part of each split, drawn at random", command("shard_sets", "sample")
    )
    _add_output(sample)
    sample.add_argument("--utterances", type=int, metavar="N", help="utterances of each split")
    sample.add_argument("--hours", type=float, metavar="H", help="hours of each split, at most")
    sample.add_argument("--share", type=float, metavar="P", help="share of the utterances of each split, such as 0.1")
    sample.add_argument("--seed", type=int, default=1, metavar="N", help="decides which are drawn (default: 1)")

    filtered = _add_action(
        actions, "filter", "write the utterances that meet all conditions", command("shard_sets", "filter_set")
    )
    _add_output(filtered)
    filtered.add_argument("--min-seconds", type=float, metavar="S", help="it lasts so long at least")
    filtered.add_argument("--max-seconds", type=float, metavar="S", help="it lasts so long at most")
    filtered.add_argument("--min-rate", type=float, metavar="R", help="it has so many characters per second at least")
    filtered.add_argument("--max-rate", type=float, metavar="R", help="it has so many characters per second at most")
    filtered.add_argument("--languages", metavar="A,B", help="its language is one of these")
    filtered.add_argument("--speakers", metavar="A,B", help="its speaker is one of these")
    filtered.add_argument("--without-speakers", metavar="A,B", help="its speaker is none of these")
    filtered.add_argument("--text", metavar="REGEX", help="this matches in its text")
    filtered.add_argument("--without-text", metavar="REGEX", help="this does not match in its text")
    filtered.add_argument("--keys", metavar="FILE", help="this file names it: KEY or SPLIT/KEY a line, or a report")
    filtered.add_argument(
        "--without-keys", metavar="FILE", help="this file does not name it, such as the report of verify --json"
    )
    filtered.add_argument("--kinds", metavar="A,B", help="of a report, only what was found of these kinds counts")


def _add_output(action: argparse.ArgumentParser) -> None:
    action.add_argument("--out", metavar="DIR", required=True, help="folder of the new set, one folder per split")
    action.add_argument("--splits", metavar="A,B", help="only these splits (default: all)")
    action.add_argument(
        "--shard-seconds", type=float, default=600.0, metavar="S", help="audio per shard in seconds (default: 600)"
    )
