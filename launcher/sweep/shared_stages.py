"""What the runs of a sweep have in common is done once: shards, tokenizer, and trainings that no setting of the sweep
touches, such as a teacher's.

It is done in a run of its own. Each run of the sweep gets its results before it starts, with their records, as if it
had made them itself: shards by a link, all else as copies. The pipeline of the run then sees that they are done, by the
same fingerprints as anywhere else.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.files import remove_path
from launcher.errors import ConfigError
from launcher.executor import Executor, claim_folder
from launcher.monitoring.progress import Display
from launcher.processes.stop_request import StopRequest
from launcher.recipe import Recipe, ShardsCorpus
from launcher.run_files import STATE_FORMAT, read_state
from launcher.run_folder import TRAINING_KINDS, RunFolder, write_json, write_lines
from launcher.stages.fingerprint import hash_value
from launcher.stages.pipeline import Pipeline, StageNode, build_pipeline
from launcher.sweep.trials import Trial

PREPARATION_KINDS = ("prepare", "features", "tokenizer")
# Of a stage's folder: what its own processes need alone.
NOT_COPIED = ("checkpoints", "heartbeats", "wandb", "wandb.json", "tensorboard", "stop")


@dataclass
class SharedGroup:
    """Runs that share stages: their places in the list of trials, and the names of these stages."""

    trials: list[int] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)


def group_trials(trials: Sequence[Trial], recipes: Sequence[Recipe]) -> list[SharedGroup]:
    """Put the runs together that prepare alike, and name the stages that all of a group have in common."""
    pipelines = [build_pipeline(recipe) for recipe in recipes]
    groups: dict[str, SharedGroup] = {}
    for place, nodes in enumerate(pipelines):
        preparation = [_identity(node) for node in nodes if node.kind in PREPARATION_KINDS]
        groups.setdefault(hash_value(preparation), SharedGroup()).trials.append(place)
    for group in groups.values():
        points = {trials[place].point_name for place in group.trials}
        shared = []
        for node in pipelines[group.trials[0]]:
            if node.kind in PREPARATION_KINDS:
                shared.append(node.name)
        # One point alone shares its trainings with nobody.
        if len(points) > 1:
            shared += _common_trainings([pipelines[place] for place in group.trials], shared)
        group.stages = shared
    return list(groups.values())


def _identity(node: StageNode) -> list[Any]:
    return [node.name, node.settings.values, list(node.inputs)]


def _common_trainings(pipelines: Sequence[list[StageNode]], preparation: Sequence[str]) -> list[str]:
    """The training stages that are the same in every run that has them, as are those that they learn from.

    Runs of several seeds have stages of other names, NAME-1 and NAME-2, each common to the runs of its seed.
    """
    identities: dict[str, set[str]] = {}
    inputs: dict[str, tuple[str, ...]] = {}
    counts: dict[str, int] = {}
    for nodes in pipelines:
        for node in nodes:
            if node.kind in TRAINING_KINDS:
                identities.setdefault(node.name, set()).add(hash_value(_identity(node)))
                inputs[node.name] = node.inputs
                counts[node.name] = counts.get(node.name, 0) + 1
    common: list[str] = []
    # In the order of the recipe: a stage comes after those that it learns from.
    for name, versions in identities.items():
        sources = [source for source in inputs[name] if source in identities]
        if len(versions) == 1 and counts[name] > 1 and all(source in common for source in sources):
            common.append(name)
    return common


def run_shared(recipe: Recipe, run: RunFolder, stages: Sequence[str], stop: StopRequest, display: Display) -> None:
    """Do what is shared, as far as it is not done.

    ConfigError where it was done, and is no longer what the recipe or the recordings say.
    """
    if run.path.exists():
        claim_folder(recipe, run)
        _refuse_changes(recipe, run, stages)
    executor = Executor(recipe, run, stop, display)
    with run.locked():
        executor.check_half_trained()
        executor.write_recipe()
        executor.run(only=frozenset(stages))


def _refuse_changes(recipe: Recipe, run: RunFolder, stages: Sequence[str]) -> None:
    for node, status in Pipeline(recipe, run).statuses():
        record = Pipeline(recipe, run).record(node.name)
        if node.name in stages and record.get("status") == "done" and not status.done:
            raise ConfigError(
                f"What the runs of the sweep share changed since it began: stage {node.name} in {run.path} "
                f"{status.reason}. Its runs would not be comparable. Put back what changed, or begin a new sweep with "
                "--run-dir."
            )


def hand_over(recipe: Recipe, shared: RunFolder, run: RunFolder, stages: Sequence[str]) -> None:
    """Give a run that has not begun the shared stages that it has too, with their records; whole or not at all."""
    if run.state_file.exists():
        return
    # What a kill left of it.
    remove_path(run.path)
    run.path.mkdir(parents=True)
    state = read_state(shared)
    assert state is not None
    nodes = {node.name: node for node in build_pipeline(recipe)}
    records = {}
    for name in stages:
        if name not in nodes:
            continue
        records[name] = state["stages"][name]
        if nodes[name].kind in TRAINING_KINDS:
            # A finished stage is its model; checkpoints would only cost room.
            shutil.copytree(shared.stage(name).path, run.stage(name).path, ignore=shutil.ignore_patterns(*NOT_COPIED))
    prepares = any(not isinstance(corpus, ShardsCorpus) for corpus in recipe.corpora().values())
    if prepares:
        # Relative: a sweep may be moved as a whole.
        run.corpus.symlink_to(os.path.relpath(shared.corpus, run.path))
    if shared.tokenizer.is_dir() and "tokenizer" in records:
        shutil.copytree(shared.tokenizer, run.tokenizer)
    if shared.statistics_file.is_file() and "features" in records:
        shutil.copy(shared.statistics_file, run.statistics_file)
    events = [event for event in shared.events() if event.get("stage") in records]
    write_lines(run.events_file, events)
    # Last: a run without it has not begun.
    write_json(run.state_file, {"format": STATE_FORMAT, "recipe": recipe.name, "stages": records})
