"""Stores the outputs of a stage's teachers: each runs once over the train split at every speed, shard by shard.

Run again after a kill, it goes on with the shards that are missing; when none is, it does nothing. Refused: a teacher
whose input changes from step to step, one that is not finished, and a disk without room.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.loader import Loader
from data.sampling.sampler import BatchesConfig, BatchSampler, BatchSpec, change_length, cut_batches
from data.shards.index import ShardIndex
from data.shards.sidecars import Arrays, SidecarWriter, find_broken, open_sidecars
from launcher.devices import recognition_device
from launcher.errors import ConfigError
from launcher.formatting import duration
from launcher.monitoring.progress import Display
from launcher.recipe import DistillStage, TeacherConfig
from launcher.recipe.teachers import TeacherSpec, check_teacher, why_no_cache
from launcher.stages.context import StageContext
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
from launcher.training.teachers.teacher import Teacher, run_teacher

# Names, checksums and padding of one member of a tar, and of one array in it.
MEMBER_BYTES = 1536
ARRAY_BYTES = 384
# Log probabilities and states are fp16.
FLOAT_BYTES = 2


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
    unreadable: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return {
            "teacher": self.teacher,
            "folder": str(self.folder),
            "shards": self.shards,
            "written": self.written,
            "bytes": self.bytes,
            "audio_s": round(self.seconds, 3),
            "left_out": list(self.unreadable),
        }

    def describe(self) -> str:
        done = "nothing to do"
        if self.written:
            done = f"{self.written} of {self.shards} shards written"
        skipped = ""
        if self.unreadable:
            skipped = f"; skipped, not readable: {', '.join(self.unreadable)}"
        return (
            f"{self.teacher}: {done}, {self.bytes / 1e6:.1f} MB for {duration(self.seconds)} of audio at all speeds, "
            f"in {self.folder}{skipped}"
        )


@dataclass(frozen=True)
class _PlannedCache:
    """A teacher, and the description of the cache that is to hold its outputs."""

    config: TeacherConfig
    spec: TeacherSpec
    description: CacheDescription


def cache_teachers(
    context: StageContext[DistillStage],
    root: Path,
    display: Display,
    verify: bool = False,
) -> list[CacheReport]:
    """Store the outputs of every teacher of a stage in folders of `root`. With `verify` what is there is read first,
    and a shard that holds something broken is stored anew."""
    # All teachers are checked before the first one runs, which may take hours.
    planned: list[_PlannedCache] = []
    for teacher in context.stage.named_teachers:
        spec = spec_of(context, teacher)
        check_teacher(context.recipe, context.stage, teacher, spec)
        reason = why_no_cache(context.recipe, context.stage, teacher, spec)
        if reason:
            raise ConfigError(
                f"The outputs of teacher {teacher.name} of stage {context.name} cannot be stored: {reason}."
            )
        description = describe(context, teacher, spec)
        planned.append(_PlannedCache(teacher, spec, description))

    device = recognition_device()
    inputs = open_inputs(context, "train", (), device)
    reports: list[CacheReport] = []
    for cache in planned:
        report = _store(context, cache, inputs, root, display, verify)
        context.run.append_event("teacher_cached", stage=context.name, **report.as_dict())
        reports.append(report)
    return reports


def _store(
    context: StageContext[DistillStage],
    cache: _PlannedCache,
    inputs: Inputs,
    root: Path,
    display: Display,
    verify: bool,
) -> CacheReport:
    """Store the outputs of one teacher, as far as they are missing."""
    description = cache.description
    contents = description.contents
    folder = root / description.folder_name
    index = inputs.loader.reader.index
    # A mixture of several corpora is refused before.
    assert isinstance(index, ShardIndex)
    writer = SidecarWriter(index, folder, contents.speeds)
    missing = writer.missing()
    # Only a finished cache has an index to read it by.
    if verify and not missing:
        missing = find_broken(open_sidecars(folder, writer.split))

    unreadable: list[str] = []
    if missing or read_description(folder) is None:
        tokenizer = inputs.loader.tokenizer
        assert tokenizer is not None
        _check_room(writer, missing, contents, cache.spec, tokenizer.vocabulary_size)
        teacher = load_teacher(context.run, cache.config, cache.spec, tokenizer.pieces, inputs.device)
        check_tokens(context.stage, cache.config, teacher, len(tokenizer.pieces))
        # Only the loaded teacher knows these two.
        loaded = {"same_tokens": teacher.same_tokens, "has_decoder": teacher.has_decoder}
        write_description(folder, description.model_copy(update=loaded))
        # One step: the display counts utterances.
        display.begin(f"cache of {description.name}", 1)
        try:
            unreadable = _write(writer, missing, teacher, description, inputs, display)
        finally:
            display.end()
    writer.finish()

    split = writer.split
    num_samples = 0
    num_bytes = 0
    for shard, name in enumerate(split.names):
        utterances = _cached_utterances(writer, shard, contents)
        num_samples += int(split.samples[utterances].sum())
        num_bytes += (folder / name).stat().st_size
    seconds = sum(num_samples / split.sample_rate_hz / speed for speed in contents.speeds)
    return CacheReport(
        teacher=description.name,
        folder=folder,
        shards=len(split.names),
        written=len(missing),
        bytes=num_bytes,
        seconds=seconds,
        unreadable=tuple(unreadable),
    )


def _write(
    writer: SidecarWriter,
    missing: Sequence[int],
    teacher: Teacher,
    description: CacheDescription,
    inputs: Inputs,
    display: Display,
) -> list[str]:
    """Write the missing shards; returns the keys of utterances whose recordings could not be read."""
    split = writer.split
    contents = description.contents
    autocast = description.inputs.precision == "bf16"
    num_utterances = 0
    for shard in missing:
        num_utterances += len(_cached_utterances(writer, shard, contents))
    total = num_utterances * len(contents.speeds)
    done = 0
    unreadable: list[str] = []

    # Keys are read in the order of the index: those of shards that are there are passed over.
    all_keys = split.keys()
    for shard in range(len(split.names)):
        keys = list(islice(all_keys, len(writer.utterances(shard))))
        if shard not in missing:
            continue
        row_of_key = {key: row for row, key in enumerate(keys)}
        members: dict[tuple[int, int], Arrays] = {}

        utterances = _cached_utterances(writer, shard, contents)
        sampler = _ShardSampler(split, utterances, contents.speeds, inputs.sampler.batches)
        loader = inputs.loader
        # Of a sampler a loader uses `micro_batch` alone.
        shard_loader = Loader(
            cast(BatchSampler, sampler),
            loader.reader,
            loader.tokenizer,
            lanes=(0,),
            workers=loader.workers,
            connections=loader.connections,
            max_broken_ratio=loader.max_broken_ratio,
        )
        shard_inputs = replace(inputs, loader=shard_loader, keeps_source=teacher.needs_source)
        steps = shard_loader.steps(0, len(sampler.batches))
        for (batch,), (_, column) in zip(steps, sampler.batches, strict=True):
            if batch.keys:
                feature_batch = shard_inputs.micro_batch(batch)
                output = run_teacher(teacher, feature_batch, autocast)
                stored = compact(output, feature_batch.token_lengths_B, contents)
                for key, arrays in zip(batch.keys, stored, strict=True):
                    members[row_of_key[key], column] = arrays
            # An utterance that cannot be read fails at every speed, and is named once.
            unreadable += [key for key in batch.quarantined if key not in unreadable]
            done += len(batch.keys) + len(batch.quarantined)
            display.count("utterances of train at all speeds", done, total)

        try:
            writer.write(shard, keys, members)
        except OSError as error:
            raise DataError(
                f"Writing to {writer.folder} failed ({error}). Make room or choose another place with --out, then "
                "give the same command: it goes on where it was."
            ) from error
    return unreadable


class _ShardSampler:
    """The utterances of one shard at one speed after the other, longest first, as micro-batches of a lane 0."""

    def __init__(
        self,
        split: ShardIndex,
        utterances: npt.NDArray[np.int64],
        speeds: Sequence[float],
        batches: BatchesConfig,
    ):
        self.split = split
        self.speeds = speeds
        # Each micro-batch: its utterances, and the position of its speed.
        self.batches: list[tuple[npt.NDArray[np.int64], int]] = []
        # Longest first: like lengths share a batch, and one that does not fit the memory fails at once.
        longest_first = np.argsort(-split.samples[utterances], kind="stable")
        order = utterances[longest_first]
        for column, speed in enumerate(speeds):
            samples = change_length(split.samples[order], speed)
            bounds = cut_batches(batches.capacity(samples, split.sample_rate_hz))
            for start, stop in pairwise(bounds):
                self.batches.append((order[start:stop], column))

    def micro_batch(self, step: int, lane: int) -> BatchSpec:
        """As that of a `BatchSampler`."""
        utterances, column = self.batches[step]
        speed = self.speeds[column]
        return BatchSpec(
            step=step,
            epoch=0,
            lane=lane,
            utterances=utterances,
            speeds=np.full(len(utterances), speed, np.float32),
            samples=change_length(self.split.samples[utterances], speed),
        )


def _cached_utterances(writer: SidecarWriter, shard: int, contents: CacheContents) -> npt.NDArray[np.int64]:
    """The utterances of a shard that a cache holds: those with a transcript, and of a length within its bounds."""
    split = writer.split
    positions = writer.utterances(shard)
    utterances = np.arange(positions.start, positions.stop)
    seconds = split.samples[utterances] / split.sample_rate_hz
    fits = (seconds >= contents.min_utterance_s) & (seconds <= contents.max_utterance_s)
    transcribed = split.text_length[utterances] > 0
    return utterances[fits & transcribed]


def _check_room(
    writer: SidecarWriter,
    missing: Sequence[int],
    contents: CacheContents,
    spec: TeacherSpec,
    vocabulary: int,
) -> None:
    """DataError when the disk has no room for the missing shards."""
    expected = expected_bytes(writer, missing, contents, spec, vocabulary)
    writer.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(writer.folder).free
    if expected > free:
        raise DataError(
            f"{writer.folder} needs about {expected / 1e9:.1f} GB for {len(missing)} shards, and the disk has "
            f"{free / 1e9:.1f} GB. Make room, choose another place with --out, or keep less: fewer layers in "
            "distill.hidden.layers, or a smaller distill.cache.top_tokens."
        )


def expected_bytes(
    writer: SidecarWriter,
    shards: Sequence[int],
    contents: CacheContents,
    spec: TeacherSpec,
    vocabulary: int,
) -> float:
    """What some shards will take, by the lengths of recordings and transcripts."""
    # The arrays are those of cache_codec.py.
    if contents.top_tokens >= vocabulary:
        bytes_per_posterior = FLOAT_BYTES * vocabulary
    else:
        token_bytes = 2 if vocabulary <= 2**16 else 4
        bytes_per_posterior = contents.top_tokens * (FLOAT_BYTES + token_bytes) + FLOAT_BYTES
    bytes_per_frame = FLOAT_BYTES * spec.width * len(contents.layers)
    bytes_per_target = 0
    num_arrays = 1 + len(contents.layers)
    if contents.ctc:
        bytes_per_frame += bytes_per_posterior
        num_arrays += 3
    if contents.decoder:
        bytes_per_target = bytes_per_posterior
        num_arrays += 3
    overhead = MEMBER_BYTES + ARRAY_BYTES * num_arrays

    split = writer.split
    expected = 0.0
    for shard in shards:
        utterances = _cached_utterances(writer, shard, contents)
        # Characters stand for tokens: at most one each, one for the start of the first word, and the end.
        targets = split.text_length[utterances] + 2
        for speed in contents.speeds:
            seconds = split.samples[utterances] / speed / split.sample_rate_hz
            frames = seconds / spec.frame_s
            member_bytes = frames * bytes_per_frame + targets * bytes_per_target + overhead
            expected += float(member_bytes.sum())
    return expected
