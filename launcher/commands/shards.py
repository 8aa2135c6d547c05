"""`chorus shards verify` and `chorus shards stats`: a look at shards."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from data.augmentation import AugmentConfig
from data.errors import DataError
from data.features import FeaturesConfig
from data.sampling.sampler import BatchesConfig, BatchSampler
from data.sampling.statistics import measure_sampling
from data.shard_tools.findings import BROKEN, Finding, is_broken
from data.shard_tools.statistics import stats
from data.shard_tools.text_checks import EncoderFrames, character_frames
from data.shard_tools.verification import verify
from data.shards.index import local_folder, read_summary
from data.shards.writer import ShardIndex, find_splits, read_index
from data.text.tokenizer import Tokenizer, token_lengths
from launcher.commands.prepare import flag, in_flags
from launcher.errors import ConfigError, exit_code
from launcher.monitoring.progress import open_display
from launcher.planning.mixtures import plan_mixture
from launcher.processes.worker_command import num_cores
from launcher.recipe import MixtureCorpus, check_inputs, load_recipe, validate
from launcher.run_folder import RunFolder
from model.layers.subsampling import SubsamplingConfig, output_length

# Settings of batches that `chorus shards stats` takes.
BATCHES_OPTIONS = ("lanes", "seconds", "pool_shards")
# Cases of a finding that are printed; --json has all.
SHOWN_ITEMS = 10


def verify_shards(options: argparse.Namespace) -> int:
    folder = local_folder(options.folder)
    splits = find_splits(folder.absolute())
    # Shown as they were given.
    places = dict(zip(splits, find_splits(folder).values(), strict=True))
    fewest_frames = character_frames
    if options.tokenizer is not None:
        tokenizer = Tokenizer.load(Path(options.tokenizer))
        fewest_frames = partial(_token_frames, tokenizer)

    display = open_display(sys.stderr)
    display.begin("verify", 1)
    try:
        findings = verify(
            splits,
            encoder_frames=_encoder_frames(splits),
            fewest_frames=fewest_frames,
            held_out_speakers=options.held_out_speakers,
            workers=num_cores(),
            on_progress=lambda split, done, total: display.count(f"utterances of {split}", done, total),
        )
    finally:
        display.end()

    if options.json:
        print(json.dumps(_findings_as_json(places, findings), ensure_ascii=False, indent=2))
    else:
        _print_findings(places, findings)
    if is_broken(findings):
        # As a run ends that meets broken data.
        return exit_code(DataError())
    return 0


def _token_frames(tokenizer: Tokenizer, texts: Sequence[str]) -> npt.NDArray[np.int32]:
    _, min_frames = token_lengths(texts, tokenizer)
    return min_frames


def _encoder_frames(splits: Mapping[str, Path]) -> EncoderFrames:
    """Frames of a default recipe's encoder, at the rate of these splits."""
    sample_rate_hz = FeaturesConfig().sample_rate_hz
    for folder in splits.values():
        # One whose records are broken is named by whoever reads all of it.
        with suppress(DataError):
            sample_rate_hz = read_summary(folder)["sample_rate_hz"]
    features = FeaturesConfig(sample_rate_hz=sample_rate_hz)
    return lambda samples: output_length(features.num_frames(samples), SubsamplingConfig().factor)


def _findings_as_json(places: Mapping[str, Path], findings: Sequence[Finding]) -> dict[str, Any]:
    problems: dict[str, list[str]] = {str(folder): [] for folder in places.values()}
    listed = []
    for finding in findings:
        items = []
        for item in finding.items:
            items.append({"keys": list(item.keys), "detail": item.detail})
            if finding.severity == BROKEN:
                problems[str(places[finding.split])].append(item.detail)
        listed.append(
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "split": finding.split,
                "cases": len(finding.items),
                "utterances": finding.num_utterances,
                "meaning": finding.meaning,
                "items": items,
            }
        )
    # `problems` is what earlier versions had: the sentences about broken data alone.
    return {"intact": not is_broken(findings), "problems": problems, "findings": listed}


def _print_findings(places: Mapping[str, Path], findings: Sequence[Finding]) -> None:
    """Print what was found, the worst first, and last a verdict for each split."""
    for finding in sorted(findings, key=lambda finding: finding.severity != BROKEN):
        print(
            f"{finding.severity}: {finding.kind} in {finding.split}, {len(finding.items)} cases, "
            f"{finding.num_utterances} utterances: {finding.meaning}"
        )
        for item in finding.items[:SHOWN_ITEMS]:
            print(f"  {item.detail}")
        if len(finding.items) > SHOWN_ITEMS:
            print(f"  and {len(finding.items) - SHOWN_ITEMS} more, all of them with --json")
    for name, folder in places.items():
        broken = sum(len(one.items) for one in findings if one.split == name and one.severity == BROKEN)
        if broken:
            print(f"{folder}: {broken} problems")
        else:
            print(f"{folder}: intact")


def stats_shards(options: argparse.Namespace) -> int:
    values = {}
    for key in BATCHES_OPTIONS:
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    try:
        batches = validate(BatchesConfig, values, "chorus shards stats")
    except ConfigError as error:
        raise ConfigError(in_flags(str(error), BatchesConfig)) from None

    folder = local_folder(options.folder)
    if folder.is_file():
        return _mixture_stats(options)
    statistics = {}
    samplers: dict[str, BatchSampler | str] = {}
    splits = find_splits(folder.absolute())
    for name, place in splits.items():
        sampler = _open_sampler(read_index(place), batches)
        samplers[name] = sampler
        statistics[name] = {**stats(place), "plan": _describe_plan(sampler, batches)}
    if options.html is not None:
        settings = ", ".join(f"batches.{key} {getattr(batches, key):g}" for key in BATCHES_OPTIONS)
        # It draws with matplotlib, which whoever only wants the figures should not wait for.
        from launcher.shard_page.page import write_page

        write_page(Path(options.html), folder.absolute(), splits, samplers, settings)
    if options.json:
        print(json.dumps(statistics, ensure_ascii=False, indent=2))
    else:
        print(yaml.safe_dump(statistics, allow_unicode=True, sort_keys=False, width=110), end="")
    return 0


def _mixture_stats(options: argparse.Namespace) -> int:
    """Print what each training of a recipe reads of each corpus of its mixture.

    ConfigError for options that only shards have.
    """
    for name in (*BATCHES_OPTIONS, "html"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"{flag(name)} is given with the recipe {options.folder}, whose own batches say how a mixture is read. "
                "Leave it out, or name a folder of shards."
            )
    recipe = load_recipe(options.folder)
    if not isinstance(recipe.corpus, MixtureCorpus):
        raise ConfigError(
            f"The recipe {options.folder} has one corpus and no mixture (corpus.mix). Name the folder of its shards "
            "instead."
        )
    check_inputs(recipe)
    run = RunFolder(Path(f"runs/{recipe.name}"))
    statistics = {stage.name: plan_mixture(recipe, run, stage) for stage in recipe.training_stages()}
    if options.json:
        print(json.dumps(statistics, ensure_ascii=False, indent=2))
    else:
        print(yaml.safe_dump(statistics, allow_unicode=True, sort_keys=False, width=110), end="")
    return 0


def _open_sampler(index: ShardIndex, batches: BatchesConfig) -> BatchSampler | str:
    """What a run would read a split with, at a default recipe's speeds and frames and a token per character; or why it
    could not."""
    features = FeaturesConfig(sample_rate_hz=index.sample_rate_hz)
    factor = SubsamplingConfig().factor

    min_frames = character_frames(list(index.transcripts()))
    try:
        return BatchSampler(
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
        return str(error)


def _describe_plan(sampler: BatchSampler | str, batches: BatchesConfig) -> dict[str, Any]:
    if isinstance(sampler, str):
        return {"refused": sampler}
    settings = {key: getattr(batches, key) for key in BATCHES_OPTIONS}
    return {**settings, **measure_sampling(sampler).as_dict()}
