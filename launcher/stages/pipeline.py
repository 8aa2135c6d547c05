"""The stages of a run, and which of them are done.

A stage is done when its record in state.json says so, its fingerprint is still the same, and its output is
still in place (`Pipeline.status_of`). The fingerprint is a SHA-256 over the stage's own settings and the content of its
inputs: the shards of a split, the tokenizer, another stage's finished model. So a changed setting or input reruns what
depends on it and nothing else. Where a stage runs and how it is followed (cluster, tracking, checkpoints,
validation) is not part of it (see settings.py); the precision of the arithmetic is.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.shard_index import read_summary
from launcher.recipe import AnyTrainingStage, DistillStage, EvaluateStage, Recipe, SelfSupervisedStage
from launcher.recipe.search import search_files
from launcher.run_files import STATE_FORMAT, read_state
from launcher.run_folder import RunFolder, write_json
from launcher.stages.fingerprint import hash_files, hash_folder, hash_listing, hash_value
from launcher.stages.settings import (
    Settings,
    corpus_settings,
    evaluation_settings,
    features_settings,
    tokenizer_settings,
    training_settings,
)

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "features.json")


@dataclass(frozen=True)
class StageNode:
    """A stage of the pipeline: its settings and the names of its inputs, as far as they decide its result.

    An input is "corpus/SPLIT", "features", "tokenizer", the name of a training stage, or the path of a finished model's
    folder or of a search's file.
    """

    name: str
    kind: str
    settings: Settings
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class StageStatus:
    """Whether a stage is done, or why it is to run; fingerprint is None while an input is missing."""

    done: bool
    reason: str
    fingerprint: str | None
    inputs: dict[str, str]


def build_pipeline(recipe: Recipe) -> list[StageNode]:
    """Return the stages of a recipe in order, with the implicit ones: prepare, tokenizer and report.

    Stages that learn without transcripts need the statistics of the features, and no tokenizer.
    """
    corpus_inputs = tuple(key for key, _ in recipe.corpus_paths())
    nodes = [StageNode("prepare", "prepare", Settings.of(corpus_settings, recipe), corpus_inputs)]

    self_supervised = [isinstance(stage, SelfSupervisedStage) for stage in recipe.stages]
    if any(self_supervised):
        nodes.append(StageNode("features", "features", Settings.of(features_settings, recipe), ("corpus/train",)))
    if not all(self_supervised):
        nodes.append(StageNode("tokenizer", "tokenizer", Settings.of(tokenizer_settings, recipe), ("corpus/train",)))

    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            files = [str(path) for _, path in search_files(stage.search)]
            inputs = (f"corpus/{stage.split}", *stage.models, *files)
            nodes.append(StageNode(stage.name, "evaluate", Settings.of(evaluation_settings, stage), inputs))
        else:
            inputs = ("corpus/train", *_training_inputs(stage))
            nodes.append(StageNode(stage.name, stage.kind, Settings.of(training_settings, recipe, stage), inputs))

    every_stage = tuple(stage.name for stage in recipe.stages)
    nodes.append(StageNode("report", "report", Settings({}, {}), every_stage))
    return nodes


def _training_inputs(stage: AnyTrainingStage) -> tuple[str, ...]:
    if isinstance(stage, SelfSupervisedStage):
        return ("features",)
    if isinstance(stage, DistillStage):
        return ("tokenizer", *(teacher.model for teacher in stage.named_teachers))
    if stage.initialize_from:
        return ("tokenizer", stage.initialize_from)
    return ("tokenizer",)


class Pipeline:
    """The stages of a recipe beside the state of a run folder."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe = recipe
        self.run = run
        self.nodes = build_pipeline(recipe)
        state = read_state(run) or {}
        self._records: dict[str, dict[str, Any]] = state.get("stages", {})

    def record(self, name: str) -> dict[str, Any]:
        """Return what state.json says of a stage; empty when it has never been started."""
        return self._records.get(name, {})

    def statuses(self) -> Iterator[tuple[StageNode, StageStatus]]:
        """Yield every stage with its status, without changing anything.

        What comes after a stage that is not done depends on what that stage will give.
        """
        not_done: list[str] = []
        for node in self.nodes:
            status = self.status_of(node)
            upstream = ["prepare" if name.startswith("corpus/") else name for name in node.inputs]
            awaited = [name for name in upstream if name in not_done]
            if status.done and awaited:
                status = StageStatus(False, f"depends on {', '.join(awaited)}", None, status.inputs)
            if not status.done:
                not_done.append(node.name)
            yield node, status

    def later_steps(self, name: str) -> int:
        """Return the steps of the trainings after a stage, which is not done, that are to run."""
        to_run = [node.name for node, status in self.statuses() if not status.done]
        later = to_run[to_run.index(name) + 1 :]
        return sum(stage.steps for stage in self.recipe.training_stages() if stage.name in later)

    def status_of(self, node: StageNode) -> StageStatus:
        """Return whether a stage is done, from its record and from what lies on the disk now."""
        inputs: dict[str, str] = {}
        missing: list[str] = []
        for name in node.inputs:
            input_hash = self._input_hash(name)
            if input_hash is None:
                missing.append(name)
            else:
                inputs[name] = input_hash
        if missing:
            return StageStatus(False, f"waits for {', '.join(missing)}", None, inputs)

        record = self.record(node.name)
        settings = node.settings.comparable_to(record["settings"]) if record else node.settings.values
        fingerprint = hash_value({"settings": settings, "inputs": inputs})
        if not record:
            reason = "not started yet"
        elif record["fingerprint"] != fingerprint:
            reason = f"changed: {', '.join(self._changes(node, inputs).values())}"
        elif record["status"] != "done":
            reason = "not finished yet"
        elif self.output_hash(node) != record["output"]:
            reason = "its output is gone or was changed"
        else:
            return StageStatus(True, "done", fingerprint, inputs)
        return StageStatus(False, reason, fingerprint, inputs)

    def _changes(self, node: StageNode, inputs: dict[str, str]) -> dict[str, str]:
        """Return in words, by key, how settings and inputs differ from those of the record."""
        record = self.record(node.name)
        before = flatten(record["settings"])
        after = flatten(node.settings.comparable_to(record["settings"]))
        changes = {}
        for key in sorted(before.keys() | after.keys()):
            # ... stands for a key that is not there: None is a value.
            if before.get(key, ...) != after.get(key, ...):
                changes[key] = f"{key} {before.get(key, 'unset')} -> {after.get(key, 'unset')}"
        for name in sorted(record["inputs"].keys() | inputs.keys()):
            if record["inputs"].get(name) != inputs.get(name):
                changes[f"input {name}"] = f"input {name}"
        return changes

    def _input_hash(self, name: str) -> str | None:
        """Return a SHA-256 of an input's content, None when it is not there."""
        if name.startswith("corpus/"):
            return self._split_hash(name.removeprefix("corpus/"))
        if name.startswith("corpus."):
            path = dict(self.recipe.corpus_paths())[name]
            if path.is_dir():
                return hash_listing(path)
            return hash_files([path], path.parent)
        if "/" in name:
            path = Path(name)
            if path.is_file():
                return hash_files([path], path.parent)
            return hash_folder(path)
        node = next(node for node in self.nodes if node.name == name)
        return self.output_hash(node)

    def _split_hash(self, split: str) -> str | None:
        if not self.recipe.has_split(self.run, split):
            return None
        summary = read_summary(self.recipe.split_folder(self.run, split))
        return hash_value([shard["sha256"] for shard in summary["shards"]])

    def output_hash(self, node: StageNode) -> str | None:
        """Return a SHA-256 of what a stage has left, None when there is nothing."""
        match node.kind:
            case "prepare":
                splits = {"train"} | {stage.split for stage in self.recipe.stages if isinstance(stage, EvaluateStage)}
                hashes = {split: self._split_hash(split) for split in sorted(splits)}
                return None if None in hashes.values() else hash_value(hashes)
            case "tokenizer":
                # Named one by one: the folder may hold what was derived from them since.
                files = [self.run.tokenizer / name for name in TOKENIZER_FILES]
                root = self.run.path
            case "features":
                files = [self.run.statistics_file]
                root = self.run.path
            case "report":
                files = [self.run.report_file]
                root = self.run.path
            case "evaluate":
                files = [self.run.stage(node.name).evaluation_file]
                root = self.run.stage(node.name).path
            case _:
                return hash_folder(self.run.stage(node.name).model)
        if not all(file.is_file() for file in files):
            return None
        return hash_files(files, root)

    def started(self, node: StageNode, status: StageStatus) -> None:
        """Record that a stage runs."""
        record = self.record(node.name)
        settings = node.settings.comparable_to(record["settings"]) if record else node.settings.values
        self._update_record(
            node,
            status="running",
            fingerprint=status.fingerprint,
            settings=settings,
            inputs=status.inputs,
            started=round(time.time(), 3),
        )

    def matches(self, node: StageNode, record: dict[str, Any], inputs: dict[str, str]) -> bool:
        """Return whether a record is of work under the stage's settings and these inputs."""
        settings = node.settings.comparable_to(record["settings"])
        return record["fingerprint"] == hash_value({"settings": settings, "inputs": inputs})

    def changes(self, node: StageNode, inputs: dict[str, str]) -> dict[str, str]:
        """Return in words, by key, how settings, and those inputs that are there, differ from those of the record."""
        recorded = self.record(node.name)["inputs"]
        # An input that is not there yet cannot be said to differ, unless it is a new one.
        expected = {name: recorded.get(name, "") for name in node.inputs}
        return self._changes(node, expected | inputs)

    def adopt(self, node: StageNode, record: dict[str, Any]) -> None:
        """Record a stage as another record has it: that of work which takes the place of the stage's own."""
        self._records.pop(node.name, None)
        self._update_record(node, **record)

    def ended(self, node: StageNode, outcome: str) -> None:
        """Record how a stage ended: done, stopped or failed."""
        output = self.output_hash(node) if outcome == "done" else None
        self._update_record(node, status=outcome, output=output, ended=round(time.time(), 3))

    def _update_record(self, node: StageNode, **values: Any) -> None:
        self._records[node.name] = {"kind": node.kind, **self.record(node.name), **values}
        stages = {}
        for other in self.nodes:
            if other.name in self._records:
                stages[other.name] = self._records[other.name]
        write_json(self.run.state_file, {"format": STATE_FORMAT, "recipe": self.recipe.name, "stages": stages})


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one of dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        key = f"{prefix}.{name}" if prefix else name
        flat |= flatten(item, key)
    return flat
