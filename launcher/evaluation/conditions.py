"""How recordings are changed to see what a model withstands: noise, rooms, lines, codecs and speeds.

What an utterance gets follows from its key alone, so that all models hear the same. The effects are those of
augmentation (data/augmentation), at fixed strengths.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from data.augmentation.codecs import (
    CodecKind,
    missing_codec,
    mp3_bitrates,
    through_g722,
    through_mp3,
    through_mu_law,
    through_opus,
)
from data.augmentation.convolution import Waveform
from data.augmentation.draws import Draws
from data.augmentation.noise import add_noise
from data.augmentation.recordings import RecordingSet, open_recordings
from data.augmentation.reverberation import reverberate
from data.augmentation.rooms import draw_room, simulate_response
from data.augmentation.speed import change_speed
from data.augmentation.telephone import TELEPHONE_HZ, limit_band
from data.seeds import derive_seed

Effect: TypeAlias = Callable[[Waveform, str], Waveform]

SEED = 1
NOISE_SNRS_DB = (20.0, 10.0, 0.0)
ROOM_RT60S = (0.3, 0.8)
SPEEDS = (0.8, 0.9, 1.1, 1.25)
MP3_KBPS = 16.0
OPUS_KBPS = 8.0
# In the middle of those that trainings may have: a room of 6 m by 6 m, a voice 2 m away.
ROOM_SIDE_M = (6.0, 6.0)
ROOM_HEIGHT_M = (3.0, 3.0)
ROOM_DISTANCE_M = (2.0, 2.0)
# Rooms differ by the places of voice and microphone.
NUM_ROOMS = 10


@dataclass(frozen=True)
class Condition:
    """A change of recordings. `missing` says why it cannot be made here, and is empty when it can."""

    name: str
    effect: Effect
    missing: str = ""


def conditions(sample_rate_hz: int, noise: str | None = None) -> list[Condition]:
    """All conditions, in the order of a table. With `noise`, a set of recordings, noise is pieces of these, and else
    white. DataError when there is no such set."""
    recordings = None
    name = "white noise"
    if noise is not None:
        recordings = open_recordings(noise, sample_rate_hz)
        name = "noise"
    listed: list[Condition] = []
    for snr_db in NOISE_SNRS_DB:
        listed.append(Condition(f"{name}, {snr_db:g} dB", _Noise(recordings, snr_db)))
    for rt60_s in ROOM_RT60S:
        listed.append(Condition(f"room, {rt60_s:g} s", _Rooms(rt60_s, sample_rate_hz)))
    if sample_rate_hz >= TELEPHONE_HZ:
        telephone = _at_rate(sample_rate_hz, lambda waveform, rate: limit_band(waveform, rate, 300.0, 3400.0))
        listed.append(Condition("telephone band", telephone))
    listed += _codecs(sample_rate_hz)
    for speed in SPEEDS:
        listed.append(Condition(f"speed {speed:g}", _speed(speed)))
    return listed


def _codecs(sample_rate_hz: int) -> list[Condition]:
    lowest_kbps, highest_kbps = mp3_bitrates(sample_rate_hz)
    mp3_kbps = min(max(MP3_KBPS, lowest_kbps), highest_kbps)
    effects: list[tuple[CodecKind, str, Callable[[Waveform, int], Waveform]]] = [
        ("mu_law", "mu-law", through_mu_law),
        ("g722", "G.722", through_g722),
        ("mp3", f"MP3, {mp3_kbps:g} kbit/s", lambda waveform, rate: through_mp3(waveform, rate, mp3_kbps)),
        ("opus", f"Opus, {OPUS_KBPS:g} kbit/s", lambda waveform, rate: through_opus(waveform, rate, OPUS_KBPS)),
    ]
    listed = []
    for kind, name, effect in effects:
        listed.append(Condition(name, _at_rate(sample_rate_hz, effect), missing_codec(kind)))
    return listed


class _Noise:
    """White noise, or pieces of recordings, at a ratio of powers."""

    def __init__(self, recordings: RecordingSet | None, snr_db: float):
        self._recordings = recordings
        self._snr_db = snr_db

    def __call__(self, waveform: Waveform, key: str) -> Waveform:
        # The same noise at every ratio.
        draws = Draws(SEED, "robustness", key)
        if self._recordings is None:
            generator = np.random.default_rng(derive_seed(SEED, "robustness", key))
            noise = generator.standard_normal(len(waveform)).astype(np.float32)
        else:
            number = draws.below("recording of noise", len(self._recordings))
            noise = self._recordings.read(number, draws, "place of noise", len(waveform))
        return add_noise(waveform, noise, self._snr_db)


class _Rooms:
    """Simulated rooms of one reverberation time."""

    def __init__(self, rt60_s: float, sample_rate_hz: int):
        self._rt60_s = rt60_s
        self._sample_rate_hz = sample_rate_hz
        self._responses: dict[int, Waveform] = {}

    def __call__(self, waveform: Waveform, key: str) -> Waveform:
        number = Draws(SEED, "robustness", key).below("room", NUM_ROOMS)
        if number not in self._responses:
            rt60_s = (self._rt60_s, self._rt60_s)
            draws = Draws(SEED, "rooms of robustness", number)
            room = draw_room(draws, rt60_s, ROOM_SIDE_M, ROOM_HEIGHT_M, ROOM_DISTANCE_M)
            tail_seed = derive_seed(SEED, "reverberant tail", number)
            self._responses[number] = simulate_response(room, self._sample_rate_hz, tail_seed)
        return reverberate(waveform, self._responses[number], delay=0)


def _at_rate(sample_rate_hz: int, effect: Callable[[Waveform, int], Waveform]) -> Effect:
    return lambda waveform, key: effect(waveform, sample_rate_hz)


def _speed(speed: float) -> Effect:
    return lambda waveform, key: change_speed(waveform, speed, round(len(waveform) / speed))
