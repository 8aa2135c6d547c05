"""One pass over a split: every utterance is read, decoded, compared with the records, and measured.

What cannot be read becomes a finding and does not end the pass. Memory: about 100 bytes per utterance beside its row
of transcripts.jsonl; the audio of `workers` utterances at a time.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.files import file_sha256
from data.shard_tools.findings import Finding, Item, collect
from data.shards.index import ShardIndex, read_index, read_summary
from data.shards.reader import ShardReader, UtteranceError
from data.thread_map import thread_map

Floats = npt.NDArray[np.float64]

# Frames of this length are speech or not.
FRAME_S = 0.025
# A frame this much quieter than the loudest one is a pause: speech spans some 30 dB (Fletcher, 1953).
PAUSE_DB = -35.0
# What never comes above it is no speech: 16 bits reach down to -96 dB, rooms and microphones to about -70.
SILENCE_DB = -60.0
# Fewer equal samples in a row at the highest or lowest value are no flat top: quantised waves have two.
FLAT_SAMPLES = 3
# Quiet waves of a few steps are flat at their tops too.
MIN_CLIPPED_PEAK = 0.1
# Clipping piles samples up at the highest value: so many times those of the value below.
PILE_UP = 3
# Utterances read ahead of the consumer, per worker.
AHEAD_PER_WORKER = 8

OnProgress = Callable[[str, int, int], None]
"""Called with (split, utterances done, utterances in all) after each utterance."""


@dataclass(frozen=True)
class Measures:
    """What was measured of the audio of one utterance.

    seconds: its length. speech_s: of its frames that are no pause. loudest_db: the level of its loudest frame, over
    full scale. flat_tops: how many stretches of equal samples lie at its highest or lowest value. digest: of its
    samples, without what is constant at both ends.
    """

    seconds: float
    speech_s: float
    loudest_db: float
    flat_tops: int
    digest: int


@dataclass(frozen=True)
class Row:
    """What transcripts.jsonl says of an utterance."""

    key: str
    text: str
    speaker: str
    language: str


@dataclass
class Survey:
    """A split as it was read; `measures` has None for utterances that could not be."""

    split: str
    index: ShardIndex | None = None
    rows: list[Row] = field(default_factory=list)
    measures: list[Measures | None] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def measured(self) -> Iterator[tuple[Row, Measures]]:
        """The utterances that could be read."""
        for row, measures in zip(self.rows, self.measures, strict=True):
            if measures is not None:
                yield row, measures


def survey(folder: Path, workers: int = 1, on_progress: OnProgress | None = None) -> Survey:
    """Read a whole split. Whatever is broken of it is among the findings; raises nothing for it."""
    result = Survey(folder.name)
    try:
        index = read_index(folder, check_shards=False)
        summary = read_summary(folder)
        for row in index.rows():
            # Thousands of rows share a speaker.
            speaker = sys.intern(row["speaker"])
            language = sys.intern(row["language"])
            result.rows.append(Row(row["key"], row["text"], speaker, language))
    except DataError as error:
        result.rows.clear()
        result.findings = collect("records", folder.name, [Item((), str(error))])
        return result

    result.index = index
    if len(index) == 0:
        result.findings += collect("records", folder.name, [Item((), f"{folder} has no utterance")])
    result.findings += _check_files(folder, index, summary["shards"], result.rows)
    unreadable: list[Item] = []
    mismatched: list[Item] = []
    # Once: a folder on this machine either answers or does not.
    reader = ShardReader(index, attempts=1)

    def read(utterance: int) -> Measures | _Problem:
        return _read(reader, utterance, result.rows[utterance])

    readings = thread_map(read, range(len(index)), workers, AHEAD_PER_WORKER)
    for done, (utterance, reading) in enumerate(readings, 1):
        key = result.rows[utterance].key
        place = f"{index.shard_name(utterance)}: {key}"
        if isinstance(reading, Measures):
            result.measures.append(reading)
        else:
            result.measures.append(None)
            case = Item((key,), f"{place}: {reading.reason}")
            if reading.is_another:
                mismatched.append(case)
            else:
                unreadable.append(case)
        if on_progress is not None:
            on_progress(folder.name, done, len(index))
    result.findings += collect("unreadable", folder.name, unreadable)
    result.findings += collect("mismatch", folder.name, mismatched)
    result.findings += collect("duplicate-key", folder.name, _repeated_keys(result.rows))
    return result


def _check_files(folder: Path, index: ShardIndex, shards: list[dict[str, Any]], rows: list[Row]) -> list[Finding]:
    """The shards that are missing, or are not the files that were written."""
    keys_of_shard: dict[str, list[str]] = {name: [] for name in index.names}
    for utterance, row in enumerate(rows):
        keys_of_shard[index.shard_name(utterance)].append(row.key)

    truncated: list[Item] = []
    changed: list[Item] = []
    for shard in shards:
        path = folder / shard["name"]
        keys = tuple(keys_of_shard[path.name])
        if not path.is_file():
            truncated.append(Item(keys, f"{path.name} is missing"))
            continue
        num_bytes = path.stat().st_size
        # The size first: it is known at once, and the digest of a file that was cut off says no more.
        if num_bytes != shard["bytes"]:
            truncated.append(Item(keys, f"{path.name} should have {shard['bytes']} bytes and has {num_bytes}"))
        elif file_sha256(path) != shard["sha256"]:
            changed.append(Item(keys, f"{path.name}: the SHA-256 is not the recorded one"))
    findings = collect("truncated", folder.name, truncated)
    findings += collect("checksum", folder.name, changed)
    return findings


def _repeated_keys(rows: list[Row]) -> list[Item]:
    seen: set[str] = set()
    items: list[Item] = []
    for row in rows:
        if row.key in seen:
            items.append(Item((row.key,), f"{row.key} is not the first of its name"))
        seen.add(row.key)
    return items


@dataclass(frozen=True)
class _Problem:
    """Why an utterance is not usable; `is_another` where it is whole and not the one that was expected."""

    reason: str
    is_another: bool = False


def _read(reader: ShardReader, utterance: int, row: Row) -> Measures | _Problem:
    try:
        example = reader.read(utterance)
    except UtteranceError as error:
        return _Problem(error.reason)
    if example.key != row.key:
        return _Problem(f"its bytes are those of {example.key}", is_another=True)
    for name in ("text", "speaker", "language"):
        if getattr(example, name) != getattr(row, name):
            return _Problem(f"its {name} is not that of transcripts.jsonl", is_another=True)
    if len(row.text) != reader.index.text_length[utterance]:
        return _Problem("the length of its text in the index is not that in transcripts.jsonl", is_another=True)
    return measure(example.waveform, reader.index.sample_rate_hz)


def measure(waveform: npt.NDArray[np.float32], sample_rate_hz: int) -> Measures:
    """Measure a waveform [S] of at least one sample."""
    frame = max(1, round(FRAME_S * sample_rate_hz))
    # What is shorter than a frame is one.
    num_frames = max(1, len(waveform) // frame)
    frames = waveform[: num_frames * frame].reshape(num_frames, -1)
    power = np.mean(frames.astype(np.float64) ** 2, axis=1)
    level = np.sqrt(power)
    loudest = float(level.max())
    loudest_db = -np.inf
    if loudest > 0:
        loudest_db = 20 * np.log10(loudest)
    pause_db = max(loudest_db + PAUSE_DB, SILENCE_DB)
    num_speech = int(np.count_nonzero(level > 10 ** (pause_db / 20)))

    # Silence put before or behind a recording does not make it another one.
    sounding = np.trim_zeros(waveform)
    digest = hashlib.blake2b(sounding.tobytes(), digest_size=8).digest()
    seconds = len(waveform) / sample_rate_hz
    highest = _count_flat_tops(waveform)
    lowest = _count_flat_tops(-waveform)
    return Measures(
        seconds=seconds,
        speech_s=min(num_speech * FRAME_S, seconds),
        loudest_db=float(loudest_db),
        flat_tops=highest + lowest,
        digest=int.from_bytes(digest, "big"),
    )


def _count_flat_tops(waveform: npt.NDArray[np.float32]) -> int:
    """How many stretches of a waveform were cut off at its highest value."""
    highest = waveform.max()
    if highest < MIN_CLIPPED_PEAK:
        return 0
    is_highest = waveform == highest
    # Telephone codecs have so few loud values that a whole wave has flat tops: then the second of them is as frequent.
    below = waveform[~is_highest]
    if len(below):
        num_highest = np.count_nonzero(is_highest)
        num_second = np.count_nonzero(below == below.max())
        if num_highest < PILE_UP * num_second:
            return 0
    # An edge before the first sample and behind the last, so that each stretch has two.
    edges = np.flatnonzero(np.diff(is_highest, prepend=False, append=False))
    lengths = edges[1::2] - edges[::2]
    return int(np.count_nonzero(lengths >= FLAT_SAMPLES))
