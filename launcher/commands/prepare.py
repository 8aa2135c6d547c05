"""`chorus prepare`: a corpus, of which each has options of its own, as shards."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, get_origin

from pydantic.fields import FieldInfo

from data.corpora import CORPORA, PrepareReport, prepare
from data.corpora.rejections import count_reasons
from data.errors import DataError
from launcher.commands.common_options import add_json
from launcher.errors import ConfigError
from launcher.monitoring.progress import open_display
from launcher.processes.worker_command import num_cores
from launcher.recipe import validate
from launcher.recipe.yaml_io import parse_value

# Each is a thread that holds a decoded utterance.
MAX_JOBS = 1024


def add_corpora(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand per corpus, with an option per field of its configuration."""
    corpora = parser.add_subparsers(metavar="CORPUS", required=True, dest="corpus")
    for name, corpus in CORPORA.items():
        documentation = corpus.config.__doc__ or ""
        command = corpora.add_parser(name, help=documentation.strip().split("\n")[0])
        command.add_argument("--out", required=True, metavar="DIR", help="folder for the shards, one folder per split")
        command.add_argument("--seed", type=int, default=1, help="decides the order of the shards (default: 1)")
        command.add_argument("--sample-rate-hz", type=int, default=16000, help="rate of the shards (default: 16000)")
        command.add_argument(
            "--jobs",
            type=_num_jobs,
            metavar="N",
            help="recordings decoded at a time, which does not change the shards (default: as many as cores)",
        )
        command.add_argument("--replace", action="store_true", help="replace other shards that lie in DIR")
        add_json(command)
        for key, field in corpus.config.model_fields.items():
            if key != "name":
                default = f"default: {field.get_default()}"
                if field.is_required():
                    default = "required"
                # Of several names, or of a text.
                elif field.get_default() in ((), ""):
                    default = "default: none"
                # argparse formats help texts with %.
                description = f"{field.description} ({default})".replace("%", "%%")
                command.add_argument(flag(key), dest=f"corpus.{key}", metavar="VALUE", help=description)


def prepare_shards(options: argparse.Namespace) -> int:
    config_type = CORPORA[options.corpus].config
    values = {}
    for key, field in config_type.model_fields.items():
        text = getattr(options, f"corpus.{key}", None)
        if text is not None:
            values[key] = _parse(text, field, flag(key))
    try:
        config = validate(config_type, values, f"chorus prepare {options.corpus}")
    except ConfigError as error:
        raise ConfigError(in_flags(str(error), config_type)) from None

    display = open_display(sys.stderr)
    display.begin(f"prepare {options.corpus}", 1)
    try:
        report = prepare(
            config,
            Path(options.out),
            seed=options.seed,
            sample_rate_hz=options.sample_rate_hz,
            workers=options.jobs or num_cores(),
            replace=options.replace,
            on_progress=lambda split, done, total: display.count(f"utterances of {split}", done, total),
        )
    except DataError as error:
        raise DataError(in_flags(str(error), config_type)) from error
    finally:
        display.end()

    if options.json:
        print(json.dumps(_as_json(report), ensure_ascii=False, indent=2))
        return 0
    for name, split in report.splits.items():
        print(f"{name}: {split.utterances} utterances, {split.seconds / 3600:.2f} h in {split.shards} shards")
    print(report.account())
    if report.rejected:
        print(f"{report.folder / 'rejected.jsonl'} says why of each rejected row")
    return 0


def _as_json(report: PrepareReport) -> dict[str, Any]:
    splits = {}
    for name, split in report.splits.items():
        splits[name] = {
            "utterances": split.utterances,
            "hours": split.seconds / 3600,
            "shards": split.shards,
        }
    reasons = []
    for reason in count_reasons(report.rejected):
        first = {"line": reason.first.line, "reason": reason.first.reason}
        reasons.append({"kind": reason.kind, "rows": reason.count, "first": first})
    return {
        "folder": str(report.folder),
        "splits": splits,
        "rows": report.rows,
        "used": report.used,
        "rejected": len(report.rejected),
        "reasons": reasons,
    }


def _parse(text: str, field: FieldInfo, option: str) -> Any:
    """Read an option as YAML; several values are given as a,b,c."""
    source = f"The value of {option}"
    if get_origin(field.annotation) is tuple and not text.startswith("["):
        return [parse_value(part, source) for part in text.split(",")]
    if field.annotation in (str, Path):
        return text
    return parse_value(text, source)


def _num_jobs(text: str) -> int:
    """The number of jobs that an option says; argparse makes a message of the error."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_JOBS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of jobs; give one from 1 to {MAX_JOBS}")
    return int(text)


def flag(key: str) -> str:
    """The option that sets a field."""
    return f"--{key.replace('_', '-')}"


def in_flags(message: str, config_type: Any) -> str:
    """A message about a configuration with its fields named as the options that set them."""
    for key in config_type.model_fields:
        message = message.replace(f"--set {key}=VALUE", f"{flag(key)} VALUE")
        # As the corpus is configured in a recipe.
        message = re.sub(rf"\bcorpus\.{key}\b", flag(key), message)
    return message.replace("Add it to the recipe or pass", "Pass")
