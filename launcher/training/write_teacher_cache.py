"""Stores what the teachers of a stage give: each hears all of the train split at every speed, shard by shard.

Done again after a kill, it goes on with the shards that are missing; when none is, it does nothing. Refused: a teacher
that hears what changes from step to step, one that is not finished, and a disk without the room for it.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from data.errors import DataError
from data.loader import Loader
from data.sampler import BatchesConfig, BatchSampler, BatchSpec, change_length, cut_batches
from data.shard_index import ShardIndex
from data.sidecars import Arrays, SidecarWriter, find_broken, open_sidecars
from launcher.errors import ConfigError
from launcher.formatting import duration
from launcher.monitoring.progress import Display
from launcher.recipe import DistillStage, TeacherConfig
from launcher.recipe.teachers import TeacherSpec, check_teacher, why_no_cache
from launcher.run_folder import RunFolder
from launcher.stages.context import StageContext
from launcher.training.distillation.loss import run_teacher
from launcher.training.distillation.setup import check_tokens
from launcher.training.inputs import Inputs, open_inputs
from launcher.training.teachers.cache_codec import compact
from launcher.training.teachers.cache_match import (
    CacheContents,
    CacheDescription,
    describe,
    read_description,
    spec_of,
    write_description,
)
from launcher.training.teachers.load import load_teacher
from launcher.training.teachers.teacher import Teacher

# Names, checksums and padding of one member, and of one array in it.
MEMBER_BYTES, ARRAY_BYTES = 1536, 384


@dataclass(frozen=True)
class CacheReport:
    """A cache after the command: its shards, how many of them were written now, its bytes, the seconds of audio at all
    speeds that it holds, and the keys of utterances that could not be read now."""

    teacher: str
    folder: Path
    shards: int
    written: int
    bytes: int
    seconds: float
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return {
            "teacher": self.teacher,
            "folder": str(self.folder),
            "shards": self.shards,
            "written": self.written,
            "bytes": self.bytes,
            "audio_s": round(self.seconds, 3),
            "left_out": list(self.left_out),
        }

    def describe(self) -> str:
        done = f"{self.written} of {self.shards} shards written" if self.written else "nothing to do"
        left_out = f"; left out, not readable: {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{self.teacher}: {done}, {self.bytes / 1e6:.1f} MB for {duration(self.seconds)} of audio at all speeds, "
            f"in {self.folder}{left_out}"
        )


def cache_teachers(
    context: StageContext[DistillStage],
    root: Path,
    display: Display,
    verify: bool = False,
) -> list[CacheReport]:
    """Store what every teacher of a stage gives in folders of `root`. With `verify` what is there is read first, and a
    shard that holds something broken is stored anew."""
    recipe, run, stage = context.recipe, context.run, context.stage
    wanted: list[_Wanted] = []
    for teacher in stage.named_teachers:
        spec = spec_of(context, teacher)
        check_teacher(recipe, stage, teacher, spec)
        if reason := why_no_cache(recipe, stage, teacher, spec):
            raise ConfigError(f"What teacher {teacher.name} of stage {stage.name} gives cannot be stored: {reason}.")
        wanted.append(_Wanted(teacher, spec, describe(context, teacher, spec)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = open_inputs(context, "train", (), device)
    reports = []
    for one in wanted:
        reports.append(_store(one, run, stage, inputs, root, display, verify))
        run.append_event("teacher_cached", stage=stage.name, **reports[-1].as_dict())
    return reports


@dataclass(frozen=True)
class _Wanted:
    """A teacher and the cache that is wanted of it."""

    config: TeacherConfig
    spec: TeacherSpec
    description: CacheDescription


def _store(
    wanted: _Wanted, run: RunFolder, stage: DistillStage, inputs: Inputs, root: Path, display: Display, verify: bool
) -> CacheReport:
    description, kept = wanted.description, wanted.description.kept
    folder = root / description.folder_name
    writer = SidecarWriter(inputs.loader.reader.index, folder, kept.speeds)
    missing = writer.missing()
    if verify and not missing:
        missing = find_broken(open_sidecars(folder, writer.split))
    left_out: list[str] = []
    if missing or read_description(folder) is None:
        tokenizer = inputs.loader.tokenizer
        assert tokenizer is not None
        _check_room(writer, missing, kept, wanted.spec, tokenizer.vocabulary_size)
        teacher = load_teacher(run, wanted.config, wanted.spec, tokenizer.pieces, inputs.device)
        check_tokens(stage, wanted.config, teacher, len(tokenizer.pieces))
        told = {"same_tokens": teacher.same_tokens, "has_decoder": teacher.has_decoder}
        write_description(folder, description.model_copy(update=told))
        display.begin(f"cache of {description.name}", 1)
        try:
            left_out = _write(writer, missing, teacher, description, inputs, display)
        finally:
            display.end()
    writer.finish()
    return _report(description.name, writer, len(missing), kept, left_out)


def _write(
    writer: SidecarWriter,
    missing: Sequence[int],
    teacher: Teacher,
    description: CacheDescription,
    inputs: Inputs,
    display: Display,
) -> list[str]:
    """Write the missing shards; returns the keys of utterances whose recordings could not be read."""
    kept, autocast, awaited = description.kept, description.heard.precision == "bf16", set(missing)
    total = sum(len(_chosen(writer, shard, kept)) for shard in missing) * len(kept.speeds)
    keys, left_out, done = writer.split.keys(), [], 0
    for shard in range(len(writer.split.names)):
        of_shard = list(islice(keys, len(writer.utterances(shard))))
        if shard not in awaited:
            continue
        sampler = _ShardSampler(writer.split, _chosen(writer, shard, kept), kept.speeds, inputs.sampler.batches)
        members: dict[tuple[int, int], Arrays] = {}
        for rows, column, arrays, broken in _hear_shard(sampler, teacher, kept, inputs, autocast, of_shard):
            members |= {(row, column): one for row, one in zip(rows, arrays, strict=True)}
            left_out += [key for key in broken if key not in left_out]
            done += len(rows) + len(broken)
            display.count("utterances of train at all speeds", done, total)
        try:
            writer.write(shard, of_shard, members)
        except OSError as error:
            raise DataError(
                f"Writing to {writer.folder} failed ({error}). Make room or choose another place with --out, then "
                "give the same command: it goes on where it was."
            ) from error
    return left_out


def _hear_shard(
    sampler: "_ShardSampler", teacher: Teacher, kept: CacheContents, inputs: Inputs, autocast: bool, keys: Sequence[str]
) -> Iterator[tuple[list[int], int, list[Arrays], list[str]]]:
    """Places in the shard, place of the speed, and the arrays of a batch, with the keys of what could not be read."""
    loader = inputs.loader
    reading = Loader(cast(BatchSampler, sampler), loader.reader, loader.tokenizer, (0,), loader.workers)
    heard = replace(inputs, loader=reading, keeps_source=teacher.needs_source)
    for step, (batch,) in enumerate(reading.steps(0, len(sampler.cuts))):
        utterances, column = sampler.cuts[step]
        rows = [int(utterance) - sampler.first for utterance in utterances]
        rows = [row for row in rows if keys[row] not in batch.quarantined]
        arrays = []
        if rows:
            micro_batch = heard.micro_batch(batch)
            arrays = compact(run_teacher(teacher, micro_batch, autocast), micro_batch.token_lengths_B, kept)
        yield rows, column, arrays, batch.quarantined


def _chosen(writer: SidecarWriter, shard: int, kept: CacheContents) -> npt.NDArray[np.int64]:
    """The utterances of a shard that have a transcript and a length that is kept."""
    split, of = writer.split, writer.utterances(shard)
    utterances = np.arange(of.start, of.stop)
    seconds = split.samples[utterances] / split.sample_rate_hz
    fitting = (seconds >= kept.min_utterance_s) & (seconds <= kept.max_utterance_s)
    return utterances[fitting & (split.text_length[utterances] > 0)]


class _ShardSampler:
    """The utterances of one shard at one speed after the other, longest first, as micro-batches of a lane 0."""

    def __init__(
        self,
        split: ShardIndex,
        utterances: npt.NDArray[np.int64],
        speeds: Sequence[float],
        batches: BatchesConfig,
    ):
        self.split, self.speeds = split, speeds
        self.first = int(np.searchsorted(split.shard, split.shard[utterances[0]])) if len(utterances) else 0
        self.cuts: list[tuple[npt.NDArray[np.int64], int]] = []
        order = utterances[np.argsort(-split.samples[utterances], kind="stable")]
        for column, speed in enumerate(speeds):
            samples = change_length(split.samples[order], speed)
            bounds = cut_batches(batches.capacity(samples, split.sample_rate_hz))
            for start, stop in pairwise(bounds):
                self.cuts.append((order[start:stop], column))

    def micro_batch(self, step: int, lane: int) -> BatchSpec:
        """As that of a `Plan`."""
        utterances, column = self.cuts[step]
        samples = change_length(self.split.samples[utterances], self.speeds[column])
        speeds = np.full(len(utterances), self.speeds[column], np.float32)
        return BatchSpec(step, 0, lane, utterances, speeds, samples)


def _check_room(
    writer: SidecarWriter, missing: Sequence[int], kept: CacheContents, spec: TeacherSpec, vocabulary: int
) -> None:
    """DataError when the disk has no room for the missing shards."""
    expected = expected_bytes(writer, missing, kept, spec, vocabulary)
    writer.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(writer.folder).free
    if expected > free:
        raise DataError(
            f"{writer.folder} needs about {expected / 1e9:.1f} GB for {len(missing)} shards, and the disk has "
            f"{free / 1e9:.1f} GB. Make room, choose another place with --out, or keep less: fewer layers in "
            "distill.hidden.layers, or a smaller distill.cache.top_tokens."
        )


def expected_bytes(
    writer: SidecarWriter, shards: Sequence[int], kept: CacheContents, spec: TeacherSpec, vocabulary: int
) -> float:
    """What some shards will take, by the lengths of recordings and transcripts."""
    bytes_per_token = 2 + (2 if vocabulary <= 2**16 else 4)
    posterior = 2 * vocabulary if kept.top_tokens >= vocabulary else kept.top_tokens * bytes_per_token + 2
    per_frame = 2 * spec.width * len(kept.layers) + posterior * kept.ctc
    fixed = MEMBER_BYTES + ARRAY_BYTES * (1 + len(kept.layers) + 3 * (kept.ctc + kept.decoder))
    expected, split = 0.0, writer.split
    for shard in shards:
        utterances = _chosen(writer, shard, kept)
        targets = split.text_length[utterances] + 2
        for speed in kept.speeds:
            frames = split.samples[utterances] / speed / split.sample_rate_hz / spec.frame_s
            expected += float((frames * per_frame + targets * posterior * kept.decoder + fixed).sum())
    return expected


def _report(
    teacher: str, writer: SidecarWriter, written: int, kept: CacheContents, left_out: Sequence[str]
) -> CacheReport:
    split = writer.split
    num_bytes = sum((writer.folder / name).stat().st_size for name in split.names)
    samples = sum(int(split.samples[_chosen(writer, shard, kept)].sum()) for shard in range(len(split.names)))
    seconds = sum(samples / split.sample_rate_hz / speed for speed in kept.speeds)
    return CacheReport(teacher, writer.folder, len(split.names), written, num_bytes, seconds, tuple(left_out))
