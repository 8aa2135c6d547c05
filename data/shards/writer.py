"""Shards: a split of a corpus as WebDataset tars with an index beside them.

A split is a folder: `shard-000000.tar` ... hold KEY.flac (16 bit, mono) and KEY.json of each utterance;
`index.npz` says where each utterance lies; `transcripts.jsonl` holds the texts in the same order;
`shards.json` lists the tars with their SHA-256. The same utterances, seed and sample rate give the same
bytes, whatever the number of workers. A split appears under its name only when it is whole. Refused, with a
`DataError`: writing over a split, two utterances with one key, and reading a split that is incomplete or of
another format.
"""

import hashlib
import io
import json
import logging
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data.audio import MIN_SPEECH_S, RejectedRow, Utterance, read_audio
from data.containers.members import Member
from data.errors import DataError
from data.seeds import derive_seed
from data.shards.cell_file import CellFile
from data.shards.index import (
    CHECKSUM,
    CHECKSUM_KIND,
    FORMAT,
    INDEX_COLUMNS,
    SUMMARY,
    ShardIndex,
    SplitReport,
    find_splits,
    read_index,
    read_report,
)
from data.shards.journal import JOURNAL, ShardJournal, WrittenShard, has_finished_shards
from data.shards.partial_folder import partial_folder
from data.thread_map import thread_map

__all__ = [
    "EmptySplitError",
    "OnProgress",
    "ShardIndex",
    "SplitReport",
    "SplitWriter",
    "find_splits",
    "fingerprint",
    "open_tar",
    "partial_folder",
    "read_index",
    "read_report",
    "write_split",
]

# Utterances decoded ahead of the writer, per worker: hides uneven lengths and bounds memory to megabytes.
AHEAD_PER_WORKER = 4

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]
"""Called with (split, utterances done, utterances in all) after each utterance."""


class EmptySplitError(DataError):
    """No utterance of a split could be decoded; `rejected` says why of each."""

    def __init__(self, message: str, rejected: list[RejectedRow]) -> None:
        super().__init__(message)
        self.rejected = rejected


def write_split(
    utterances: Iterable[Utterance],
    folder: Path,
    *,
    sample_rate_hz: int,
    shard_seconds: float,
    seed: int,
    workers: int = 1,
    on_progress: OnProgress | None = None,
    text_rules: dict[str, Any] | None = None,
) -> SplitReport:
    """Write a split into `folder`, shuffled by `seed`, with about `shard_seconds` of audio per shard.

    `workers` threads decode ahead. An utterance that cannot be decoded is skipped and reported, here and in
    shards.json. `text_rules`, under which the texts were normalised, and what the recordings were, are recorded too.
    Raises DataError when the folder is already in use, a key occurs twice, nothing could be decoded, or the disk
    refuses; nothing then appears under the name of `folder`. What was interrupted goes on behind its last shard.
    """
    # Sorted before they are shuffled, so that the order of the input does not matter.
    ordered = sorted(utterances, key=lambda utterance: utterance.key)
    for first, second in pairwise(ordered):
        if first.key == second.key:
            raise DataError(f"Two utterances of {folder.name} have the key {first.key}; keys must be unique.")
    generator = np.random.default_rng(derive_seed(seed, "shards", folder.name))
    shuffled = [ordered[position] for position in generator.permutation(len(ordered))]

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is already there; a split is never written over: choose another folder.")
    made_from = fingerprint(ordered, sample_rate_hz=sample_rate_hz, shard_seconds=shard_seconds, seed=seed)

    try:
        with partial_folder(folder, lambda path: has_finished_shards(path, made_from)) as unfinished:
            with ShardJournal(unfinished, made_from) as journal:
                writer = SplitWriter(unfinished, sample_rate_hz, shard_seconds)
                _write_shards(folder.name, shuffled, writer, journal, workers, on_progress)
            if len(journal.rejected) == len(shuffled):
                reason = "there are none."
                if journal.rejected:
                    reason = journal.rejected[0].reason
                message = f"None of {len(shuffled)} utterances of {folder.name} could be written. {reason}"
                raise EmptySplitError(message, journal.rejected)
            writer.write_summary(made_from, journal.rejected, text_rules)
            journal.sources.write(unfinished)
            _warn_of_clipping(folder, journal.clipped)
        # Under its name already: without its journal, a folder that is not would be begun anew after a kill.
        (folder / JOURNAL).unlink()
    except OSError as error:
        raise DataError(
            f"Writing {folder} failed ({error}); make room or choose another place, then repeat. Shards that are "
            "finished are kept for that."
        ) from error
    return read_report(folder)


def fingerprint(
    utterances: Iterable[Utterance],
    *,
    sample_rate_hz: int,
    shard_seconds: float,
    seed: int,
) -> str:
    """SHA-256 of what decides a split's bytes, except the audio files' content and folder."""
    settings = [FORMAT, sample_rate_hz, shard_seconds, seed]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for utterance in sorted(utterances, key=lambda utterance: utterance.key):
        clips: list[tuple[Any, ...]] = []
        for clip in utterance.clips:
            times: tuple[Any, ...] = (clip.path.name, clip.start_s, clip.seconds)
            # Without a channel as before there were any: splits that are there stay what they are.
            if clip.channel is not None or clip.member is not None:
                times = (*times, clip.channel)
            # Of a recording inside of another file, its name and place there.
            if isinstance(clip.member, Member):
                times = (*times, clip.member.name, clip.member.start)
            elif clip.member is not None:
                times = (*times, clip.member.name, clip.member.row_group, clip.member.row)
            clips.append(times)
        row = [
            utterance.key,
            clips,
            utterance.gaps_s,
            utterance.text,
            utterance.speaker,
            utterance.language,
        ]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Flac:
    """The encoded audio of one utterance, its number of samples, and how many of them were clipped at full scale."""

    content: bytes
    samples: int
    clipped: int = 0


def _encode(utterance: Utterance, sample_rate_hz: int) -> Flac | RejectedRow:
    try:
        waveform = read_audio(utterance, sample_rate_hz)
    except DataError as error:
        return RejectedRow(utterance.line, str(error), utterance.key)
    if len(waveform) < MIN_SPEECH_S * sample_rate_hz:
        reason = f"Utterance {utterance.key} lasts {len(waveform)} samples, less than one frame of {MIN_SPEECH_S} s"
        return RejectedRow(utterance.line, f"{reason}; it can hold no speech.", utterance.key)
    # Lossless, so that a corpus is coded once and loses nothing beyond 16 bits.
    stream = io.BytesIO()
    soundfile.write(stream, waveform, sample_rate_hz, format="FLAC", subtype="PCM_16")
    # Not scaled down: segments of one recording would come apart in loudness, and decoders of lossy files overshoot.
    num_clipped = int(np.count_nonzero(np.abs(waveform) > 1))
    return Flac(stream.getvalue(), len(waveform), num_clipped)


def _warn_of_clipping(folder: Path, clipped: dict[str, int]) -> None:
    if not clipped:
        return
    worst = max(clipped, key=lambda key: clipped[key])
    logger.warning(
        "%d utterances of %s have samples above full scale, %d in all, which were clipped; %s has most, %d. "
        "A few are usual in lossy files. Of many, lower the gain of the recording and prepare again.",
        len(clipped),
        folder.name,
        sum(clipped.values()),
        worst,
        clipped[worst],
    )


def _write_shards(
    split: str,
    utterances: list[Utterance],
    writer: "SplitWriter",
    journal: ShardJournal,
    workers: int,
    on_progress: OnProgress | None,
) -> None:
    """Write the utterances behind those that the journal has done."""
    writer.restore(journal.finished)
    if journal.finished:
        logger.warning(
            "%s: %d shards of an interrupted preparation are kept; it goes on behind utterance %d of %d.",
            split,
            len(journal.finished),
            journal.num_done,
            len(utterances),
        )

    def report_progress(part: str, done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(f"{split}{part}", done, total)

    cells = CellFile(writer.folder)

    def encode(utterance: Utterance) -> Flac | RejectedRow:
        # Before it is decoded: what changes afterwards is noticed.
        for clip in utterance.clips:
            journal.sources.add(clip.path)
        return _encode(cells.located(utterance), writer.sample_rate_hz)

    with writer:
        remaining = utterances[journal.num_done :]
        # Recordings in Parquet files are reached by groups only, and utterances come in another order.
        cells.fill(remaining, partial(report_progress, " (groups of Parquet)"))
        encoded = thread_map(encode, remaining, workers, AHEAD_PER_WORKER)
        for done, (utterance, flac) in enumerate(encoded, journal.num_done + 1):
            shard = None
            if isinstance(flac, Flac):
                if flac.clipped:
                    journal.clipped[utterance.key] = flac.clipped
                shard = writer.add(utterance, flac)
            else:
                journal.rejected.append(flac)
            if shard is not None:
                journal.append(shard, done)
            report_progress("", done, len(utterances))
        cells.remove()


class _HashedFile:
    """A binary file that is only written to, and the SHA-256 and size of what was written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        self.size += len(content)
        return self._file.write(content)

    def close(self) -> str:
        self._file.close()
        return self._digest.hexdigest()


class SplitWriter:
    """Appends utterances to the tars of one folder and keeps the index.

    Use it as a context; `write_summary` after it makes a split of what was added.
    """

    def __init__(self, folder: Path, sample_rate_hz: int, shard_seconds: float) -> None:
        self.folder = folder
        self.sample_rate_hz = sample_rate_hz
        self._shard_samples = shard_seconds * sample_rate_hz
        # Compact C arrays, not lists of Python integers: a corpus may have tens of millions of utterances.
        self._columns = {name: array("q") for name in INDEX_COLUMNS}
        self._checksums = array("q")
        self._shards: list[dict[str, Any]] = []
        self._open_shard: tuple[_HashedFile, Any] | None = None
        self._num_utterances = 0
        self._num_samples = 0
        self._transcripts_bytes = 0

    def restore(self, shards: Iterable[WrittenShard]) -> None:
        """Go on behind shards that an interrupted writer left in the folder."""
        for shard in shards:
            self._shards.append(shard.entry)
            for name, column in self._columns.items():
                column.extend(shard.columns[name])
            self._checksums.extend(shard.columns[CHECKSUM])
            self._transcripts_bytes = shard.transcripts_bytes

    def __enter__(self) -> "SplitWriter":
        self._transcripts = (self.folder / "transcripts.jsonl").open("ab")
        # Those of a shard that was not finished.
        self._transcripts.truncate(self._transcripts_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        self._close_shard()
        self._transcripts.close()

    def add(self, utterance: Utterance, flac: Flac) -> WrittenShard | None:
        """Append an utterance, of whose clips nothing is read: its audio is that of `flac`. Returns the shard that it
        completes, None when it completes none."""
        if self._open_shard is None:
            file = _HashedFile(self.folder / _shard_name(len(self._shards)))
            self._open_shard = (file, open_tar(file))
        _, tar = self._open_shard

        labels = {"text": utterance.text, "speaker": utterance.speaker, "language": utterance.language}
        member = _json({**labels, "seconds": flac.samples / self.sample_rate_hz})
        offset = tar.tarstream.offset
        tar.write({"__key__": utterance.key, "flac": flac.content, "json": member.encode()})

        self._columns["shard"].append(len(self._shards))
        self._columns["offset"].append(offset)
        self._columns["size"].append(tar.tarstream.offset - offset)
        self._columns["samples"].append(flac.samples)
        self._columns["text_length"].append(len(utterance.text))
        self._checksums.append(zlib.crc32(member.encode(), zlib.crc32(flac.content)))
        transcript = _json({"key": utterance.key, **labels}) + "\n"
        self._transcripts.write(transcript.encode())
        self._transcripts_bytes += len(transcript.encode())

        self._num_utterances += 1
        self._num_samples += flac.samples
        if self._num_samples < self._shard_samples:
            return None
        first_row = len(self._checksums) - self._num_utterances
        self._close_shard()
        self._transcripts.flush()
        columns = {name: column[first_row:].tolist() for name, column in self._columns.items()}
        columns[CHECKSUM] = self._checksums[first_row:].tolist()
        return WrittenShard(self._shards[-1], columns, self._transcripts_bytes)

    def _close_shard(self) -> None:
        if self._open_shard is None:
            return
        file, tar = self._open_shard
        # Closing the tar writes its end, which belongs to the digest.
        tar.close()
        self._shards.append(
            {
                "name": _shard_name(len(self._shards)),
                "utterances": self._num_utterances,
                "seconds": self._num_samples / self.sample_rate_hz,
                "sha256": file.close(),
                "bytes": file.size,
            }
        )
        self._open_shard = None
        self._num_utterances = 0
        self._num_samples = 0

    def write_summary(
        self,
        made_from: str,
        rejected: list[RejectedRow],
        text_rules: dict[str, Any] | None,
        lineage: dict[str, Any] | None = None,
    ) -> None:
        """Write the index and shards.json. `lineage` says of what other shards these were made, and how."""
        columns: dict[str, np.ndarray] = {}
        for name, kind in INDEX_COLUMNS.items():
            columns[name] = np.array(self._columns[name], kind)
        columns[CHECKSUM] = np.array(self._checksums, CHECKSUM_KIND)
        np.savez(self.folder / "index.npz", allow_pickle=False, **columns)
        summary = {
            "format": FORMAT,
            "sample_rate_hz": self.sample_rate_hz,
            "made_from": made_from,
            "shards": self._shards,
            # Named one by one: readers of earlier versions know no other fields.
            "rejected": [{"line": row.line, "reason": row.reason, "key": row.key} for row in rejected],
        }
        if text_rules is not None:
            summary["text_rules"] = text_rules
        if lineage is not None:
            summary["lineage"] = lineage
        content = json.dumps(summary, ensure_ascii=False, indent=1)
        (self.folder / SUMMARY).write_text(content, encoding="utf-8")


def open_tar(file: Any) -> Any:
    """A WebDataset writer of tars into an open binary file; the same members give the same bytes."""
    # Imported here because it imports torch: seconds for a command that only reads a configuration.
    from webdataset.writer import TarWriter

    # By default a member has the writing user as its owner and the present time.
    return TarWriter(file, user="chorus", group="chorus", mtime=0, compress=False)


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)
