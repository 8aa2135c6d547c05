"""Sets of recordings that augmentation draws from: noise, voices and impulse responses.

A set is a split of shards, at the rate of the features, or a folder of audio files of any rate. Both are read in any
order, from several threads. What is refused (`DataError`): a set that is not there, has no recording in it, or has
shards of another rate.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr

from data.augmentation.convolution import Waveform
from data.augmentation.draws import Draws
from data.augmentation.noise import cut_or_repeat
from data.containers import AudioError
from data.errors import DataError
from data.recordings import read_recording
from data.remote.settings import StorageConfig
from data.shards.index import SUMMARY, is_url, read_index, read_summary
from data.shards.reader import Example, ShardReader

# Far above the 16-bit numbers that some write as floats, and far below where powers and spectra leave float32.
MAX_PEAK = 1e6
# What is taken for audio in a folder, which may hold lists and licences too.
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph", ".w64", ".caf", ".g722")


class RecordingSet(Protocol):
    """Recordings by their number, each cut to what is asked for."""

    def __len__(self) -> int: ...

    def read(
        self,
        number: int,
        draws: Draws,
        name: str,
        num_samples: int,
    ) -> Waveform:
        """So many samples of a recording from a place drawn under a name: float32 [num_samples]. One that is shorter is
        repeated. DataError when it cannot be read."""
        ...

    def read_beginning(self, number: int, max_samples: int) -> Waveform:
        """A recording from its beginning, cut off where it is longer: float32 [S]. DataError as above."""
        ...


class UtteranceReader(Protocol):
    """Whatever reads utterances by their number, as a `ShardReader` does."""

    def read(self, utterance: int) -> Example: ...


class ShardSet:
    """So many utterances of shards, which are read whole."""

    def __init__(self, reader: UtteranceReader, num_utterances: int):
        self.reader = reader
        self.num_utterances = num_utterances

    def __len__(self) -> int:
        return self.num_utterances

    def read(
        self,
        number: int,
        draws: Draws,
        name: str,
        num_samples: int,
    ) -> Waveform:
        waveform = self.reader.read(number).waveform
        return _cut(waveform, draws, name, num_samples)

    def read_beginning(self, number: int, max_samples: int) -> Waveform:
        return self.reader.read(number).waveform[:max_samples]


class FolderSet:
    """The audio files below a folder, in the order of their names; of channels the mean. Only what is asked for is
    decoded."""

    def __init__(self, folder: Path, sample_rate_hz: int):
        self.folder = folder
        self.sample_rate_hz = sample_rate_hz
        self.files = audio_files(folder)

    def __len__(self) -> int:
        return len(self.files)

    def read(
        self,
        number: int,
        draws: Draws,
        name: str,
        num_samples: int,
    ) -> Waveform:
        try:
            recording = read_recording(self.files[number])
            needed = math.ceil(num_samples * recording.sample_rate_hz / self.sample_rate_hz)
            # A short one is read whole, and repeated from a place in it.
            start = draws.below(name, max(1, recording.num_samples - needed))
            if recording.num_samples < needed:
                waveform = self._decode(number, 0, recording.num_samples)
                return _cut(waveform, draws, name, num_samples)
            return cut_or_repeat(self._decode(number, start, needed), 0, num_samples)
        except AudioError as error:
            raise DataError(f"{error}.") from error

    def read_beginning(self, number: int, max_samples: int) -> Waveform:
        try:
            recording = read_recording(self.files[number])
            most = math.ceil(max_samples * recording.sample_rate_hz / self.sample_rate_hz)
            return self._decode(number, 0, min(most, recording.num_samples))[:max_samples]
        except AudioError as error:
            raise DataError(f"{error}.") from error

    def _decode(
        self,
        number: int,
        start: int,
        num_samples: int,
    ) -> Waveform:
        recording = read_recording(self.files[number])
        blocks = [block.mean(axis=1) for block in recording.read(start, num_samples)]
        if not blocks:
            raise AudioError(f"{recording.path} holds no samples")
        waveform = np.concatenate(blocks)
        if recording.sample_rate_hz != self.sample_rate_hz:
            waveform = soxr.resample(waveform, recording.sample_rate_hz, self.sample_rate_hz, quality="HQ")
        if len(waveform) == 0:
            raise AudioError(f"{recording.path} holds no sample at {self.sample_rate_hz} Hz")
        # A file of floats may hold anything, and one NaN in a batch costs the step. NaN fails the comparison.
        if not np.abs(waveform).max() <= MAX_PEAK:
            raise AudioError(f"{recording.path} holds samples that are no level of sound: NaN, or beyond {MAX_PEAK:g}")
        return waveform.astype(np.float32, copy=False)


def open_recordings(path: str, sample_rate_hz: int, storage: StorageConfig | None = None) -> RecordingSet:
    """The set at a path or URL, which is read as `storage` says. DataError when there is none or it does not fit."""
    check_recordings(path, sample_rate_hz)
    if is_shards(path):
        index = read_index(path)
        return ShardSet(ShardReader(index, storage), len(index))
    return FolderSet(Path(path), sample_rate_hz)


def is_shards(path: str) -> bool:
    """Whether a set is a split of shards, as whatever lies behind a URL is; else it is a folder of audio files."""
    return is_url(path) or (Path(path) / SUMMARY).exists()


def check_recordings(path: str, sample_rate_hz: int) -> None:
    """Refuse (DataError) a set that is not there, has no recording, or has another rate. Nothing is decoded."""
    if not is_shards(path):
        check_folder(Path(path))
        return
    summary = read_summary(path)
    if sum(shard["utterances"] for shard in summary["shards"]) == 0:
        raise DataError(f"The shards at {path} hold no recording. Name others.")
    if summary["sample_rate_hz"] != sample_rate_hz:
        raise DataError(
            f"The shards at {path} have {summary['sample_rate_hz']} Hz, and features.sample_rate_hz is "
            f"{sample_rate_hz}. Prepare them at that rate, or name the folder of the audio files, which are resampled "
            "as they are read."
        )


def recordings_identity(path: str) -> list[object] | None:
    """What the content of a set follows from, as a JSON value; None where it is not there.

    Shards are told by their checksums, audio files by their names and sizes: a folder of them may hold terabytes.
    """
    if is_shards(path):
        try:
            return [shard["sha256"] for shard in read_summary(path)["shards"]]
        except DataError:
            return None
    folder = Path(path)
    if not folder.is_dir():
        return None
    return [[str(file.relative_to(folder)), file.stat().st_size] for file in audio_files(folder)]


def check_folder(folder: Path) -> None:
    """Refuse (DataError) a folder that is not there, or in which nothing is taken for audio."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is no folder. Name one of shards or of audio files that is there; a relative path counts from "
            "the folder that chorus is started in."
        )
    if audio_files(folder):
        return
    splits = sorted(path.parent.name for path in folder.glob(f"*/{SUMMARY}"))
    if splits:
        raise DataError(
            f"{folder} holds the splits {', '.join(splits)}. Name one of them, such as {folder / splits[0]}."
        )
    raise DataError(
        f"{folder} holds neither shards nor audio files (by their endings: {', '.join(AUDIO_SUFFIXES)}). Name a folder "
        "that does."
    )


def audio_files(folder: Path) -> list[Path]:
    """The files below a folder whose endings are those of audio, sorted: a file system lists in any order."""
    files: list[Path] = []
    for path in folder.rglob("*"):
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
            files.append(path)
    # By parts relative to the folder, so that another place or an upper-case name changes nothing on another machine.
    return sorted(files, key=lambda path: path.relative_to(folder).parts)


def _cut(
    waveform: Waveform,
    draws: Draws,
    name: str,
    num_samples: int,
) -> Waveform:
    """So many samples from a drawn place; of a waveform that is long enough, without going around its end."""
    if len(waveform) > num_samples:
        start = draws.below(name, len(waveform) - num_samples + 1)
        return waveform[start : start + num_samples]
    return cut_or_repeat(waveform, draws.below(name, len(waveform)), num_samples)
