"""Recordings: what an utterance is, and its samples read from any file that libsndfile knows."""

import os
import unicodedata
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


class AudioError(Exception):
    """The reason why one clip, or one row of a manifest, cannot be used; without a full stop, to be quoted."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of an audio file: from `start_s` for `seconds`, or to its end when that is None.

    `channel` counts from 0; None averages the channels.
    """

    path: Path
    start_s: float = 0.0
    seconds: float | None = None
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording with its text; several clips are joined with `gaps_s` seconds of silence between them.

    `key` is unique in its corpus and made of letters with their marks, digits, `_` and `-`: it names files in a tar,
    where WebDataset takes a dot as the end of the key. `line` is the manifest's line, 0 when there is none.
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
        if not self.key or not all(map(is_key_character, self.key)):
            raise ValueError(f"utterance key {self.key!r} has characters other than letters, digits, _ and -")
        if not self.clips or len(self.gaps_s) != len(self.clips) - 1:
            raise ValueError(f"utterance {self.key}: {len(self.clips)} clips with {len(self.gaps_s)} gaps")


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """What could not be used and why; `line` is that of the manifest (0: none), `key` is empty if unknown."""

    line: int
    reason: str
    key: str = ""


def is_key_character(character: str) -> bool:
    # Vowel signs of Indic scripts and other marks are no letters for Python, and tell words apart.
    return character.isalnum() or character in "_-" or unicodedata.category(character)[0] == "M"


def find_file(folder: Path, name: str) -> Path:
    """The path of a file that a manifest names.

    Disks may hold a name with its accents apart from their letters (NFD), as macOS writes them, and the manifest one
    with both as one character (NFC), or the other way round.
    """
    path = folder / name
    for form in ("NFC", "NFD"):
        other = folder / unicodedata.normalize(form, name)
        if not name.isascii() and not is_file(path) and is_file(other):
            return other
    return path


def is_file(path: Path) -> bool:
    """Whether there is a file; False also for what cannot be a name, such as a sentence of 300 bytes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_audio(utterance: Utterance, sample_rate_hz: int) -> np.ndarray:
    """Decode an utterance: float32 [samples] in about [-1, 1], channels averaged, at the given rate.

    Each clip is reached by seeking in a freshly opened file, so the result does not depend on what was read
    before. Raises DataError when a file is missing, unreadable, shorter than the clip, or holds no usable
    samples.
    """
    pieces: list[np.ndarray] = []
    # No silence follows the last clip.
    gaps_s = (*utterance.gaps_s, 0.0)
    for clip, gap_s in zip(utterance.clips, gaps_s, strict=True):
        try:
            pieces.append(_read_clip(clip, sample_rate_hz))
        except AudioError as error:
            raise DataError(f"Utterance {utterance.key} cannot be read: {error}.") from error
        pieces.append(np.zeros(round(gap_s * sample_rate_hz), np.float32))
    return np.concatenate(pieces)


def _read_clip(clip: Clip, sample_rate_hz: int) -> np.ndarray:
    check_exists(clip.path)
    try:
        # As bytes: a name may be no UTF-8.
        with soundfile.SoundFile(os.fsencode(clip.path)) as audio:  # pyright: ignore[reportArgumentType]
            source_rate_hz = audio.samplerate
            check_times(clip, audio.frames / source_rate_hz)
            start = round(clip.start_s * source_rate_hz)
            num_samples = audio.frames - start
            if clip.seconds is not None:
                num_samples = min(num_samples, round(clip.seconds * source_rate_hz))
            if start:
                audio.seek(start)
            samples = audio.read(num_samples, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise AudioError(f"{clip.path} is damaged or no audio ({error})") from error
    if len(samples) < num_samples:
        raise AudioError(f"{clip.path} breaks off: {len(samples)} of {num_samples} samples could be decoded")

    if clip.channel is None:
        mono = samples.mean(axis=1)
    elif clip.channel < samples.shape[1]:
        mono = samples[:, clip.channel]
    else:
        raise AudioError(f"{clip.path} has {samples.shape[1]} channels, and none of number {clip.channel}")
    peak = np.abs(mono).max(initial=0.0)
    loudest = np.abs(samples).max(initial=0.0)
    # Two channels of opposite sign, as a balanced line wired wrongly gives them. A loss of 40 dB is no stereo image.
    if loudest > 0 and peak < 0.01 * loudest and clip.channel is None:
        raise AudioError(f"the channels of {clip.path} cancel each other out; name one of them in the column channel")
    # `not peak <= limit` is also true of a NaN, `peak > limit` is not.
    if len(mono) == 0 or not peak <= PEAK_LIMIT:
        raise AudioError(f"{clip.path} gives {len(mono)} samples with a peak of {peak}, expected some up to 1")
    if source_rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, source_rate_hz, sample_rate_hz, quality="HQ")
    return mono


def audio_seconds(path: Path) -> float:
    """The length of an audio file, from its header. Raises DataError when it is missing or no audio."""
    try:
        return read_header(path).seconds
    except AudioError as error:
        raise DataError(f"{error}; put a readable recording there or take it out of the corpus.") from error


@dataclass(frozen=True, slots=True)
class Header:
    """What an audio file's header says."""

    seconds: float
    channels: int


def read_header(path: Path) -> Header:
    """Length and channels of an audio file, from its header. Raises AudioError when it is missing or no audio."""
    check_exists(path)
    try:
        header = soundfile.info(os.fsencode(path))  # pyright: ignore[reportArgumentType]
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path} is not readable as audio ({error})") from error
    return Header(header.frames / header.samplerate, header.channels)


def check_exists(path: Path) -> None:
    """AudioError when there is no file; what was named as one may be a sentence, of which the beginning is quoted."""
    if not is_file(path):
        raise AudioError(f"there is no audio file {str(path)[:200]}")


def check_times(clip: Clip, duration_s: float) -> None:
    """AudioError when a clip does not lie within a file of `duration_s` seconds."""
    if duration_s == 0:
        raise AudioError(f"{clip.path} holds no samples; its recorder may have stopped before it wrote the header")
    if not 0 <= clip.start_s < duration_s:
        raise AudioError(f"start {clip.start_s:g} s lies outside of {clip.path} ({duration_s:.3f} s)")
    if clip.seconds is None:
        return
    if clip.seconds <= 0:
        raise AudioError(f"a duration of {clip.seconds:g} s is not positive")
    end_s = clip.start_s + clip.seconds
    if end_s > duration_s + END_TOLERANCE_S:
        raise AudioError(f"end {end_s:g} s lies outside of {clip.path} ({duration_s:.3f} s)")
