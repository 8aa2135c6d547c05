"""Recordings: what an utterance is, and its samples read from any file that libsndfile knows."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from data.errors import DataError

# Manifests round times to hundredths of a second; a clip may pass the end of its file by this much.
END_TOLERANCE_S = 0.02


# Lossy codecs overshoot full scale a little; floats beyond this were never scaled to [-1, 1].
PEAK_LIMIT = 2.0


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of an audio file: from `start_s` for `seconds`, or to its end when that is None."""

    path: Path
    start_s: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording with its text; several clips are joined with `gaps_s` seconds of silence between them.

    `key` is unique in its corpus and made of letters, digits, `_` and `-`: it names files in a tar, where
    WebDataset takes a dot as the end of the key. `line` is the manifest's line, 0 when there is none.
    """

    key: str
    clips: tuple[Clip, ...]
    text: str
    split: str
    speaker: str = ""
    language: str = ""
    gaps_s: tuple[float, ...] = ()
    line: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.key):
            raise ValueError(f"utterance key {self.key!r} has characters other than letters, digits, _ and -")
        if not self.clips or len(self.gaps_s) != len(self.clips) - 1:
            raise ValueError(f"utterance {self.key}: {len(self.clips)} clips with {len(self.gaps_s)} gaps")


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """What could not be used and why; `line` is that of the manifest (0: none), `key` is empty if unknown."""

    line: int
    reason: str
    key: str = ""


def read_audio(utterance: Utterance, sample_rate_hz: int) -> np.ndarray:
    """Decode an utterance: float32 [samples] in about [-1, 1], channels averaged, at the given rate.

    Each clip is reached by seeking in a freshly opened file, so the result does not depend on what was read
    before. Raises DataError when a file is missing, unreadable, shorter than the clip, or holds no usable
    samples.
    """
    pieces: list[np.ndarray] = []
    for clip, gap_s in zip(utterance.clips, (*utterance.gaps_s, 0.0), strict=True):
        try:
            pieces.append(_read_clip(clip, sample_rate_hz))
        except _UnusableError as error:
            raise DataError(f"Utterance {utterance.key} cannot be read: {error}.") from error
        pieces.append(np.zeros(round(gap_s * sample_rate_hz), np.float32))
    return np.concatenate(pieces)


def audio_seconds(path: Path) -> float:
    """The length of an audio file, from its header. Raises DataError when it is missing or no audio."""
    try:
        return _audio_seconds(path)
    except _UnusableError as error:
        raise DataError(f"{error}; put a readable recording there or take it out of the corpus.") from error


class _UnusableError(Exception):
    """The reason why one row or one clip cannot be used."""


def _audio_seconds(path: Path) -> float:
    if not path.is_file():
        raise _UnusableError(f"there is no audio file {path}")
    try:
        header = soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise _UnusableError(f"{path} is not readable as audio ({error})") from error
    return header.frames / header.samplerate


def _read_clip(clip: Clip, sample_rate_hz: int) -> np.ndarray:
    if not clip.path.is_file():
        raise _UnusableError(f"there is no audio file {clip.path}")
    try:
        with soundfile.SoundFile(clip.path) as audio:
            source_rate_hz = audio.samplerate
            _check_times(clip, audio.frames / source_rate_hz)
            start = round(clip.start_s * source_rate_hz)
            wanted = audio.frames - start
            if clip.seconds is not None:
                wanted = min(wanted, round(clip.seconds * source_rate_hz))
            if start:
                audio.seek(start)
            samples = audio.read(wanted, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise _UnusableError(f"{clip.path} is damaged or no audio ({error})") from error
    if len(samples) < wanted:
        raise _UnusableError(f"{clip.path} breaks off: {len(samples)} of {wanted} samples could be decoded")
    mono = samples.mean(axis=1)
    peak = np.abs(mono).max(initial=0.0)
    if not len(mono) or not peak <= PEAK_LIMIT:
        raise _UnusableError(f"{clip.path} gives {len(mono)} samples with a peak of {peak}, expected some up to 1")
    if source_rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, source_rate_hz, sample_rate_hz, quality="HQ")
    return mono


def _check_times(clip: Clip, duration_s: float) -> None:
    if not 0 <= clip.start_s < duration_s:
        raise _UnusableError(f"start {clip.start_s:g} s lies outside of {clip.path} ({duration_s:.3f} s)")
    if clip.seconds is None:
        return
    if clip.seconds <= 0:
        raise _UnusableError(f"a duration of {clip.seconds:g} s is not positive")
    end_s = clip.start_s + clip.seconds
    if end_s > duration_s + END_TOLERANCE_S:
        raise _UnusableError(f"end {end_s:g} s lies outside of {clip.path} ({duration_s:.3f} s)")
