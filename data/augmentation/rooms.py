"""Impulse responses of simulated rooms: reflections by image sources, then a diffuse tail.

Image sources (Allen and Berkley, 1979) are exact for a box-shaped room and grow with the cube of time. After some tens
of milliseconds a room's reflections are so dense that only their power matters, which a diffuse field states in closed
form (as in Lehmann and Johansson, 2010): noise whose power falls by 60 dB in the reverberation time. That also gives
the tail the reverberation time that was asked for, which image sources with equal walls miss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.augmentation.draws import Draws
from data.augmentation.ranges import Range

SPEED_OF_SOUND_M_PER_S = 343.0
# Reflections up to here after the direct sound are image sources: three to ten times the time sqrt(V) ms (Polack,
# 1992) after which rooms of 10 to 200 cubic metres are diffuse.
EARLY_S = 0.05
# Of the windowed sinc that places a reflection between two samples, to each side.
SINC_SAMPLES = 32
# Below, a response has next to nothing; no voice is as low.
LOWEST_HZ = 50.0
# Neither mouths nor microphones are nearer to a wall, or to each other.
MARGIN_M = 0.2
# The power of a reverberating field falls by 60 dB in the reverberation time: exp(-DECAY t / rt60).
DECAY = 6 * math.log(10)


@dataclass(frozen=True)
class Room:
    """A box-shaped room: size, and the places of the speaker and the microphone from one of its corners, [3] in m."""

    size_m: npt.NDArray[np.float64]
    speaker_m: npt.NDArray[np.float64]
    microphone_m: npt.NDArray[np.float64]
    rt60_s: float

    @property
    def volume_m3(self) -> float:
        return float(self.size_m.prod())

    @property
    def reflection(self) -> float:
        """The share of pressure that every wall reflects, by Eyring's formula."""
        length, width, height = self.size_m
        surface_m2 = 2 * (length * width + length * height + width * height)
        # On its way of c * rt60 sound meets c * rt60 * S / 4V walls, and has lost 60 dB, a factor of 1000, behind them.
        num_reflections = SPEED_OF_SOUND_M_PER_S * self.rt60_s * surface_m2 / (4 * self.volume_m3)
        return float(10 ** (-3 / num_reflections))


def draw_room(
    draws: Draws,
    rt60_s: Range,
    side_m: Range,
    height_m: Range,
    distance_m: Range,
) -> Room:
    """A room within these ranges, the speaker about as high as the microphone and as far from it as drawn."""
    length = draws.between("length", side_m)
    width = draws.between("width", side_m)
    height = draws.between("height", height_m)
    size_m = np.array([length, width, height])
    free_m = size_m - 2 * MARGIN_M
    places = [draws.uniform(f"microphone {axis}") for axis in "xyz"]
    microphone_m = MARGIN_M + places * free_m

    distance = draws.between("distance", distance_m)
    angle = 2 * math.pi * draws.uniform("direction")
    direction = np.array([math.cos(angle), math.sin(angle), 0.0])
    offset_m = distance * direction
    speaker_m = microphone_m + offset_m
    # Beyond a wall: to the other side, and where that is beyond the opposite wall, before the wall.
    farthest_m = size_m - MARGIN_M
    beyond = (speaker_m < MARGIN_M) | (speaker_m > farthest_m)
    speaker_m = np.where(beyond, microphone_m - offset_m, speaker_m)
    speaker_m = np.clip(speaker_m, MARGIN_M, farthest_m)
    return Room(size_m, speaker_m, microphone_m, draws.between("rt60", rt60_s))


def simulate_response(room: Room, sample_rate_hz: int, seed: int) -> npt.NDArray[np.float32]:
    """The impulse response of a room, float32 [samples], which begins with the direct sound.

    The length is the reverberation time, after which 60 dB less are left. `seed` is that of the diffuse tail.
    """
    distances_m, shares = _image_sources(room)
    direct_m = distances_m.min()
    # A source whose pressure is 1 / 4 pi in 1 m distance.
    amplitudes = shares / (4 * math.pi * distances_m)
    delays = (distances_m - direct_m) / SPEED_OF_SOUND_M_PER_S * sample_rate_hz

    # Each reflection is a windowed sinc around its place between two samples.
    num_early = round(EARLY_S * sample_rate_hz)
    num_samples = max(num_early, round(room.rt60_s * sample_rate_hz))
    response = np.zeros(num_samples)
    taps = np.arange(-SINC_SAMPLES, SINC_SAMPLES + 1)
    before = np.floor(delays)
    fractions = delays - before
    times = taps - fractions[:, None]
    within_window = times.clip(-SINC_SAMPLES, SINC_SAMPLES)
    window = 0.5 + 0.5 * np.cos(math.pi * within_window / SINC_SAMPLES)
    pulses = amplitudes[:, None] * np.sinc(times) * window
    positions = before.astype(np.int64)[:, None] + taps
    # What would lie before the direct sound is of reflections a few samples after it, and small.
    inside = (positions >= 0) & (positions < num_early)
    np.add.at(response, positions[inside], pulses[inside])

    # From then on, noise of the power that a diffuse field has per second: c / (4 pi V) for this source, as it falls.
    samples = np.arange(num_early, num_samples)
    times_s = direct_m / SPEED_OF_SOUND_M_PER_S + samples / sample_rate_hz
    power_at_once = SPEED_OF_SOUND_M_PER_S / (4 * math.pi * room.volume_m3)
    power_per_s = power_at_once * np.exp(-DECAY * times_s / room.rt60_s)
    deviations = np.sqrt(power_per_s / sample_rate_hz)
    # RandomState's stream never changes (NEP 19); that of numpy's newer generators may with a release.
    generator = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
    response[num_early:] = deviations * generator.standard_normal(len(samples))
    return _without_lowest(response, sample_rate_hz).astype(np.float32)


def _without_lowest(response: npt.NDArray[np.float64], sample_rate_hz: int) -> npt.NDArray[np.float64]:
    """A response through the high-pass of Allen and Berkley (1979, appendix). All of its reflections push in the same
    direction, so that without it dense ones add up to a pressure that no room has."""
    angle = 2 * math.pi * LOWEST_HZ / sample_rate_hz
    radius = math.exp(-angle)
    # Twice the length: what the filter adds behind the response is not to come around to its beginning.
    size = 2 * len(response)
    delay = np.exp(-2j * math.pi * np.fft.rfftfreq(size))
    zeros = 1 - (1 + radius) * delay + radius * delay**2
    poles = 1 - 2 * radius * math.cos(angle) * delay + radius**2 * delay**2
    spectrum = np.fft.rfft(response, size) * zeros / poles
    filtered = np.fft.irfft(spectrum, size)
    return filtered[: len(response)]


def _image_sources(room: Room) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distances in m of the speaker and its images that are heard early, and the share that their walls leave."""
    direct_m = float(np.linalg.norm(room.speaker_m - room.microphone_m))
    farthest_m = direct_m + EARLY_S * SPEED_OF_SOUND_M_PER_S

    # Along each axis the images lie at 2kL + x and 2kL - x, behind |2k| and |2k - 1| walls.
    squares: list[npt.NDArray[np.float64]] = []
    num_walls: list[npt.NDArray[np.int64]] = []
    for size, speaker, microphone in zip(room.size_m, room.speaker_m, room.microphone_m, strict=True):
        most = math.ceil(farthest_m / (2 * size)) + 1
        doubled = 2 * np.arange(-most, most + 1)
        images = np.concatenate([doubled * size + speaker, doubled * size - speaker])
        walls = np.concatenate([np.abs(doubled), np.abs(doubled - 1)])
        squares.append(np.square(images - microphone))
        num_walls.append(walls)

    distances_m = np.sqrt(_sums(squares))
    early = distances_m <= farthest_m
    # A speaker in a corner of the drawing's margins may be as near as nothing.
    distances_m = np.maximum(distances_m[early], MARGIN_M)
    walls_met = _sums(num_walls)[early]
    return distances_m, room.reflection**walls_met


def _sums(axes: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The sums of a value of each of three axes, for all combinations of them."""
    x, y, z = axes
    plane = np.add.outer(x, y)
    return np.add.outer(plane, z).ravel()
