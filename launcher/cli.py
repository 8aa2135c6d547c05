"""The `chorus` command.

Exit codes: 0 done; 2 configuration; 3 data; 4 checkpoint; 5 a process was lost or hung; 6 losses or gradients stayed
infinite or undefined; 75 stopped, run the same command again. An error that a user can mend is one paragraph on stderr;
a traceback is a fault of Chorus. Nothing heavy is imported before a command needs it.
"""

import argparse
import importlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

from data.errors import DataError
from data.redaction import RedactingFormatter, redact
from launcher.commands.common_options import add_json, add_set
from launcher.commands.evaluate_options import add_evaluate
from launcher.commands.export_options import add_export
from launcher.commands.job_options import add_jobs
from launcher.commands.pseudo_label_options import add_pseudo_label
from launcher.commands.serve_options import add_serve
from launcher.commands.shards_options import add_shards
from launcher.commands.store_options import add_store_options
from launcher.commands.transcribe_options import add_transcribe
from launcher.commands.watch_options import add_watch
from launcher.errors import (
    CheckpointError,
    ConfigError,
    DistributedError,
    DivergedError,
    Preempted,
    exit_code,
    place_problem,
)
from launcher.plain_text import printable_output
from launcher.processes.stop_request import StopRequest

Command = Callable[[argparse.Namespace], int]
# Quoted: argparse's class takes no parameter when the program runs.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
# What a user can mend.
FORESEEN = (ConfigError, DataError, CheckpointError, DistributedError, DivergedError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks is written as \\uXXXX; Python would end with an error.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    with printable_output():
        return _run_command(list(arguments))


def _run_command(arguments: list[str]) -> int:
    # What libraries and our readers warn of goes to stderr by this handler.
    if logging.lastResort:
        logging.lastResort.setFormatter(RedactingFormatter())
    # Commands that other hosts or a batch job are to repeat need the arguments as they were given.
    namespace = argparse.Namespace(arguments=arguments)
    options = build_parser(arguments).parse_args(arguments, namespace)
    try:
        code = options.command(options)
        # Here, and not when Python ends, an error of what is still in the buffer can be told.
        sys.stdout.flush()
        return code
    except Preempted as stopped:
        command = shlex.join(["chorus", *arguments])
        _print_error(f"{stopped} Run the same command again to go on: {command}")
        return exit_code(stopped)
    except FORESEEN as error:
        _print_error(redact(str(error)))
        return exit_code(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does.
        _discard_output()
        return 0
    except OSError as error:
        problem = place_problem(error)
        if problem is None:
            raise
        _print_error(redact(problem))
        _discard_output()
        return exit_code(ConfigError())


def _print_error(text: str) -> None:
    # The terminal may be gone, which must not change the exit code.
    with suppress(OSError):
        print(f"chorus: {text}", file=sys.stderr, flush=True)


def _discard_output() -> None:
    """Let go nowhere what is still in the buffer: Python would try to write it again at its end, and say so."""
    # Where standard output is no file, as in a test, nothing is in a buffer.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser. The options of `prepare` depend on its corpus and are built only for it."""
    parser = argparse.ArgumentParser(
        prog="chorus",
        description="Train speech recognisers with shared conformer blocks and experts.",
        epilog="A RECIPE is a YAML file or the name of a built-in one; a RUN is the folder of a run.",
    )
    parser.add_argument("--version", action=_PrintVersion, help="print the version, and leave")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    add_jobs(commands, _command, _stoppable_command)

    plan = commands.add_parser("plan", help="show what a recipe would run, its sizes and its memory; starts nothing")
    _add_recipe_options(plan)
    plan.add_argument("--nodes", metavar="N[,N]", help="also what a step would take on so many nodes of GPUs: 1,8,64")
    plan.add_argument("--gpus-per-node", type=int, metavar="G", help="with --nodes: cards of each (default: 8)")
    plan.add_argument(
        "--interconnect",
        metavar="KIND",
        help="with --nodes: nvlink4-ndr (default), nvlink3-hdr, pcie4-100gbit, pcie4-25gbit, pcie4-10gbit, or GB/s "
        "WITHIN:BETWEEN of a card within its node and of a node",
    )
    add_json(plan)
    plan.set_defaults(command=_command("plan", "plan"))

    new = commands.add_parser("new", help="write a recipe of your own, begun from a built-in one")
    new.add_argument("folder", metavar="DIR", help="folder to write recipe.yaml into; the recipe gets its name")
    new.add_argument("--like", metavar="RECIPE", default="base", help="built-in recipe to begin from (default: base)")
    new.add_argument("--manifest", metavar="FILE", help="its corpus: recordings that a manifest lists")
    new.add_argument("--shards", metavar="DIR", help="its corpus: shards that are prepared")
    new.set_defaults(command=_command("new", "new"))

    prepare = commands.add_parser("prepare", help="write a corpus as shards")
    # Corpora take long to import.
    if arguments and arguments[0] == "prepare":
        importlib.import_module("launcher.commands.prepare").add_corpora(prepare)
    prepare.set_defaults(command=_command("prepare", "prepare_shards"))

    add_shards(commands, _command)
    _add_recognition(commands)
    _add_inspection(commands)
    return parser


class _PrintVersion(argparse.Action):
    """Looks the version up where it is asked for alone: it takes longer than all other options."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"chorus {version('chorus-asr')}")
        parser.exit()


def _command(module: str, function: str) -> Command:
    """Return a command that imports its module when it is called."""

    def call(options: argparse.Namespace) -> int:
        command = getattr(importlib.import_module(f"launcher.commands.{module}"), function)
        return command(options)

    return call


def _stoppable_command(module: str, function: str) -> Command:
    """Return a command that takes a signal as a wish to stop from the start, while its module is imported too."""

    def call(options: argparse.Namespace) -> int:
        with StopRequest().installed() as stop:
            # An import of torch takes seconds, in which nothing would look whether a stop was asked for.
            with stop.interrupting():
                command = getattr(importlib.import_module(f"launcher.commands.{module}"), function)
            return command(options, stop)

    return call


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="recipe file, or the name of a built-in recipe")
    parser.add_argument("--run-dir", metavar="DIR", help="run folder (default: runs/NAME)")
    # No defaults here: what is not given is the recipe's, and only what is given overrides it.
    add_set(parser, "change a setting, such as stages.teacher.steps=30")
    parser.add_argument("--processes", metavar="N", help="short for --set cluster.processes=N")
    parser.add_argument("--hostfile", metavar="F", help="short for --set cluster.hostfile=F: `NAME slots=N` lines")
    parser.add_argument(
        "--launcher", metavar="KIND", help="short for --set cluster.launcher=KIND: local, ssh, no_ssh or slurm"
    )


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser("run", help="run a recipe, or go on with it: what is done is not repeated")
    _add_recipe_options(parser)
    add_store_options(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="with --launcher slurm: write the batch script, and do not submit it"
    )
    parser.add_argument(
        "--node-rank", type=int, metavar="I", help="with --launcher no_ssh: this is host I of the hostfile, from 0"
    )
    parser.add_argument(
        "--profile",
        metavar="steps=FIRST:STOP",
        help="profile these training steps of each stage into STAGE/profile/ (Chrome traces, one per process)",
    )
    parser.add_argument(
        "--profile-start",
        action="store_true",
        help="show where the time goes until the first step of each training stage",
    )
    parser.add_argument(
        "--extend",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="go on with a finished or stopped stage under other steps or another optimizer: stages.teacher.steps=9000",
    )
    parser.add_argument(
        "--set-aside",
        action="append",
        default=[],
        metavar="STAGE",
        help="begin this half-trained stage anew under the settings given, and keep its work in STAGE.old-N",
    )
    parser.set_defaults(command=_stoppable_command("run", "run"))


def _add_recognition(commands: Commands) -> None:
    add_evaluate(commands, _stoppable_command)
    add_transcribe(commands, _command)
    add_pseudo_label(commands, _stoppable_command)
    add_serve(commands, _command)

    parser = commands.add_parser("language-model", help="estimate an n-gram model for searches")
    parser.add_argument("source", metavar="RUN|TEXT", help="a run, for its training transcripts, or a text file")
    parser.add_argument("--out", metavar="FILE", required=True, help="ARPA file to write, gzipped if it ends in .gz")
    parser.add_argument("--order", type=int, default=3, metavar="N", help="words of the longest n-grams (default: 3)")
    parser.add_argument("--unit", choices=("word", "token"), default="word", help="what the n-grams are of")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer folder for tokens (default: that of the run)")
    add_json(parser)
    parser.set_defaults(command=_command("language_model", "language_model"))


def _add_inspection(commands: Commands) -> None:
    parser = commands.add_parser("status", help="show how far a run is")
    parser.add_argument("run", metavar="RUN")
    add_json(parser)
    parser.set_defaults(command=_command("status", "status"))

    add_watch(commands, _command, _stoppable_command)
    add_export(commands, _command)

    parser = commands.add_parser("cache-teacher", help="store what a stage's teachers give, for its training to read")
    parser.add_argument("stage", metavar="RUN/STAGE", help="a distill stage whose teachers are finished")
    parser.add_argument("--out", metavar="DIR", help="folder of caches (default: train.teachers beside the shards)")
    parser.add_argument("--verify", action="store_true", help="read what is there, and store anew what is broken")
    add_json(parser)
    parser.set_defaults(command=_stoppable_command("cache_teacher", "cache_teacher"))

    parser = commands.add_parser("report", help="write a run's report.html anew")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--analyse",
        action="store_true",
        help="first look anew at the hardest utterances, and at what experts are chosen for",
    )
    add_json(parser)
    parser.set_defaults(command=_command("report", "report"))

    parser = commands.add_parser("compare", help="set the models of finished runs side by side")
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a finished run, a sweep, or a folder of records; seeds are put together",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        action="append",
        default=[],
        help="page to write, of HTML if it ends in .html, else of Markdown with pictures beside it; repeatable",
    )
    parser.add_argument(
        "--records", metavar="DIR", help="add a record of each training to this folder, from which pages can be written"
    )
    add_json(parser)
    parser.set_defaults(command=_command("compare", "compare"))

    parser = commands.add_parser("sync", help="send to W&B what a run recorded without a server")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--timeout-s", type=float, default=600.0, metavar="S", help="longest time for a stage, in s (default: 600)"
    )
    add_json(parser)
    parser.set_defaults(command=_command("sync", "sync"))

    parser = commands.add_parser("doctor", help="show what this machine can do, or the hosts of a hostfile")
    parser.add_argument(
        "--hostfile", metavar="F", help="examine these hosts, over ssh; exit code 2 if something is wrong"
    )
    parser.add_argument("--run-dir", metavar="DIR", default="runs", help="folder that the hosts share (default: runs)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as of `run`: cluster.ssh_options and others"
    )
    add_json(parser)
    parser.set_defaults(command=_command("doctor", "doctor"))

    parser = commands.add_parser("completion", help="print the script that completes commands in a shell")
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(command=_command("completion", "completion"), build_parser=build_parser)


if __name__ == "__main__":
    sys.exit(main())
