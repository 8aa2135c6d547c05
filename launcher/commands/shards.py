"""`chorus shards verify` and `chorus shards stats`: a look at shards."""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.augment import AugmentConfig
from data.errors import DataError
from data.features import FeaturesConfig
from data.sampler import BatchesConfig, BatchSampler
from data.sampler_statistics import measure_sampling
from data.shard_check import stats, verify
from data.shards import ShardIndex, find_splits, read_index
from launcher.commands.prepare import in_flags
from launcher.errors import ConfigError, exit_code
from launcher.recipe import validate
from model.layers.subsampling import SubsamplingConfig, output_length

# Settings of batches that `chorus shards stats` takes.
BATCHES_OPTIONS = ("lanes", "seconds", "pool_shards")


def verify_shards(options: argparse.Namespace) -> int:
    problems = {}
    for folder in find_splits(Path(options.folder)).values():
        problems[str(folder)] = verify(folder)
    is_intact = not any(problems.values())

    if options.json:
        report = {"intact": is_intact, "problems": problems}
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        for folder, folder_problems in problems.items():
            verdict = "intact"
            if folder_problems:
                verdict = f"{len(folder_problems)} problems"
            print(f"{folder}: {verdict}")
            for problem in folder_problems:
                print(f"  {problem}")
    if is_intact:
        return 0
    # As a run ends that meets broken data.
    return exit_code(DataError())


def stats_shards(options: argparse.Namespace) -> int:
    values = {}
    for key in BATCHES_OPTIONS:
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    try:
        batches = validate(BatchesConfig, values, "chorus shards stats")
    except ConfigError as error:
        raise ConfigError(in_flags(str(error), BatchesConfig)) from None

    statistics = {}
    splits = find_splits(Path(options.folder).absolute())
    for name, folder in splits.items():
        statistics[name] = {**stats(folder), "plan": _sampling(read_index(folder), batches)}
    if options.json:
        print(json.dumps(statistics, ensure_ascii=False, indent=2))
    else:
        print(yaml.safe_dump(statistics, allow_unicode=True, sort_keys=False, width=110), end="")
    return 0


def _sampling(index: ShardIndex, batches: BatchesConfig) -> dict[str, Any]:
    """How a split would be sampled, with a default recipe's speeds and frames and a token per character."""
    features = FeaturesConfig(sample_rate_hz=index.sample_rate_hz)
    factor = SubsamplingConfig().factor

    # Between two equal tokens CTC needs a blank: a frame more for every repeat.
    min_frames = index.text_length.astype(np.int32)
    for position, text in enumerate(index.transcripts()):
        for character, following in pairwise(text):
            min_frames[position] += character == following
    try:
        sampler = BatchSampler(
            index.shard,
            index.samples,
            index.text_length,
            min_frames,
            batches,
            # Any will do: it draws the order and the speeds, which hardly move these figures.
            seed=1,
            sample_rate_hz=index.sample_rate_hz,
            speeds=AugmentConfig().speeds,
            encoder_frames=lambda samples: output_length(features.num_frames(samples), factor),
        )
    except DataError as error:
        return {"refused": str(error)}
    settings = {key: getattr(batches, key) for key in BATCHES_OPTIONS}
    return {**settings, **measure_sampling(sampler).as_dict()}
