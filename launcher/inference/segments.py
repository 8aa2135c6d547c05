"""Cuts a recording of any length into segments that a recogniser reads one by one, in the middle of silences.

A segment lasts MAX_SEGMENT_S at most. It ends in the longest silence of its second half; only where speech goes on
without one, it ends where speech is least likely, and then its audio overlaps with that of the next segment, so that
every word is whole in one of them. No sample is left out. Memory is that of a segment and a block, whatever the length.

Shapes: S samples, T frames of the detector.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from launcher.inference.speech_detection import FRAME_S, SpeechDetector

MAX_SEGMENT_S = 20.0
# Enough words around each word for an encoder, and so few segments that a cut is rare.
MIN_SEGMENT_S = 5.0
# Below this probability there is no speech; Silero's own default for the end of speech.
SILENCE = 0.35
# Pauses within a word, before a plosive, last up to 0.15 s.
MIN_SILENCE_S = 0.2
# Audio that two segments share on each side of a border within speech: longer than nearly all words.
SHARED_S = 2.0
# Speech is least likely where it is so over a few frames, not in one.
SMOOTHED_FRAMES = 5
# Handed to the detector at once.
PIECE_S = 20.0


@dataclass(frozen=True)
class Segment:
    """From start_s to end_s of a recording. `waveform` begins at `audio_start_s`: earlier than the segment where it
    shares audio with the one before (`shares_start`), and it ends later where the next one shares some with it."""

    start_s: float
    end_s: float
    audio_start_s: float
    waveform: npt.NDArray[np.float32]
    shares_start: bool = False


def cut_at_silences(blocks: Iterable[npt.NDArray[np.float32]], sample_rate_hz: int) -> Iterator[Segment]:
    """The segments of a recording whose mono samples come in blocks of any length."""
    detector = SpeechDetector(sample_rate_hz)
    # What must lie behind a cut that is looked for, so that it can be shared.
    needed_s = MAX_SEGMENT_S + SHARED_S
    shared_samples = round(SHARED_S * sample_rate_hz)
    # The samples from `origin` on, counted in the whole recording, and the detector's probabilities of its frames from
    # the first one that is not over yet.
    samples_S = np.zeros(0, np.float32)
    origin = 0
    probabilities_T = np.zeros(0, np.float32)
    first_frame = 0
    start = 0
    shares_start = False

    for piece_S, is_last in fixed_pieces(blocks, round(PIECE_S * sample_rate_hz)):
        samples_S = np.concatenate((samples_S, piece_S))
        probabilities_T = np.concatenate((probabilities_T, detector.push(piece_S, is_last)))
        while True:
            num_ahead = origin + len(samples_S) - start
            if num_ahead <= needed_s * sample_rate_hz:
                break
            offset = round(start / sample_rate_hz / FRAME_S) - first_frame
            cut_frame, in_speech = choose_cut(probabilities_T[max(offset, 0) :])
            end = start + round(cut_frame * FRAME_S * sample_rate_hz)
            audio_start = start - shared_samples if shares_start else start
            audio_end = end + shared_samples if in_speech else end
            waveform_S = samples_S[audio_start - origin : audio_end - origin]
            yield Segment(
                start / sample_rate_hz, end / sample_rate_hz, audio_start / sample_rate_hz, waveform_S, shares_start
            )
            start = end
            shares_start = in_speech
            # What the next segment shares stays; a copy, so that the rest is freed.
            next_origin = start - shared_samples if in_speech else start
            samples_S = samples_S[next_origin - origin :].copy()
            origin = next_origin
            num_passed = max(round(start / sample_rate_hz / FRAME_S) - first_frame, 0)
            probabilities_T = probabilities_T[num_passed:]
            first_frame += num_passed
        if is_last and len(samples_S):
            audio_start = start - shared_samples if shares_start else start
            end_s = (origin + len(samples_S)) / sample_rate_hz
            waveform_S = samples_S[audio_start - origin :]
            yield Segment(start / sample_rate_hz, end_s, audio_start / sample_rate_hz, waveform_S, shares_start)


def choose_cut(probabilities_T: npt.NDArray[np.float32]) -> tuple[float, bool]:
    """Where a segment ends whose frames have these probabilities, in frames, and whether that is within speech."""
    first = round(MIN_SEGMENT_S / FRAME_S)
    last = round(MAX_SEGMENT_S / FRAME_S)
    is_silent_T = probabilities_T[first:last] < SILENCE
    # Where silence begins and ends: the changes from 0 to 1 and back.
    edges = np.diff(np.concatenate(([0], is_silent_T.astype(np.int8), [0])))
    begins = np.flatnonzero(edges == 1)
    ends = np.flatnonzero(edges == -1)
    lengths = ends - begins
    if len(lengths) and lengths.max() * FRAME_S >= MIN_SILENCE_S:
        # The last of equally long ones: fewer segments.
        longest = len(lengths) - 1 - int(lengths[::-1].argmax())
        return first + (begins[longest] + ends[longest]) / 2, False

    weights = np.full(SMOOTHED_FRAMES, 1 / SMOOTHED_FRAMES)
    smoothed_T = np.convolve(probabilities_T[first:last], weights, mode="valid")
    lowest = int(smoothed_T.argmin()) + SMOOTHED_FRAMES // 2
    return float(first + lowest), True


def fixed_pieces(
    blocks: Iterable[npt.NDArray[np.float32]], num_samples: int
) -> Iterator[tuple[npt.NDArray[np.float32], bool]]:
    """The samples of all blocks in pieces of one length, the last one shorter, and whether a piece is the last."""
    waiting = np.zeros(0, np.float32)
    for block in blocks:
        start = 0
        # A piece is yielded when there is more: the last one must be known as such. Blocks may be long, and are not
        # copied whole.
        while len(waiting) + len(block) - start > num_samples:
            stop = start + num_samples - len(waiting)
            yield np.concatenate((waiting, block[start:stop])), False
            waiting = waiting[:0]
            start = stop
        waiting = np.concatenate((waiting, block[start:]))
    yield waiting, True
