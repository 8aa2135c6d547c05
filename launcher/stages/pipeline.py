"""The stages of a run, and which of them are done.

A stage is done when its record in state.json says so, its fingerprint is still the same, and its output is
still in place. The fingerprint is a SHA-256 over the stage's own settings and the content of its inputs: the
shards of a split, the tokenizer, another stage's finished model. So a changed setting or input reruns what
depends on it and nothing else. Where a stage runs and how it is followed (cluster, tracking, checkpoints,
validation) is not part of it (see stage_settings); the precision of the arithmetic is.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.shard_index import read_summary
from launcher.recipe import AnyTrainingStage, DistillStage, EvaluateStage, Recipe, SelfSupervisedStage
from launcher.recipe.search import search_files
from launcher.run_folder import RunFolder, read_json, write_json
from launcher.stages.fingerprint import _hash_listing, hash_files, hash_of
from launcher.stages.settings import (
    Settings,
    corpus_settings,
    evaluation_settings,
    features_settings,
    tokenizer_settings,
    training_settings,
)

STATE_FORMAT = 1
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
    corpus = tuple(key for key, _ in recipe.corpus_paths())
    nodes = [StageNode("prepare", "prepare", Settings.of(corpus_settings, recipe), corpus)]
    if any(isinstance(stage, SelfSupervisedStage) for stage in recipe.stages):
        nodes.append(StageNode("features", "features", Settings.of(features_settings, recipe), ("corpus/train",)))
    if not all(isinstance(stage, SelfSupervisedStage) for stage in recipe.stages):
        nodes.append(StageNode("tokenizer", "tokenizer", Settings.of(tokenizer_settings, recipe), ("corpus/train",)))
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            files = [str(path) for _, path in search_files(stage.search)]
            inputs = (f"corpus/{stage.split}", *stage.models, *files)
            nodes.append(StageNode(stage.name, "evaluate", Settings.of(evaluation_settings, stage), inputs))
        else:
            inputs = ("corpus/train", *_training_inputs(stage))
            nodes.append(StageNode(stage.name, stage.kind, Settings.of(training_settings, recipe, stage), inputs))
    return [*nodes, StageNode("report", "report", Settings({}, {}), tuple(stage.name for stage in recipe.stages))]


def _training_inputs(stage: AnyTrainingStage) -> tuple[str, ...]:
    if isinstance(stage, SelfSupervisedStage):
        return ("features",)
    if isinstance(stage, DistillStage):
        return ("tokenizer", *(teacher.model for teacher in stage.named_teachers))
    return ("tokenizer", stage.initialize_from) if stage.initialize_from else ("tokenizer",)


class Pipeline:
    """The stages of a recipe beside the state of a run folder."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe, self.run = recipe, run
        self.nodes = build_pipeline(recipe)
        state = read_json(run.state_file) or {}
        self._records: dict[str, dict[str, Any]] = state.get("stages", {})

    def record(self, name: str) -> dict[str, Any]:
        """Return what state.json says of a stage; empty when it has never been started."""
        return self._records.get(name, {})

    def statuses(self) -> Iterator[tuple[StageNode, StageStatus]]:
        """Yield every stage with its status, without changing anything.

        What comes after a stage that is not done depends on what that stage will give.
        """
        awaited: list[str] = []
        for node in self.nodes:
            stage_status = self.status_of(node)
            upstream = [name for name in self._upstream(node) if name in awaited]
            if stage_status.done and upstream:
                stage_status = StageStatus(False, f"depends on {', '.join(upstream)}", None, stage_status.inputs)
            if not stage_status.done:
                awaited.append(node.name)
            yield node, stage_status

    def later_steps(self, name: str) -> int:
        """Return the steps of the trainings after a stage, which is not done, that are to run."""
        to_run = [node.name for node, stage_status in self.statuses() if not stage_status.done]
        later = to_run[to_run.index(name) + 1 :]
        return sum(stage.steps for stage in self.recipe.training_stages() if stage.name in later)

    def _upstream(self, node: StageNode) -> list[str]:
        return ["prepare" if name.startswith("corpus/") else name for name in node.inputs]

    def status_of(self, node: StageNode) -> StageStatus:
        """Return whether a stage is done, from its record and from what lies on the disk now."""
        found = {name: self._input_hash(name) for name in node.inputs}
        inputs = {name: value for name, value in found.items() if value is not None}
        missing = [name for name, value in found.items() if value is None]
        if missing:
            return StageStatus(False, f"waits for {', '.join(missing)}", None, inputs)
        record = self.record(node.name)
        settings = node.settings.beside(record["settings"]) if record else node.settings.values
        fingerprint = hash_of({"settings": settings, "inputs": inputs})
        if not record:
            reason = "not started yet"
        elif record["fingerprint"] != fingerprint:
            reason = f"changed: {self._difference(node, inputs)}"
        elif record["status"] != "done":
            reason = "not finished yet"
        elif self.output_hash(node) != record["output"]:
            reason = "its output is gone or was changed"
        else:
            return StageStatus(True, "done", fingerprint, inputs)
        return StageStatus(False, reason, fingerprint, inputs)

    def _difference(self, node: StageNode, inputs: dict[str, str]) -> str:
        """Return in words how settings and inputs differ from those of the record."""
        record = self.record(node.name)
        before, after = flatten(record["settings"]), flatten(node.settings.beside(record["settings"]))
        settings = [
            f"{key} {before.get(key, 'unset')} -> {after.get(key, 'unset')}"
            for key in sorted(before.keys() | after.keys())
            if before.get(key, ...) != after.get(key, ...)
        ]
        changed = [name for name in sorted(record["inputs"] | inputs) if record["inputs"].get(name) != inputs.get(name)]
        return ", ".join(settings + [f"input {name}" for name in changed])

    def _input_hash(self, name: str) -> str | None:
        if name.startswith("corpus/"):
            return self._split_hash(name.removeprefix("corpus/"))
        if name.startswith("corpus."):
            path = dict(self.recipe.corpus_paths())[name]
            return _hash_listing(path) if path.is_dir() else hash_files([path], path.parent)
        if "/" in name:
            path = Path(name)
            return hash_files([path], path.parent) if path.is_file() else self.folder_hash(path)
        return self.output_hash(next(node for node in self.nodes if node.name == name))

    def _split_hash(self, split: str) -> str | None:
        if not self.recipe.has_split(self.run, split):
            return None
        summary = read_summary(self.recipe.split_folder(self.run, split))
        return hash_of([shard["sha256"] for shard in summary["shards"]])

    @staticmethod
    def folder_hash(folder: Path) -> str | None:
        """Return a SHA-256 of a finished model's folder, None when there is nothing in it."""
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        return hash_files(files, folder) if files else None

    def output_hash(self, node: StageNode) -> str | None:
        """Return a SHA-256 of what a stage has left, None when there is nothing."""
        if node.kind == "prepare":
            hashes = {split: self._split_hash(split) for split in self._splits()}
            return None if None in hashes.values() else hash_of(hashes)
        if node.kind == "tokenizer":
            # Its folder may hold what was derived from it since.
            files = [self.run.tokenizer / name for name in TOKENIZER_FILES]
            return hash_files(files, self.run.path) if all(file.is_file() for file in files) else None
        if node.kind == "features":
            file = self.run.statistics_file
            return hash_files([file], self.run.path) if file.is_file() else None
        if node.kind == "report":
            files = [path for path in [self.run.report_file] if path.is_file()]
            return hash_files(files, self.run.path) if files else None
        stage = self.run.stage(node.name)
        if node.kind == "evaluate":
            return hash_files([stage.evaluation_file], stage.path) if stage.evaluation_file.is_file() else None
        return self.folder_hash(stage.model)

    def _splits(self) -> list[str]:
        return sorted({"train"} | {stage.split for stage in self.recipe.stages if isinstance(stage, EvaluateStage)})

    def started(self, node: StageNode, stage_status: StageStatus) -> None:
        """Record that a stage runs."""
        record = self.record(node.name)
        self._set(
            node,
            status="running",
            fingerprint=stage_status.fingerprint,
            settings=node.settings.beside(record["settings"]) if record else node.settings.values,
            inputs=stage_status.inputs,
            started=round(time.time(), 3),
        )

    def ended(self, node: StageNode, status: str) -> None:
        """Record how a stage ended: done, stopped or failed."""
        output = self.output_hash(node) if status == "done" else None
        self._set(node, status=status, output=output, ended=round(time.time(), 3))

    def _set(self, node: StageNode, **values: Any) -> None:
        self._records[node.name] = {"kind": node.kind, **self.record(node.name), **values}
        order = [node.name for node in self.nodes]
        stages = {name: self._records[name] for name in order if name in self._records}
        write_json(self.run.state_file, {"format": STATE_FORMAT, "recipe": self.recipe.name, "stages": stages})


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one of dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf
        for name, item in value.items()
        for key, leaf in flatten(item, f"{prefix}.{name}" if prefix else name).items()
    }
