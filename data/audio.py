"""Utterances: what they are, and their samples read from any file that libsndfile knows."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr

from data.containers import AudioError
from data.containers.members import Cell, Member, describe_member, member_file
from data.errors import DataError
from data.recordings import MAX_UTTERANCE_S, Recording, read_recording

# Manifests round times to hundredths of a second; a clip may pass the end of its file by this much.
END_TOLERANCE_S = 0.02
# What rows say of the length of a whole recording is rounded, and lossy codecs add and drop some milliseconds.
STATED_TOLERANCE_S = 0.5
STATED_TOLERANCE = 0.05
# Lossy codecs overshoot full scale a little; floats beyond this were never scaled to [-1, 1].
PEAK_LIMIT = 2.0
# The window of the features: what is shorter gives no frame.
MIN_SPEECH_S = 0.025
# One step of 16 bits: shards hold nothing finer.
STEP = 1 / 2**15


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of an audio file: from `start_s` for `seconds`, or to its end when that is None.

    `channel` counts from 0; None averages the channels. `member` is the recording inside of `path` that is meant where
    that is a tar or a table.
    """

    path: Path
    start_s: float = 0.0
    seconds: float | None = None
    channel: int | None = None
    member: Member | Cell | None = None


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
    """What could not be used and why; `line` is that of the manifest (0: none), `key` is empty if unknown.

    `path` is the file that the row names, whose repair may make the row usable; empty if unknown.
    """

    line: int
    reason: str
    key: str = ""
    path: str = ""


def is_key_character(character: str) -> bool:
    # Vowel signs of Indic scripts and other marks are no letters for Python, and tell words apart.
    return character.isalnum() or character in "_-" or unicodedata.category(character)[0] == "M"


def find_file(folder: Path, name: str) -> Path:
    """The path of a file that a manifest names.

    Disks may hold a name with its accents apart from their letters (NFD), as macOS writes them, and the manifest one
    with both as one character (NFC), or the other way round. Manifests written on Windows divide folders by `\\`.
    """
    path = folder / name
    if "\\" in name and not is_file(path):
        name = name.replace("\\", "/")
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
    before. Raises DataError when a file is missing, unreadable, shorter than its header says or than the clip, when
    one is silent throughout or holds no usable samples, or when together they are longer than an utterance may be.
    """
    pieces: list[np.ndarray] = []
    seconds = 0.0
    # No silence follows the last clip.
    gaps_s = (*utterance.gaps_s, 0.0)
    try:
        for clip, gap_s in zip(utterance.clips, gaps_s, strict=True):
            piece = read_clip(clip, sample_rate_hz)
            silence = np.zeros(round(gap_s * sample_rate_hz), np.float32)
            pieces += [piece, silence]
            seconds += len(piece) / sample_rate_hz + gap_s
            if seconds > MAX_UTTERANCE_S:
                raise AudioError(f"its clips last more than the {MAX_UTTERANCE_S:g} s that an utterance may")
    except AudioError as error:
        raise DataError(f"Utterance {utterance.key} cannot be read: {error}.") from error
    return np.concatenate(pieces)


def read_clip(clip: Clip, sample_rate_hz: int, max_s: float = MAX_UTTERANCE_S) -> np.ndarray:
    """Decode one clip of at most `max_s` seconds, as `read_audio` does. Raises AudioError."""
    if clip.member is None:
        return np.concatenate(list(read_blocks(clip, sample_rate_hz, max_s)))
    with member_file(clip.path, clip.member) as path:
        shown = describe_member(clip.path, clip.member)
        try:
            stated_s = clip.member.stated_s
            seconds = open_recording(path).seconds
            if stated_s is not None and abs(seconds - stated_s) > max(STATED_TOLERANCE_S, STATED_TOLERANCE * stated_s):
                raise AudioError(
                    f"{path} lasts {seconds:.3f} s, its row says {stated_s:g} s, and its text may be that of a part"
                )
            file_clip = replace(clip, path=path, member=None)
            return np.concatenate(list(read_blocks(file_clip, sample_rate_hz, max_s)))
        except AudioError as error:
            # The file will be gone when this is read.
            raise AudioError(str(error).replace(str(path), shown)) from error


def read_blocks(clip: Clip, sample_rate_hz: int, max_s: float) -> Iterator[np.ndarray]:
    """The samples of a clip that is a file of its own, as `read_clip` gives them, in blocks of bounded size.

    Raises AudioError: of samples that are no sound after the last block, for only the whole clip shows it.
    """
    recording = open_recording(clip.path)
    check_clip(clip, recording, max_s)
    source_rate_hz = recording.sample_rate_hz
    start = round(clip.start_s * source_rate_hz)
    num_samples = recording.num_samples - start
    if clip.seconds is not None:
        num_samples = min(num_samples, round(clip.seconds * source_rate_hz))

    # One block after the other is mixed and resampled, so that channels and rate cost no memory. A stream of soxr
    # gives the samples that it gives for the whole at once.
    resampler = None
    if source_rate_hz != sample_rate_hz:
        resampler = soxr.ResampleStream(source_rate_hz, sample_rate_hz, 1, dtype="float32", quality="HQ")
    lowest = np.float32(np.inf)
    highest = np.float32(-np.inf)
    loudest = np.float32(0)
    for samples in recording.read(start, num_samples):
        mono = samples.mean(axis=1) if clip.channel is None else samples[:, clip.channel]
        # numpy's, unlike Python's, keep a NaN.
        lowest = np.minimum(lowest, mono.min())
        highest = np.maximum(highest, mono.max())
        loudest = np.maximum(loudest, np.abs(samples).max())
        if resampler is not None:
            mono = resampler.resample_chunk(mono)
        yield mono
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)

    peak = np.maximum(-lowest, highest)
    # Two channels of opposite sign, as a balanced line wired wrongly gives them. A loss of 40 dB is no stereo image.
    if loudest >= STEP and peak < 0.01 * loudest and clip.channel is None:
        raise AudioError(
            f"the channels of {clip.path} cancel each other out; take one of them, in a manifest by the column channel"
        )
    # `not peak <= limit` is also true of a NaN, `peak > limit` is not.
    if num_samples == 0 or not peak <= PEAK_LIMIT:
        raise AudioError(f"{clip.path} gives {num_samples} samples with a peak of {peak}, expected some up to 1")
    # Fewer samples are refused for their number, where shards are written.
    if highest - lowest < STEP and num_samples >= MIN_SPEECH_S * source_rate_hz:
        source = str(clip.path) if clip.channel is None else f"channel {clip.channel} of {clip.path}"
        level = round(float(highest), 4)
        raise AudioError(f"{source} is digital silence: all of its {num_samples} samples are {level:g}")


def audio_seconds(path: Path) -> float:
    """The length of an audio file. Raises DataError when it is missing, no audio, or breaks off."""
    try:
        return open_recording(path).seconds
    except AudioError as error:
        raise DataError(f"{error}; put a readable recording there or take it out of the corpus.") from error


def open_recording(path: Path) -> Recording:
    """Length, rate and channels of an audio file, as it decodes. Raises AudioError when it cannot be used."""
    check_exists(path)
    return read_recording(path)


def check_exists(path: Path) -> None:
    """AudioError when there is no file; what was named as one may be a sentence, of which the beginning is quoted."""
    if not is_file(path):
        raise AudioError(f"there is no audio file {str(path)[:200]}")


def check_clip(clip: Clip, recording: Recording, max_s: float = MAX_UTTERANCE_S) -> None:
    """AudioError when a clip does not lie within its recording, names no channel of it, or is longer than `max_s`."""
    duration_s = recording.seconds
    if duration_s == 0:
        raise AudioError(f"{clip.path} holds no samples; its recorder may have stopped before it wrote the header")
    if not 0 <= clip.start_s < duration_s:
        raise AudioError(f"start {clip.start_s:g} s lies outside of {clip.path} ({duration_s:.3f} s)")
    if clip.channel is not None and clip.channel >= recording.channels:
        raise AudioError(
            f"channel {clip.channel} is not in {clip.path}, which has {recording.channels} (the first channel is 0)"
        )
    seconds = clip.seconds
    if seconds is None:
        seconds = duration_s - clip.start_s
    elif seconds <= 0:
        raise AudioError(f"a duration of {seconds:g} s is not positive")
    elif clip.start_s + seconds > duration_s + END_TOLERANCE_S:
        raise AudioError(f"end {clip.start_s + seconds:g} s lies outside of {clip.path} ({duration_s:.3f} s)")
    if seconds > max_s:
        raise AudioError(
            f"{seconds:.0f} s of {clip.path} are more than the {max_s:g} s that can be read at once; divide it, in a "
            "manifest by the columns start and end"
        )
