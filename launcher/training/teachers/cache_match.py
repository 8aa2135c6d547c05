"""Which stored outputs of a teacher a stage may read instead of asking the teacher.

A cache is a folder of sidecars (data/sidecars.py) beside the shards, in `train.teachers/NAME-HASH`, with a
description in `teacher.json`: by whom, of what and how exactly. It matches a stage when what the teacher heard is the
same, byte for byte, and when it holds at least what the stage looks at. Masks that are drawn anew at every step cannot
be stored: a teacher that hears them has no cache.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from data.shard_index import read_summary
from data.sidecars import find_damage
from launcher.errors import CheckpointError, ConfigError
from launcher.recipe import DistillStage, TeacherConfig
from launcher.recipe.teachers import (
    TeacherSpec,
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

FORMAT = 1
DESCRIPTION = "teacher.json"


class TeacherInputs(BaseModel, frozen=True, extra="forbid"):
    """What the outputs follow from; it must be the same. Hashes are SHA-256s.

    `features` is none where the teacher has a front-end of its own, `tokenizer` where it has nothing to do with tokens.
    """

    teacher: str
    shards: tuple[str, ...]
    features: str | None
    tokenizer: str | None
    precision: str


class CacheContents(BaseModel, frozen=True, extra="forbid"):
    """What is stored of the outputs; a stage may look at less. Utterances of other lengths are left out."""

    speeds: tuple[float, ...]
    min_utterance_s: float
    max_utterance_s: float
    layers: tuple[int, ...]
    ctc: bool
    decoder: bool
    top_tokens: int


class CacheDescription(BaseModel, frozen=True, extra="forbid"):
    """The content of teacher.json. States are fp16; same_tokens and has_decoder say what the teacher has at all."""

    format: int = FORMAT
    name: str = Field(description="the teacher's name in the stage that the cache was made for")
    heard: TeacherInputs
    kept: CacheContents
    same_tokens: bool = False
    has_decoder: bool = False

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{hash_value([self.heard.model_dump(mode='json'), self.kept.model_dump(mode='json')])[:12]}"


@dataclass(frozen=True)
class CacheChoice:
    """The cache that a stage reads for a teacher, or none and why; no reason where there is nothing to tell."""

    folder: Path | None = None
    description: CacheDescription | None = None
    reason: str = ""


def caches_folder(context: StageContext[DistillStage]) -> Path | None:
    """Where the caches of a stage's teachers are; None for shards behind a URL without a folder in the recipe."""
    shards = context.split_folder("train")
    return context.stage.distill.cache.folder or (
        shards.with_name("train.teachers") if isinstance(shards, Path) else None
    )


def folder_for_caches(context: StageContext[DistillStage]) -> Path:
    """Where to write the caches of a stage's teachers; ConfigError when there is no such place."""
    folder = caches_folder(context)
    if folder is None:
        raise ConfigError(
            f"The shards of recipe {context.recipe.name} are at {context.split_folder('train')}, where nothing can be "
            f"stored beside them. Name a folder: --set stages.{context.name}.distill.cache.folder=DIR for "
            "`chorus run`, and --out DIR for `chorus cache-teacher`."
        )
    return folder


def spec_of(context: StageContext[DistillStage], teacher: TeacherConfig) -> TeacherSpec:
    """A teacher's facts; CheckpointError when its folder cannot be read."""
    if teacher.is_folder:
        return read_spec(
            context.run.model_folder(teacher.model), f"The teacher {teacher.name} of stage {context.stage.name}"
        )
    return spec_of_stage(context.recipe, teacher.model)


def describe(context: StageContext[DistillStage], teacher: TeacherConfig, spec: TeacherSpec) -> CacheDescription:
    """The cache that suits a stage exactly. CheckpointError when the teacher is not finished, DataError when the shards
    are not there."""
    sha256 = hash_folder(context.run.model_folder(teacher.model))
    if sha256 is None:
        raise CheckpointError(
            f"The teacher {teacher.name} of stage {context.stage.name} has no finished model in "
            f"{context.run.model_folder(teacher.model)}. Run the recipe until its stage is done."
        )
    own_front_end = spec.kind != "chorus" or teacher.input == "waveform"
    tokenizer = [context.run.tokenizer / "tokenizer.model", context.run.tokenizer / "tokenizer.json"]
    terms, batches, cache = terms_of(context.stage, teacher), context.batches, context.stage.distill.cache
    layers = {theirs for _, theirs in compared_layers(context.stage, teacher)}
    layers |= {units_layer(context.stage, spec)} if "units" in terms else set()
    return CacheDescription(
        name=teacher.name,
        heard=TeacherInputs(
            teacher=sha256,
            shards=tuple(shard["sha256"] for shard in read_summary(context.split_folder("train"))["shards"]),
            features=None if own_front_end else _hash_front_end(context),
            tokenizer=hash_files(tokenizer, context.run.tokenizer) if spec.kind == "chorus" else None,
            precision=context.recipe.cluster.precision,
        ),
        kept=CacheContents(
            speeds=context.augment.speeds,
            min_utterance_s=batches.min_utterance_s,
            max_utterance_s=batches.max_utterance_s,
            layers=tuple(sorted(layers)),
            ctc=bool(terms & {"ctc", "sequence"}),
            decoder="decoder" in terms and context.stage.model.decoder is not None,
            top_tokens=cache.top_tokens,
        ),
    )


def _hash_front_end(context: StageContext[DistillStage]) -> str:
    # An option that a newer version adds, at its default, is no other front-end.
    return hash_value(
        [context.recipe.features.model_dump(mode="json", exclude_defaults=True), read_json(context.run.features_file)]
    )


def difference(wanted: CacheDescription, found: CacheDescription) -> str:
    """Why a cache does not suit a stage; empty when it does."""
    of = {
        "teacher": "another teacher",
        "shards": "other shards",
        "features": "other features, or a teacher that hears something else",
        "tokenizer": "another tokenizer",
        "precision": f"precision {found.heard.precision}, and cluster.precision is {wanted.heard.precision}",
    }
    for key, what in of.items():
        mine, theirs = getattr(wanted.heard, key), getattr(found.heard, key)
        if mine != theirs:
            hashes = f" ({str(theirs)[:12]}, now {str(mine)[:12]})" if key == "teacher" else ""
            return f"it was made with {what}{hashes}"
    return _lack(wanted.kept, found.kept)


def _lack(wanted: CacheContents, found: CacheContents) -> str:
    speeds = [speed for speed in wanted.speeds if speed not in found.speeds]
    layers = [layer for layer in wanted.layers if layer not in found.layers]
    if speeds:
        return f"it lacks the speed factor {speeds[0]:g}"
    if layers:
        return f"it lacks layer {layers[0]}"
    for output in ("ctc", "decoder"):
        if getattr(wanted, output) and not getattr(found, output):
            return f"it lacks the posteriors of distill.{output}"
    if wanted.max_utterance_s > found.max_utterance_s or wanted.min_utterance_s < found.min_utterance_s:
        return f"it holds utterances of {found.min_utterance_s:g} to {found.max_utterance_s:g} s alone"
    if (wanted.ctc or wanted.decoder) and wanted.top_tokens > found.top_tokens:
        return f"it keeps {found.top_tokens} tokens of a posterior, and distill.cache.top_tokens is {wanted.top_tokens}"
    return ""


def choose_caches(context: StageContext[DistillStage]) -> dict[str, CacheChoice]:
    """What a stage reads for each of its teachers, by their names. ConfigError when it requires a cache and there is
    none."""
    if context.stage.distill.cache.use == "never":
        return {teacher.name: CacheChoice() for teacher in context.stage.named_teachers}
    choices = find_caches(context)
    for name, choice in choices.items():
        if choice.folder is None and context.stage.distill.cache.required:
            raise ConfigError(
                f"Stage {context.name} requires a cache of its teacher {name} (distill.cache.use), and has none in "
                f"{caches_folder(context)}{f': {choice.reason}' if choice.reason else ''}. Run `chorus "
                f"cache-teacher {context.run.path}/{context.stage.name}`, or set distill.cache.use to auto."
            )
    return choices


def find_caches(context: StageContext[DistillStage]) -> dict[str, CacheChoice]:
    """The caches that match a stage, by the names of its teachers, whatever it makes of them."""
    return {teacher.name: _choose(context, teacher) for teacher in context.stage.named_teachers}


def _choose(context: StageContext[DistillStage], teacher: TeacherConfig) -> CacheChoice:
    root = caches_folder(context)
    folders = sorted(path.parent for path in root.glob(f"*/{DESCRIPTION}")) if root else []
    if not folders and not context.stage.distill.cache.required:
        return CacheChoice()
    spec = spec_of(context, teacher)
    if reason := why_no_cache(context.recipe, context.stage, teacher, spec):
        return CacheChoice(reason=reason)
    wanted, reasons = describe(context, teacher, spec), []
    names = [shard["name"] for shard in read_summary(context.split_folder("train"))["shards"]]
    for folder in sorted(folders, key=lambda folder: folder.name != wanted.folder_name):
        found = read_description(folder)
        reason = difference(wanted, found) if found else f"{DESCRIPTION} cannot be read, or is of another format"
        reason = reason or find_damage(folder, names)
        if not reason:
            return CacheChoice(folder, found)
        if found is None or found.name == teacher.name:
            reasons.append(f"{folder} is not used: {reason}")
    return CacheChoice(reason="; ".join(reasons))


def read_description(folder: Path) -> CacheDescription | None:
    """The description of a cache; None when it cannot be read or is of another format."""
    try:
        found = CacheDescription.model_validate(read_json(folder / DESCRIPTION))
    except (OSError, ValueError, ValidationError):
        return None
    return found if found.format == FORMAT else None


def write_description(folder: Path, description: CacheDescription) -> None:
    write_json(folder / DESCRIPTION, description.model_dump(mode="json"))


def describe_choice(teacher: str, choice: CacheChoice) -> str:
    """What a stage does about a teacher's cache, as one sentence; empty when there is nothing to tell."""
    if choice.folder:
        return f"the outputs of teacher {teacher} are read from {choice.folder}"
    return f"teacher {teacher} hears every step: {choice.reason}" if choice.reason else ""


def cache_event(teacher: str, choice: CacheChoice) -> dict[str, Any]:
    """The same for events.jsonl."""
    return {"teacher": teacher, "used": str(choice.folder) if choice.folder else None, "reason": choice.reason}
