"""`chorus prepare` and `chorus shards`: corpora to shards, and a look at shards."""

import argparse
import json
import operator
import sys
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from data.augment import AugmentConfig
from data.corpora import CORPORA, prepare
from data.errors import DataError
from data.features import FeaturesConfig
from data.sampler import BatchesConfig, BatchSampler
from data.sampler_statistics import measure_sampling
from data.shard_check import stats, verify
from data.shards import ShardIndex, find_splits, read_index
from launcher.errors import ConfigError
from launcher.monitoring.progress import open_display
from launcher.processes.worker_command import num_cores
from launcher.recipe import explain
from model.layers.subsampling import SubsamplingConfig, output_length

# Settings of batches that `chorus shards stats` takes.
PLAN_OPTIONS = ("lanes", "seconds", "pool_shards")


def add_corpora(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand per corpus, with an option per field of its configuration."""
    corpora = parser.add_subparsers(metavar="CORPUS", required=True, dest="corpus")
    for name, corpus in CORPORA.items():
        option = corpora.add_parser(name, help=(corpus.config.__doc__ or "").strip().split("\n")[0])
        option.add_argument("--out", required=True, metavar="DIR", help="folder for the shards, one folder per split")
        option.add_argument("--seed", type=int, default=1, help="decides the order of the shards (default: 1)")
        option.add_argument("--sample-rate-hz", type=int, default=16000, help="rate of the shards (default: 16000)")
        option.add_argument("--replace", action="store_true", help="replace other shards that lie in DIR")
        option.add_argument("--json", action="store_true", help="print JSON")
        for key, field in corpus.config.model_fields.items():
            if key != "name":
                option.add_argument(_flag(key), dest=f"corpus.{key}", metavar="VALUE", help=_help(field))


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _help(field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"default: {field.get_default()}"
    return f"{field.description} ({default})".replace("%", "%%")


def _configuration(options: argparse.Namespace) -> Any:
    """Return the corpus configuration that the options give; ConfigError when they give none."""
    config_type = CORPORA[options.corpus].config
    given = {
        key: _value(text, field)
        for key, field in config_type.model_fields.items()
        if (text := getattr(options, f"corpus.{key}", None)) is not None
    }
    try:
        return config_type.model_validate(given)
    except ValidationError as error:
        message = explain(error, config_type, given, f"chorus prepare {options.corpus}")
        raise ConfigError(_in_flags(message, config_type)) from None


def prepare_shards(options: argparse.Namespace) -> int:
    config = _configuration(options)
    display = open_display(sys.stderr)
    display.begin(f"prepare {options.corpus}", 1)
    try:
        report = prepare(
            config,
            Path(options.out),
            seed=options.seed,
            sample_rate_hz=options.sample_rate_hz,
            workers=num_cores(),
            replace=options.replace,
            on_progress=lambda split, done, total: display.count(f"utterances of {split}", done, total),
        )
    finally:
        display.end()
    splits = {
        name: {"utterances": split.utterances, "hours": split.seconds / 3600, "shards": split.shards}
        for name, split in report.splits.items()
    }
    if options.json:
        print(json.dumps({"folder": str(report.folder), "splits": splits, "rejected": len(report.rejected)}, indent=2))
        return 0
    for name, split in splits.items():
        print(f"{name}: {split['utterances']} utterances, {split['hours']:.2f} h in {split['shards']} shards")
    if report.rejected:
        print(f"{len(report.rejected)} rows were left out; {report.folder / 'rejected.jsonl'} says why")
    return 0


def _value(text: str, field: FieldInfo) -> Any:
    """Read an option as YAML; several values are given as a,b,c."""
    if get_origin(field.annotation) is tuple and not text.startswith("["):
        return [yaml.safe_load(part) for part in text.split(",")]
    return text if field.annotation in (str, Path) else yaml.safe_load(text)


def _in_flags(message: str, config_type: Any) -> str:
    """Name the fields of a configuration as the options that set them."""
    for key in config_type.model_fields:
        message = message.replace(f"--set {key}=VALUE", f"{_flag(key)} VALUE")
    return message.replace("Add it to the recipe or pass", "Pass")


def verify_shards(options: argparse.Namespace) -> int:
    problems = {str(folder): verify(folder) for folder in find_splits(Path(options.folder)).values()}
    if options.json:
        print(json.dumps({"intact": not any(problems.values()), "problems": problems}, ensure_ascii=False, indent=2))
    for split, found in problems.items():
        if not options.json:
            print(f"{split}: {'intact' if not found else f'{len(found)} problems'}")
            for problem in found:
                print(f"  {problem}")
    return 3 if any(problems.values()) else 0


def stats_shards(options: argparse.Namespace) -> int:
    given = {key: value for key in PLAN_OPTIONS if (value := getattr(options, key)) is not None}
    try:
        batches = BatchesConfig.model_validate(given)
    except ValidationError as error:
        message = explain(error, BatchesConfig, given, "chorus shards stats")
        raise ConfigError(_in_flags(message, BatchesConfig)) from None
    folders = find_splits(Path(options.folder).absolute())
    found = {name: {**stats(folder), "plan": _plan(read_index(folder), batches)} for name, folder in folders.items()}
    if options.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        print(yaml.safe_dump(found, allow_unicode=True, sort_keys=False, width=110), end="")
    return 0


def _plan(index: ShardIndex, batches: BatchesConfig) -> dict[str, Any]:
    """What a plan would make of a split, with a default recipe's speeds and frames and a token per character."""
    repeats = (sum(map(operator.eq, text, text[1:])) for text in index.transcripts())
    features, factor = FeaturesConfig(sample_rate_hz=index.sample_rate_hz), SubsamplingConfig().factor
    try:
        plan = BatchSampler(
            index.shard,
            index.samples,
            index.text_length,
            index.text_length + np.fromiter(repeats, np.int32, len(index)),
            batches,
            seed=1,
            sample_rate_hz=index.sample_rate_hz,
            speeds=AugmentConfig().speeds,
            encoder_frames=lambda samples: output_length(features.num_frames(samples), factor),
        )
    except DataError as error:
        return {"refused": str(error)}
    return {**{key: getattr(batches, key) for key in PLAN_OPTIONS}, **measure_sampling(plan).as_dict()}
