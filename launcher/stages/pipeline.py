"""The stages of a run, and which of them are done.

A stage is done when its record in state.json says so, its fingerprint is still the same, its output is still in place,
and the recordings are what the shards were made of (`Pipeline.status_of`). The fingerprint is a SHA-256 over the
stage's own settings and the content of its inputs: the shards of a split, the tokenizer, another stage's finished
model. So a changed setting or input reruns what depends on it and nothing else. Where a stage runs and how it is
followed (cluster, tracking, checkpoints, validation) is not part of it (see settings.py); the precision of the
arithmetic is.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.augmentation.recordings import recordings_identity
from data.corpora import changed_recordings
from data.corpora.published import PublishedCorpusConfig, may_list_transcripts
from data.errors import DataError
from data.manifests.manifest import manifest_files
from data.shards.index import NoShardsError, is_url, read_summary
from launcher.recipe import (
    AdaptStage,
    AnyTrainingStage,
    DistillStage,
    EvaluateStage,
    MixtureCorpus,
    Recipe,
    SelfSupervisedStage,
    ShardsCorpus,
)
from launcher.recipe.corpora import corpus_paths
from launcher.recipe.search import counts_transcripts, search_files
from launcher.run_files import STATE_FORMAT, read_state
from launcher.run_folder import RunFolder, is_folder, write_json
from launcher.stages.fingerprint import files_below, hash_files, hash_folder, hash_listing, hash_value
from launcher.stages.settings import (
    Settings,
    Values,
    corpus_settings,
    evaluation_settings,
    features_settings,
    tokenizer_settings,
    training_settings,
)

# What state.json holds of a stage: kind, status, fingerprint, settings, inputs, output, times.
Record = dict[str, Any]
# Hashes by the name of an input; or, by the key of a setting or an input, how it changed, in words.
Hashes = dict[str, str]
Changes = dict[str, str]

# Of the name of an input: the path or URL of recordings for augmentation follows.
RECORDINGS_PREFIX = "recordings "
# The folder or URL of a split that is no part of the corpus follows.
SHARDS_PREFIX = "shards "
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "features.json")


@dataclass(frozen=True)
class StageNode:
    """A stage of the pipeline: its settings and the names of its inputs, as far as they decide its result.

    An input is "corpus/SPLIT", "features", "tokenizer", the name of a training stage, the path of a finished model's
    folder or of a search's file, "recordings PATH" of augmentation, or "shards PATH" of speech beside the corpus.
    "corpus/train" are the corpora that a run begins with; those of a mixture that join it later are
    "corpus/train/LABEL".
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
    inputs: Hashes


def build_pipeline(recipe: Recipe) -> list[StageNode]:
    """Return the stages of a recipe in order, with the implicit ones: prepare, tokenizer and report.

    Stages that learn without transcripts need the statistics of the features, and no tokenizer.
    """
    corpus_inputs = [key for key, _ in recipe.corpus_paths()]
    prepare = StageNode(
        name="prepare",
        kind="prepare",
        settings=Settings.of(corpus_settings, recipe),
        inputs=tuple(corpus_inputs),
    )
    nodes = [prepare]

    kinds = {stage.kind for stage in recipe.stages}
    if "self_supervised" in kinds:
        features = StageNode(
            name="features",
            kind="features",
            settings=Settings.of(features_settings, recipe),
            inputs=("corpus/train",),
        )
        nodes.append(features)
    # An adaptation has the tokenizer and the statistics of its base.
    if not kinds <= {"self_supervised", "adapt", "evaluate"}:
        tokenizer_inputs = ["corpus/train"]
        if recipe.tokenizer.model is not None:
            tokenizer_inputs.append(str(recipe.tokenizer.model))
        tokenizer = StageNode(
            name="tokenizer",
            kind="tokenizer",
            settings=Settings.of(tokenizer_settings, recipe),
            inputs=tuple(tokenizer_inputs),
        )
        nodes.append(tokenizer)

    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            settings = Settings.of(evaluation_settings, stage)
            inputs = [f"corpus/{stage.split}", *stage.models]
            inputs += [str(path) for _, path in search_files(stage.search)]
            if counts_transcripts(stage.search):
                inputs.append("corpus/train")
        else:
            settings = Settings.of(training_settings, recipe, stage)
            inputs = _training_inputs(recipe, stage)
        nodes.append(StageNode(stage.name, stage.kind, settings, tuple(inputs)))

    # It shows what every stage left, and has no settings of its own.
    every_stage = [stage.name for stage in recipe.stages]
    report = StageNode(
        name="report",
        kind="report",
        settings=Settings(values={}, given={}),
        inputs=tuple(every_stage),
    )
    return [*nodes, report]


def _training_inputs(recipe: Recipe, stage: AnyTrainingStage) -> list[str]:
    inputs = ["corpus/train"]
    if isinstance(recipe.corpus, MixtureCorpus):
        for entry in recipe.corpus.mix:
            # One that joins after its last step is nothing to a stage.
            if entry.from_step is not None and entry.from_step < stage.steps:
                inputs.append(f"corpus/train/{entry.label}")
    for path in recipe.augment_of(stage).recordings().values():
        inputs.append(f"{RECORDINGS_PREFIX}{path}")
    if isinstance(stage, SelfSupervisedStage):
        return [*inputs, "features"]
    if isinstance(stage, AdaptStage):
        inputs.append(stage.base)
        keep = stage.adapt.keep_split
        if keep is not None:
            prefix = SHARDS_PREFIX if is_folder(keep) else "corpus/"
            inputs.append(f"{prefix}{keep}")
        return inputs
    inputs.append("tokenizer")
    if isinstance(stage, DistillStage):
        inputs += [teacher.model for teacher in stage.named_teachers]
    elif stage.initialize_from:
        inputs.append(stage.initialize_from)
    return inputs


class Pipeline:
    """The stages of a recipe beside the state of a run folder."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe = recipe
        self.run = run
        self.nodes = build_pipeline(recipe)
        state = read_state(run) or {}
        self._records: dict[str, Record] = state.get("stages", {})
        self._recordings: str | None = None
        # Sizes and times of the files of published corpora, by input, as they were when they were read.
        self._corpus_states: Hashes = {}

    def record(self, name: str) -> Record:
        """Return what state.json says of a stage; empty when it has never been started."""
        return self._records.get(name, {})

    def statuses(self) -> Iterator[tuple[StageNode, StageStatus]]:
        """Yield every stage with its status, without changing anything.

        What comes after a stage that is not done depends on what that stage will give.
        """
        return self._statuses(self.nodes, [])

    def _statuses(self, nodes: Iterable[StageNode], not_done: list[str]) -> Iterator[tuple[StageNode, StageStatus]]:
        """Yield the statuses of some nodes, in order, where those named before them are known not to be done."""
        for node in nodes:
            if node.kind == "prepare" and not self.record(node.name) and self._is_corpus_there():
                # Whatever its lists say, of which some have gigabytes.
                status = StageStatus(False, "not started yet", None, {})
            else:
                status = self.status_of(node)
            awaited = []
            for name in node.inputs:
                # The shards of a split are what prepare leaves.
                upstream = "prepare" if name.startswith("corpus/") else name
                if upstream in not_done:
                    awaited.append(upstream)
            if status.done and awaited:
                status = StageStatus(False, f"depends on {', '.join(awaited)}", None, status.inputs)
            if not status.done:
                not_done.append(node.name)
            yield node, status

    def later_steps(self, name: str) -> int:
        """Return the steps of the trainings after a stage, which is not done, that are to run."""
        position = self.nodes.index(self.node(name))
        later = []
        # Those before it are done, and to look at them again would list the corpus and hash every model.
        for node, status in self._statuses(self.nodes[position + 1 :], [name]):
            if not status.done:
                later.append(node.name)
        num_steps = 0
        for stage in self.recipe.training_stages():
            if stage.name in later:
                num_steps += stage.steps
        return num_steps

    def status_of(self, node: StageNode) -> StageStatus:
        """Return whether a stage is done, from its record and from what lies on the disk now."""
        inputs: Hashes = {}
        missing: list[str] = []
        for name in node.inputs:
            input_hash = self._input_hash(name)
            if input_hash is None:
                missing.append(name)
            else:
                inputs[name] = input_hash
        if missing:
            # Without them there is no fingerprint, and a record's cannot be compared.
            return StageStatus(False, f"waits for {', '.join(missing)}", None, inputs)

        record = self.record(node.name)
        settings = self._comparable_settings(node)
        fingerprint = _fingerprint(settings, inputs)
        if not record:
            reason = "not started yet"
        elif record["fingerprint"] != fingerprint:
            reason = f"changed: {', '.join(self._changes(node, inputs).values())}"
        elif record["status"] != "done":
            reason = "not finished yet"
        # Last: hashing a model reads all of it.
        elif self.output_hash(node) != record["output"]:
            reason = "its output is gone or was changed"
        elif node.kind == "prepare" and self._recordings_changed():
            reason = self._recordings_changed()
        else:
            return StageStatus(True, "done", fingerprint, inputs)
        return StageStatus(False, reason, fingerprint, inputs)

    def _recordings_changed(self) -> str:
        """Return a sentence where recordings are not what the shards were made of, else an empty one."""
        # Once, until the corpus is prepared: a look at every recording takes minutes over a network.
        if self._recordings is None:
            self._recordings = ""
            paths: list[Path | str] = []
            try:
                for label, corpus in self.recipe.corpora().items():
                    if not isinstance(corpus, ShardsCorpus):
                        paths += changed_recordings(self.run.corpus / label)
            except DataError as error:
                self._recordings = str(error)
            else:
                if paths:
                    self._recordings = f"changed: {len(paths)} recordings, the first is {paths[0]}"
        return self._recordings

    def _comparable_settings(self, node: StageNode) -> Values:
        """The settings of a stage as far as its record can know them; all of them where it has none."""
        record = self.record(node.name)
        if not record:
            return node.settings.values
        return node.settings.comparable_to(record["settings"])

    def _changes(self, node: StageNode, inputs: Hashes) -> Changes:
        """Return in words, by key, how settings and inputs differ from those of the record."""
        record = self.record(node.name)
        before = flatten(record["settings"])
        after = flatten(self._comparable_settings(node))
        changes = {}
        for key in sorted(before.keys() | after.keys()):
            # ... stands for a key that is not there: None is a value.
            if before.get(key, ...) != after.get(key, ...):
                changes[key] = f"{key} {before.get(key, 'unset')} -> {after.get(key, 'unset')}"

        recorded_inputs = record["inputs"]
        for name in sorted(recorded_inputs.keys() | inputs.keys()):
            if recorded_inputs.get(name) != inputs.get(name):
                # Without its two hashes, which would tell a user nothing.
                changes[f"input {name}"] = f"input {name}"
        return changes

    def _input_hash(self, name: str) -> str | None:
        """Return a SHA-256 of an input's content, None when it is not there."""
        if name.startswith(RECORDINGS_PREFIX):
            identity = recordings_identity(name.removeprefix(RECORDINGS_PREFIX))
            if identity is None:
                return None
            return hash_value(identity)
        if name.startswith(SHARDS_PREFIX):
            return _shards_hash(name.removeprefix(SHARDS_PREFIX))
        if name.startswith("corpus/"):
            return self._split_hash(name.removeprefix("corpus/"))
        if name.startswith("corpus."):
            path = dict(self.recipe.corpus_paths())[name]
            if name.endswith(".manifest") and path.exists():
                root = path if path.is_dir() else path.parent
                files = manifest_files(path)
                lists = hash_files(files.lists, root)
                # Tars and tables hold terabytes of recordings, and are recorded with the shards that are made of them.
                if files.containers:
                    sizes = {
                        str(container.relative_to(root)): container.stat().st_size for container in files.containers
                    }
                    return hash_value([hash_listing(sizes), lists])
                return lists
            if path.is_dir():
                # A folder of recordings may hold terabytes, which are not read again at every start; lists of their
                # transcripts are, where it is known which files these are.
                files = files_below(path)
                listing = hash_listing(files)
                if isinstance(self._corpus_with(name), PublishedCorpusConfig):
                    lists = [path / file for file in sorted(files) if may_list_transcripts(file)]
                    return self._published_hash(name, listing, lists, path)
                return listing
            return hash_files([path], path.parent)
        # Names of stages have no slash.
        if "/" in name:
            path = Path(name)
            if path.is_file():
                return hash_files([path], path.parent)
            return hash_folder(path)
        return self.output_hash(self.node(name))

    def _published_hash(self, name: str, listing: str, lists: list[Path], root: Path) -> str:
        """Return a SHA-256 of a published corpus: of the names and sizes of its files, and the content of its lists."""
        state = hash_value([listing, [file.stat().st_mtime_ns for file in lists]])
        record = self.record("prepare")
        self._corpus_states[name] = state
        # As recordings are compared: lists of gigabytes are not read at each start.
        recorded = record.get("inputs", {}).get(name)
        if recorded is not None and record.get("corpus_states", {}).get(name) == state:
            return recorded
        return hash_value([listing, hash_files(lists, root)])

    def _is_corpus_there(self) -> bool:
        return all(path.exists() for _, path in self.recipe.corpus_paths())

    def _corpus_with(self, path_key: str) -> Any:
        """Return the corpus that a path belongs to by its dotted key."""
        if isinstance(self.recipe.corpus, MixtureCorpus):
            for entry in self.recipe.corpus.mix:
                if path_key in dict(corpus_paths(entry, f"corpus.mix.{entry.label}")):
                    return entry
        return self.recipe.corpus

    def node(self, name: str) -> StageNode:
        """Return the stage of that name, which there is."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def _split_hash(self, split: str) -> str | None:
        """Return a SHA-256 of the shards of a split: of "train" those that a run begins with, of "train/LABEL" those of
        a corpus that joins later, of others those of all corpora that have them."""
        split, _, label = split.partition("/")
        folders = self.recipe.present_folders(self.run, split)
        if label:
            expected = [label]
        elif split == "train":
            folders = self.recipe.initial_folders(self.run, split)
            expected = self.recipe.initial_labels()
        else:
            expected = list(folders)
        shards = []
        for corpus in expected:
            if corpus not in folders:
                return None
            summary = read_summary(folders[corpus])
            shards.append([shard["sha256"] for shard in summary["shards"]])
        if not shards:
            return None
        # As without a mixture, so that a run of one corpus may go on with others beside it.
        if len(shards) == 1:
            return hash_value(shards[0])
        return hash_value(shards)

    def output_hash(self, node: StageNode) -> str | None:
        """Return a SHA-256 of what a stage has left, None when there is nothing."""
        stage_folder = self.run.stage(node.name)
        match node.kind:
            case "prepare":
                return self._corpus_hash()
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
                files = [stage_folder.evaluation_file]
                root = stage_folder.path
            case "adapt":
                hashes = [hash_folder(folder) for folder in (stage_folder.model, stage_folder.adapter)]
                if None in hashes:
                    return None
                return hash_value(hashes)
            case _:
                return hash_folder(stage_folder.model)
        for file in files:
            if not file.is_file():
                return None
        return hash_files(files, root)

    def _corpus_hash(self) -> str | None:
        """Return a SHA-256 of the splits that the recipe uses, None when one is missing."""
        splits = {"train"}
        for stage in self.recipe.stages:
            if isinstance(stage, EvaluateStage):
                splits.add(stage.split)
        if isinstance(self.recipe.corpus, MixtureCorpus):
            for entry in self.recipe.corpus.mix:
                if entry.from_step is not None:
                    splits.add(f"train/{entry.label}")
        hashes = {}
        for split in splits:
            split_hash = self._split_hash(split)
            if split_hash is None:
                return None
            hashes[split] = split_hash
        return hash_value(hashes)

    def started(self, node: StageNode, status: StageStatus) -> None:
        """Record that a stage runs."""
        settings = self._comparable_settings(node)
        values = {}
        if node.kind == "prepare":
            values["corpus_states"] = self._corpus_states
        self._update_record(
            node,
            status="running",
            # Anew: that of the status is over what a record knew which may have been set aside since.
            fingerprint=_fingerprint(settings, status.inputs),
            # What the fingerprint is over, so that a change can be named.
            settings=settings,
            inputs=status.inputs,
            started=round(time.time(), 3),
            **values,
        )

    def matches(self, node: StageNode, record: Record, inputs: Hashes) -> bool:
        """Return whether a record is of work under the stage's settings and these inputs."""
        settings = node.settings.comparable_to(record["settings"])
        return record["fingerprint"] == _fingerprint(settings, inputs)

    def changes(self, node: StageNode, inputs: Hashes) -> Changes:
        """Return in words, by key, how settings, and those inputs that are there, differ from those of the record."""
        recorded = self.record(node.name)["inputs"]
        # An input that is not there yet cannot be said to differ, unless it is a new one.
        expected = {name: recorded.get(name, "") for name in node.inputs}
        return self._changes(node, expected | inputs)

    def changes_before(self, node: StageNode) -> Changes:
        """Return in words how settings of the stages that a stage's inputs come from differ from their records.

        Not how their inputs do: a corpus that was written again may give the same shards.
        """
        changes: Changes = {}
        for name in node.inputs:
            # The shards of a split are what prepare leaves; a path is no stage of this run.
            upstream = "prepare" if name.startswith("corpus/") else name
            if "/" in upstream or upstream.startswith("corpus."):
                continue
            before = self.node(upstream)
            changes |= self.changes_before(before)
            record = self.record(upstream)
            if record:
                # Its own inputs as recorded, so that only settings can differ.
                for key, words in self._changes(before, record["inputs"]).items():
                    changes[f"{upstream}.{key}"] = f"{upstream}: {words}"
        return changes

    def adopt(self, node: StageNode, record: Record) -> None:
        """Record a stage as another record has it: that of work which takes the place of the stage's own."""
        # Not an update: keys of the former record must not survive in it.
        self._records.pop(node.name, None)
        self._update_record(node, **record)

    def forget(self, node: StageNode) -> None:
        """Record nothing of a stage any more: what there was is elsewhere, and its record goes with it."""
        if self._records.pop(node.name, None):
            self._write_state()

    def ended(self, node: StageNode, outcome: str) -> None:
        """Record how a stage ended: done, stopped or failed."""
        self._recordings = None
        output = None
        # Of work that is not whole nothing can be promised.
        if outcome == "done":
            output = self.output_hash(node)
        ended = round(time.time(), 3)
        self._update_record(node, status=outcome, output=output, ended=ended)

    def _update_record(self, node: StageNode, **values: Any) -> None:
        record = {"kind": node.kind, **self.record(node.name)}
        self._records[node.name] = record | values
        self._write_state()

    def _write_state(self) -> None:
        # In the order of the recipe. A stage that left the recipe may come back: without its record, nobody could tell
        # under which settings its checkpoints were trained.
        stages = {}
        for node in self.nodes:
            if node.name in self._records:
                stages[node.name] = self._records[node.name]
        stages |= self._records
        state = {"format": STATE_FORMAT, "recipe": self.recipe.name, "stages": stages}
        write_json(self.run.state_file, state)


def _shards_hash(place: str) -> str | None:
    """Return a SHA-256 of the shards in a folder or behind a URL, None where there are none."""
    try:
        summary = read_summary(place if is_url(place) else Path(place))
    except NoShardsError:
        return None
    return hash_value([shard["sha256"] for shard in summary["shards"]])


def _fingerprint(settings: Values, inputs: Hashes) -> str:
    return hash_value({"settings": settings, "inputs": inputs})


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one of dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        key = f"{prefix}.{name}" if prefix else name
        flat |= flatten(item, key)
    return flat
