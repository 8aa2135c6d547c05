"""What is checked before anything starts: optimizers of stages still to be trained, splits and batches.

Splits are checked where the shards are there already, else when they have just been written: a misspelt one must not
come to light after days of training.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.manifests.splits import canonical_split
from data.sampling.sampler import BatchesConfig, change_length
from data.shards.index import is_url, read_summary
from data.shards.joined_split import read_split
from launcher.errors import ConfigError
from launcher.recipe import AdaptStage, AnyTrainingStage, EvaluateStage, Recipe, ShardsCorpus
from launcher.recipe.checks import check_optimizer
from launcher.recipe.yaml_io import nearest
from launcher.run_folder import RunFolder, is_folder
from launcher.stages.pipeline import Pipeline


def check_start(recipe: Recipe, run: RunFolder) -> None:
    """Refuse an optimizer that would not train, of a stage that is not trained yet (ConfigError), and splits that are
    not there (ConfigError, DataError)."""
    pipeline = Pipeline(recipe, run)
    for stage in recipe.training_stages():
        # Earlier versions trained with any optimizer, and what is trained may be evaluated.
        if pipeline.record(stage.name).get("status") != "done":
            check_optimizer(stage)
    check_prepared(recipe, run)


def check_prepared(recipe: Recipe, run: RunFolder) -> None:
    """Refuse a split that is not there (ConfigError, DataError), unless the shards are still to be written."""
    pipeline = Pipeline(recipe, run)
    node = pipeline.node("prepare")
    record = pipeline.record(node.name)
    if all(isinstance(corpus, ShardsCorpus) for corpus in recipe.corpora().values()):
        check_splits(recipe, run)
        return

    # Not whether it is done: a stage whose output lacks a split that is wanted never is.
    if record.get("status") != "done" or not recipe.has_split(run, "train"):
        return
    inputs = pipeline.status_of(node).inputs
    if pipeline.matches(node, record, inputs):
        check_splits(recipe, run)


def check_splits(recipe: Recipe, run: RunFolder) -> None:
    """Refuse shards without a split that an evaluation names (ConfigError), or a corpus without train (DataError)."""
    present = recipe.present_folders(run, "train")
    for label, folder in recipe.split_folders(run, "train").items():
        if label in present:
            continue
        names = _split_names(recipe, run, label)
        similar = _split_like("train", names)
        remedy = "Give rows of the corpus the split train, or none."
        if similar is not None:
            remedy = f"Rename {similar} to train."
        raise DataError(
            f"The corpus at {_place(folder)} has no split train, which every training reads. There are: "
            f"{', '.join(names)}. {remedy}"
        )

    names = _all_split_names(recipe, run)
    places = " and ".join(_place(folder) for folder in recipe.split_folders(run, "train").values())
    # Training needs no other split: without dev it does not validate (no_validation).
    for stage in recipe.stages:
        if isinstance(stage, AdaptStage):
            _check_keep_split(recipe, run, stage, names, places)
        if not isinstance(stage, EvaluateStage):
            if stage.average is not None and stage.average.kind == "best" and not recipe.has_split(run, "dev"):
                raise ConfigError(
                    f"stages.{stage.name}.average is of the best checkpoints, and the corpus at {places} has no split "
                    "dev to validate on: none would have an error rate. Give some rows the split dev, or pass --set "
                    f"stages.{stage.name}.average.kind=last."
                )
            continue
        if recipe.has_split(run, stage.split):
            continue
        key = f"stages.{stage.name}.split"
        message = f"{key} is {stage.split!r}, and the corpus at {places} has no such split"
        canonical = canonical_split(stage.split)
        if canonical in names:
            raise ConfigError(f"{message}; here it is called {canonical}. Pass --set {key}={canonical}.")
        raise ConfigError(f"{message}{nearest(stage.split, names)} Pass --set {key}=NAME.")


def _check_keep_split(recipe: Recipe, run: RunFolder, stage: AdaptStage, names: Sequence[str], places: str) -> None:
    """Refuse a split to be kept that is not there, or with no dev to choose checkpoints by beside it (ConfigError)."""
    keep = stage.adapt.keep_split
    if keep is None:
        return
    key = f"stages.{stage.name}.adapt.keep_split"
    if not is_folder(keep) and not recipe.has_split(run, keep):
        raise ConfigError(
            f"{key} is {keep!r}, and the corpus at {places} has no such split{nearest(keep, list(names))} Shards "
            "elsewhere are named with a slash, such as runs/base/corpus/dev."
        )
    if not recipe.has_split(run, "dev"):
        raise ConfigError(
            f"{key} is {keep!r}, and the corpus at {places} has no split dev: checkpoints are chosen by both. Give "
            "some rows the split dev, or leave keep_split out."
        )


def no_validation(recipe: Recipe, run: RunFolder) -> str:
    """A sentence where no stage can validate, for want of a split; empty where one can."""
    if recipe.has_split(run, "dev") or not recipe.training_stages():
        return ""
    similar = _split_like("dev", _all_split_names(recipe, run))
    remedy = "give some rows the split dev"
    if similar is not None:
        remedy = f"rename the split {similar} to dev"
    return f"The corpus has no split dev: nothing is ever validated, whatever validate_every says; {remedy}."


def batches_of_one(recipe: Recipe, run: RunFolder, stage: AnyTrainingStage) -> str:
    """A sentence where every micro-batch of a stage holds one utterance, for its budget is small; else empty."""
    if not recipe.has_split(run, "train"):
        return ""
    batches = recipe.batches_of(stage)
    # At the highest speed utterances are shortest: what does not fit then never does.
    fastest = max(recipe.augment_of(stage).speeds)
    folders = recipe.split_folders(run, "train")
    # An index of millions need not be read where two utterances of a shard's mean length fit.
    means_s = []
    sample_rate_hz = 0
    for folder in folders.values():
        summary = read_summary(folder)
        sample_rate_hz = summary["sample_rate_hz"]
        for shard in summary["shards"]:
            if shard["utterances"]:
                means_s.append(shard["seconds"] / shard["utterances"])
    if not means_s:
        return ""
    if _capacity(batches, min(means_s) * sample_rate_hz, fastest, sample_rate_hz) > 1:
        return ""

    # The two shortest that the sampler deals out fit, or no two do.
    samples = read_split(folders, max_damaged=recipe.cluster.storage.max_quarantined).samples
    lowest = batches.min_utterance_s * sample_rate_hz
    highest = batches.max_utterance_s * sample_rate_hz
    samples = samples[(samples >= lowest) & (samples <= highest)]
    if len(samples) < 2:
        return ""
    if _capacity(batches, samples.min(), fastest, sample_rate_hz) > 1:
        return ""
    shortest_s = samples.min() / sample_rate_hz
    return (
        f"Every micro-batch holds one utterance: batches.seconds is {batches.seconds:g}, and two of the shortest, "
        f"of {shortest_s:.3g} s, do not fit (attention included). Raise batches.seconds to have more."
    )


def corpus_warnings(recipe: Recipe, run: RunFolder) -> Iterator[dict[str, str]]:
    """Yield what `chorus plan` is to warn of, where the shards are there: stage, kind and text."""
    if not recipe.has_split(run, "train"):
        return
    text = no_validation(recipe, run)
    if text:
        yield {"stage": "", "kind": "no_validation", "text": text}
    for stage in recipe.training_stages():
        text = batches_of_one(recipe, run, stage)
        if text:
            yield {"stage": stage.name, "kind": "batches_of_one", "text": text}


def _split_names(recipe: Recipe, run: RunFolder, label: str) -> list[str]:
    """The splits that a corpus has; behind a URL, which cannot be listed, those of the usual names."""
    folder = recipe.split_folders(run, "train")[label]
    names = ["train", "dev", "test"]
    # A folder may lack all of them, and hold others under the names of its corpus.
    if not is_url(folder):
        parent = Path(folder).parent
        names = []
        if parent.is_dir():
            names = sorted(path.name for path in parent.iterdir())
    return [name for name in names if label in recipe.present_folders(run, name)]


def _all_split_names(recipe: Recipe, run: RunFolder) -> list[str]:
    """The splits that any corpus has."""
    names: set[str] = set()
    for label in recipe.corpora():
        names.update(_split_names(recipe, run, label))
    return sorted(names)


def _place(folder: Path | str) -> str:
    """Where the splits of a corpus lie, by that of one."""
    # A string: Path would make one slash of the two of a URL.
    return str(folder).rpartition("/")[0]


def _split_like(split: str, names: Sequence[str]) -> str | None:
    """The first of the names that means a split, such as `training` or `validation`; None when none does."""
    for name in names:
        if canonical_split(name) == split:
            return name
    return None


def _capacity(batches: BatchesConfig, samples: float, speed: float, sample_rate_hz: int) -> int:
    """How many utterances of so many samples fit into a micro-batch when all are played at a speed."""
    length = change_length(np.array([int(samples)], np.int64), speed)
    # A cost of 0 samples could not be divided by.
    length = np.maximum(length, 1)
    return int(batches.capacity(length, sample_rate_hz)[0])
