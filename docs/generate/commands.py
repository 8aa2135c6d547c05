"""The page of commands, from the parsers that read them."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from docs.generate.markdown import cell, code, table
from launcher.cli import build_parser

INTRODUCTION = """\
# Commands

This page lists every command with an example and its options, for whoever looks one up. It is written from the code by
`make reference`; `chorus COMMAND --help` says the same. A RECIPE is a YAML file or the name of a built-in one; a RUN is
the folder of a run. Exit codes are told in [reliability](../reliability.md).
"""

# By the words of the command; `tests/docs` parses each of them.
EXAMPLES = {
    "run": "chorus run mini --set stages.teacher.steps=30",
    "submit": "chorus submit mini --to slurm --nodes 2 --dry-run",
    "node": "chorus node mini --run-dir /shared/runs/mini",
    "jobs": "chorus jobs --on slurm",
    "logs": "chorus logs 4711 --on slurm --follow",
    "stop": "chorus stop 4711 --on slurm",
    "plan": "chorus plan librispeech-100",
    "new": "chorus new mine --manifest corpus/manifest.jsonl",
    "prepare": "chorus prepare folder --manifest corpus/manifest.jsonl --out shards/mine",
    "evaluate": "chorus evaluate runs/mini/student talks.jsonl --out judged",
    "transcribe": "chorus transcribe runs/mini/student talk.wav",
    "pseudo-label": "chorus pseudo-label shards/unlabelled --model runs/mini/teacher --out shards/labelled",
    "serve": "chorus serve runs/mini/student --port 8000",
    "language-model": "chorus language-model runs/mini --order 6 --unit token --out lm.arpa",
    "status": "chorus status runs/mini",
    "export": "chorus export runs/mini/student --format onnx --out onnx",
    "publish": "chorus publish runs/mini/student --out published",
    "cache-teacher": "chorus cache-teacher runs/mine/student",
    "models": "chorus models promote runs/mini/student production",
    "board": "chorus board runs",
    "sweep": "chorus sweep mini --over stages.student.distill.hidden.weight=0.1,0.3,1 --seeds 3",
    "report": "chorus report runs/mini",
    "compare": "chorus compare runs/mini runs/mine --out results.md",
    "sync": "chorus sync runs/mini",
    "doctor": "chorus doctor --hostfile hosts.txt",
    "completion": "chorus completion bash",
}


@dataclass(frozen=True)
class Command:
    """A command: its words, what it is for, its parser."""

    words: str
    purpose: str
    parser: argparse.ArgumentParser


def commands_page() -> str:
    """Return the page, as Markdown."""
    lines = [INTRODUCTION]
    for command in all_commands():
        positionals = [action for action in command.parser._actions if _is_positional(action)]
        usage = " ".join(["chorus", command.words, *(_value(action) for action in positionals)])
        lines += [f"## chorus {command.words}", "", f"{command.purpose[:1].upper()}{command.purpose[1:]}.", ""]
        lines += ["```", usage, "```", ""]
        if command.words in EXAMPLES:
            lines += [f"Such as `{EXAMPLES[command.words]}`.", ""]
        rows = []
        for action in command.parser._actions:
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
                rows.append((code(_names(action)), cell(_meaning(action))))
        if rows:
            lines += table(("argument", "meaning"), rows)
    return "\n".join(lines).rstrip() + "\n"


def all_commands() -> list[Command]:
    """Return every command, those of a command behind it."""
    # The corpora of `prepare` are parsers only where it is asked for.
    return list(_commands(build_parser(["prepare"]), ""))


def _commands(parser: argparse.ArgumentParser, words: str) -> Iterator[Command]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        purposes = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, command in action.choices.items():
            inner = f"{words} {name}".strip()
            yield Command(inner, purposes.get(name, ""), command)
            yield from _commands(command, inner)


def _is_positional(action: argparse.Action) -> bool:
    return not action.option_strings and not isinstance(action, argparse._SubParsersAction)


def _value(action: argparse.Action) -> str:
    """Return how the value of an argument is written in the help."""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.metavar is not None:
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(str(choice) for choice in action.choices) + "}"
    return action.dest.upper()


def _names(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    if not names:
        return _value(action)
    if action.nargs == 0:
        return names
    return f"{names} {_value(action)}"


def _meaning(action: argparse.Action) -> str:
    # Help may name its own default.
    return (action.help or "") % {"default": action.default, "prog": "chorus"}
