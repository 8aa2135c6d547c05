"""Which stored outputs of a teacher a stage may read instead of running the teacher.

A cache is a folder of sidecars (data/shards/sidecars.py) beside the shards, in `train.teachers/NAME-HASH`, with a
description in `teacher.json`: of which teacher, from which inputs, and what exactly. It matches a stage when the
teacher's inputs are the same, byte for byte, and when it holds at least what the stage reads. Masks that are drawn anew
at every step cannot be stored: a teacher with masked input has no cache.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from data.shards.index import read_summary
from data.shards.sidecars import find_damage
from launcher.errors import CheckpointError, ConfigError
from launcher.recipe import DistillStage, TeacherConfig
from launcher.recipe.teachers import (
    TeacherSpec,
    check_cacheable,
    compared_layers,
    read_spec,
    spec_of_stage,
    terms_of,
    units_layer,
    why_no_cache,
)
from launcher.run_folder import read_json, write_json
from launcher.stages.context import StageContext
from launcher.stages.fingerprint import hash_files, hash_folder, hash_value

# A cache of another format is not read: the teacher runs at every step instead.
FORMAT = 1
DESCRIPTION = "teacher.json"


class CacheInputs(BaseModel, frozen=True, extra="forbid"):
    """What the outputs follow from; it must be the same. Hashes are SHA-256s.

    `features` is none where the teacher has a front-end of its own, `tokenizer` where it has nothing to do with tokens.
    """

    teacher: str
    shards: tuple[str, ...]
    features: str | None
    tokenizer: str | None
    precision: str


class CacheContents(BaseModel, frozen=True, extra="forbid"):
    """What is stored of the outputs; a stage may read less. Utterances of other lengths are not stored."""

    speeds: tuple[float, ...]
    min_utterance_s: float
    max_utterance_s: float
    layers: tuple[int, ...]
    ctc: bool
    decoder: bool
    top_tokens: int


class CacheDescription(BaseModel, frozen=True, extra="forbid", populate_by_name=True):
    """The content of teacher.json. States are fp16; same_tokens and has_decoder say what the teacher has at all."""

    format: int = FORMAT
    name: str = Field(description="the teacher's name in the stage that the cache was made for")
    # `heard` and `kept` are their keys in teacher.json.
    inputs: CacheInputs = Field(validation_alias="heard", serialization_alias="heard")
    contents: CacheContents = Field(validation_alias="kept", serialization_alias="kept")
    same_tokens: bool = False
    has_decoder: bool = False

    @property
    def folder_name(self) -> str:
        inputs = self.inputs.model_dump(mode="json")
        contents = self.contents.model_dump(mode="json")
        digest = hash_value([inputs, contents])
        # Enough digits to tell caches apart; whether one suits a stage is for its description to say.
        return f"{self.name}-{digest[:12]}"


@dataclass(frozen=True)
class CacheChoice:
    """The cache that a stage reads for a teacher, or none and why; no reason where there is nothing to tell."""

    folder: Path | None = None
    description: CacheDescription | None = None
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """Return the choice as plain values, of which `of_record` makes it again in another process."""
        record: dict[str, Any] = {"folder": None, "description": None, "reason": self.reason}
        if self.folder:
            record["folder"] = str(self.folder)
        if self.description:
            record["description"] = self.description.model_dump(mode="json", by_alias=True)
        return record

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "CacheChoice":
        folder = None
        if record["folder"]:
            folder = Path(record["folder"])
        description = None
        if record["description"]:
            description = CacheDescription.model_validate(record["description"])
        return cls(folder, description, record["reason"])


def caches_folder(context: StageContext[DistillStage]) -> Path | None:
    """Where the caches of a stage's teachers are; None for shards behind a URL without a folder in the recipe."""
    configured = context.stage.distill.cache.folder
    if len(context.recipe.corpora()) > 1:
        return None
    if configured:
        return configured
    shards = context.split_folder("train")
    if isinstance(shards, Path):
        return shards.with_name("train.teachers")
    return None


def folder_for_caches(context: StageContext[DistillStage]) -> Path:
    """Where to write the caches of a stage's teachers; ConfigError when there is no such place."""
    check_cacheable(context.recipe, context.stage)
    folder = caches_folder(context)
    if folder is None:
        raise ConfigError(
            f"The shards of recipe {context.recipe.name} are at {context.split_folder('train')}, where nothing can be "
            f"stored beside them. Name a folder: --set stages.{context.name}.distill.cache.folder=DIR for "
            "`chorus run`, and --out DIR for `chorus cache-teacher`."
        )
    return folder


def spec_of(context: StageContext[DistillStage], teacher: TeacherConfig) -> TeacherSpec:
    """The spec of a teacher's encoder; CheckpointError when its folder cannot be read."""
    if not teacher.is_folder:
        return spec_of_stage(context.recipe, teacher.model)
    folder = context.run.model_folder(teacher.model)
    return read_spec(folder, f"The teacher {teacher.name} of stage {context.name}")


def describe(context: StageContext[DistillStage], teacher: TeacherConfig, spec: TeacherSpec) -> CacheDescription:
    """The cache that suits a stage exactly. CheckpointError when the teacher is not finished, DataError when the shards
    are not there."""
    stage = context.stage
    model = context.run.model_folder(teacher.model)
    model_sha256 = hash_folder(model)
    if model_sha256 is None:
        raise CheckpointError(
            f"The teacher {teacher.name} of stage {context.name} has no finished model in {model}. Run the recipe "
            "until its stage is done."
        )

    features_sha256 = None
    if spec.kind == "chorus" and teacher.input != "waveform":
        # An option that a newer version adds, at its default, is no other front-end.
        features = context.recipe.features.model_dump(mode="json", exclude_defaults=True)
        features_sha256 = hash_value([features, read_json(context.run.features_file)])
    tokenizer_sha256 = None
    if spec.kind == "chorus":
        tokenizer = context.run.tokenizer
        tokenizer_sha256 = hash_files([tokenizer / "tokenizer.model", tokenizer / "tokenizer.json"], tokenizer)
    shards = read_summary(context.split_folder("train"))["shards"]

    terms = terms_of(stage, teacher)
    layers = {teacher_layer for _, teacher_layer in compared_layers(stage, teacher)}
    if "units" in terms:
        layers.add(units_layer(stage, spec))
    return CacheDescription(
        name=teacher.name,
        inputs=CacheInputs(
            teacher=model_sha256,
            shards=tuple(shard["sha256"] for shard in shards),
            features=features_sha256,
            tokenizer=tokenizer_sha256,
            precision=context.recipe.cluster.precision,
        ),
        contents=CacheContents(
            speeds=context.augment.speeds,
            min_utterance_s=context.batches.min_utterance_s,
            max_utterance_s=context.batches.max_utterance_s,
            layers=tuple(sorted(layers)),
            # Pseudo-labels are searched for in the CTC posteriors.
            ctc=bool(terms & {"ctc", "sequence"}),
            decoder="decoder" in terms and stage.model.decoder is not None,
            top_tokens=stage.distill.cache.top_tokens,
        ),
    )


def mismatch(wanted: CacheDescription, stored: CacheDescription) -> str:
    """Why a stored cache does not suit a stage; empty when it does."""
    expected = wanted.inputs
    inputs = stored.inputs
    if inputs.teacher != expected.teacher:
        return f"it was made with another teacher ({inputs.teacher[:12]}, now {expected.teacher[:12]})"
    if inputs.shards != expected.shards:
        return "it was made with other shards"
    if inputs.features != expected.features:
        return "it was made with other features, or another input of the teacher"
    if inputs.tokenizer != expected.tokenizer:
        return "it was made with another tokenizer"
    if inputs.precision != expected.precision:
        return f"it was made with precision {inputs.precision}, and cluster.precision is {expected.precision}"

    needed = wanted.contents
    contents = stored.contents
    # One cache serves several students: it may hold more than this stage reads.
    missing_speeds = [speed for speed in needed.speeds if speed not in contents.speeds]
    if missing_speeds:
        return f"it lacks the speed factor {missing_speeds[0]:g}"
    missing_layers = [layer for layer in needed.layers if layer not in contents.layers]
    if missing_layers:
        return f"it lacks layer {missing_layers[0]}"
    if needed.ctc and not contents.ctc:
        return "it lacks the posteriors of distill.ctc"
    if needed.decoder and not contents.decoder:
        return "it lacks the posteriors of distill.decoder"
    if needed.max_utterance_s > contents.max_utterance_s or needed.min_utterance_s < contents.min_utterance_s:
        return f"it holds utterances of {contents.min_utterance_s:g} to {contents.max_utterance_s:g} s alone"
    # A stage without posteriors does not mind how many of their tokens are kept.
    if (needed.ctc or needed.decoder) and needed.top_tokens > contents.top_tokens:
        return (
            f"it keeps {contents.top_tokens} tokens of a posterior, and distill.cache.top_tokens is {needed.top_tokens}"
        )
    return ""


def choose_caches(context: StageContext[DistillStage]) -> dict[str, CacheChoice]:
    """What a stage reads for each of its teachers, by their names. ConfigError when it requires a cache and there is
    none."""
    if context.stage.distill.cache.use == "never":
        return {teacher.name: CacheChoice() for teacher in context.stage.named_teachers}
    choices = find_caches(context)
    for name, choice in choices.items():
        if choice.folder is None and context.stage.distill.cache.required:
            reason = f": {choice.reason}" if choice.reason else ""
            raise ConfigError(
                f"Stage {context.name} requires a cache of its teacher {name} (distill.cache.use), and has none in "
                f"{caches_folder(context)}{reason}. Run `chorus cache-teacher {context.run.path}/{context.name}`, or "
                "set distill.cache.use to auto."
            )
    return choices


def find_caches(context: StageContext[DistillStage]) -> dict[str, CacheChoice]:
    """The caches that match a stage, by the names of its teachers, whether or not it will read them."""
    choices: dict[str, CacheChoice] = {}
    for teacher in context.stage.named_teachers:
        choices[teacher.name] = _find_cache(context, teacher)
    return choices


def _find_cache(context: StageContext[DistillStage], teacher: TeacherConfig) -> CacheChoice:
    root = caches_folder(context)
    folders: list[Path] = []
    if root:
        # Sorted: a file system lists in any order, and the choice must not depend on it.
        folders = sorted(path.parent for path in root.glob(f"*/{DESCRIPTION}"))
    if not folders and not context.stage.distill.cache.required:
        # The usual case, in which no teacher needs to be hashed.
        return CacheChoice()

    spec = spec_of(context, teacher)
    reason = why_no_cache(context.recipe, context.stage, teacher, spec)
    if reason:
        return CacheChoice(reason=reason)

    wanted = describe(context, teacher, spec)
    summary = read_summary(context.split_folder("train"))
    shard_names = [shard["name"] for shard in summary["shards"]]
    # The one that suits exactly comes first; others may hold more.
    folders.sort(key=lambda folder: folder.name != wanted.folder_name)
    reasons: list[str] = []
    for folder in folders:
        stored = read_description(folder)
        if stored is None:
            reasons.append(f"{folder} is not used: {DESCRIPTION} cannot be read, or is of another format")
            continue
        reason = mismatch(wanted, stored) or find_damage(folder, shard_names)
        if not reason:
            return CacheChoice(folder, stored)
        # That the caches of other teachers do not suit goes without saying.
        if stored.name == teacher.name:
            reasons.append(f"{folder} is not used: {reason}")
    return CacheChoice(reason="; ".join(reasons))


def read_description(folder: Path) -> CacheDescription | None:
    """The description of a cache; None when it cannot be read or is of another format."""
    try:
        description = CacheDescription.model_validate(read_json(folder / DESCRIPTION))
    except (OSError, ValueError, ValidationError):
        return None
    if description.format != FORMAT:
        return None
    return description


def write_description(folder: Path, description: CacheDescription) -> None:
    write_json(folder / DESCRIPTION, description.model_dump(mode="json", by_alias=True))


def describe_choice(teacher: str, choice: CacheChoice) -> str:
    """What a stage does about a teacher's cache, as one sentence; empty when there is nothing to tell."""
    if choice.folder:
        return f"the outputs of teacher {teacher} are read from {choice.folder}"
    if choice.reason:
        return f"teacher {teacher} runs at every step: {choice.reason}"
    return ""


def cache_event(teacher: str, choice: CacheChoice) -> dict[str, Any]:
    """The same for events.jsonl."""
    folder = str(choice.folder) if choice.folder else None
    return {"teacher": teacher, "used": folder, "reason": choice.reason}
