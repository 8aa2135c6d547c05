"""Rooms: reverberation times, the direct sound's place, and responses that were recorded."""

import numpy as np
import pytest
import torch
import torchaudio
from signals import hiss, level_db, shift_of, syllables

from data.augmentation.convolution import convolve
from data.augmentation.draws import Draws
from data.augmentation.reverberation import ReverberationConfig, direct_sound, reverberate
from data.augmentation.rooms import MARGIN_M, SPEED_OF_SOUND_M_PER_S, Room, draw_room, simulate_response

SIDE_M = (3.0, 10.0)
HEIGHT_M = (2.4, 4.0)
DISTANCE_M = (0.3, 3.0)


def measured_rt60_s(response, rate_hz):
    """By the energy that is still to come (Schroeder, 1965), from -5 to -35 dB, as ISO 3382 has it."""
    energy = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
    decay_db = 10 * np.log10(energy / energy[0] + 1e-20)
    fitted = (decay_db <= -5) & (decay_db >= -35)
    times_s = np.flatnonzero(fitted) / rate_hz
    slope, _ = np.polyfit(times_s, decay_db[fitted], 1)
    return -60 / slope


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
@pytest.mark.parametrize("rt60_s", [0.2, 0.5, 1.0, 2.0])
def test_a_simulated_room_reverberates_as_long_as_asked(rt60_s, rate_hz):
    measured_s = []
    for number in range(8):
        room = draw_room(Draws(1, number), (rt60_s, rt60_s), SIDE_M, HEIGHT_M, DISTANCE_M)
        measured_s.append(measured_rt60_s(simulate_response(room, rate_hz, seed=number), rate_hz))
    # The direct sound, and the end of the response at -60 dB, make the fitted line a little steeper in dry rooms.
    assert measured_s == pytest.approx([rt60_s] * 8, rel=0.12)
    assert np.mean(measured_s) == pytest.approx(rt60_s, rel=0.08)


def test_the_response_of_a_room_begins_with_its_direct_sound_and_has_its_first_reflection_where_it_belongs():
    # Speaker and microphone in the middle of a hall, 2 m above its floor: the floor reflects first.
    room = Room(np.array([20.0, 20, 12]), np.array([9.0, 10, 2]), np.array([11.0, 10, 2]), rt60_s=1.0)
    response = simulate_response(room, 48_000, seed=1)
    assert direct_sound(response) == 0
    assert response[0] == pytest.approx(1 / (4 * np.pi * 2.0), rel=1e-5)
    path_m = np.hypot(2.0, 4.0)
    arrival = (path_m - 2.0) / SPEED_OF_SOUND_M_PER_S * 48_000
    around = response[round(arrival) - 40 : round(arrival) + 41]
    assert round(arrival) - 40 + int(around.argmax()) == pytest.approx(arrival, abs=1)
    # Between two samples the pulse is spread; its energy is that of the reflection.
    assert np.linalg.norm(around) == pytest.approx(room.reflection / (4 * np.pi * path_m), rel=0.1)


def test_the_diffuse_tail_goes_on_at_the_level_of_the_reflections_before_it():
    steps_db = []
    for number in range(20):
        room = draw_room(Draws(2, number), (0.8, 0.8), SIDE_M, HEIGHT_M, DISTANCE_M)
        response = simulate_response(room, 16_000, seed=number)
        # 20 ms to either side of the seam at 50 ms; 60 dB in 0.8 s are 1.5 dB in the 20 ms between their middles.
        steps_db.append(level_db(response[800:1120]) - level_db(response[480:800]))
    # What goes along the longest side of a room meets fewer walls than the formula's mean.
    assert np.mean(steps_db) == pytest.approx(-1.5, abs=1.2)


@pytest.mark.parametrize("number", range(20))
def test_speaker_and_microphone_are_inside_of_the_room(number):
    room = draw_room(Draws(3, number), (0.5, 0.5), (1.5, 4.0), (1.5, 3.0), (0.2, 20.0))
    for place in (room.speaker_m, room.microphone_m):
        assert (place >= MARGIN_M - 1e-9).all()
        assert (place <= room.size_m - MARGIN_M + 1e-9).all()
    assert np.isfinite(simulate_response(room, 16_000, seed=number)).all()


def test_rooms_follow_from_their_number_and_seed():
    def response(seed, number):
        room = draw_room(Draws(seed, "rooms", number), (0.2, 0.4), SIDE_M, HEIGHT_M, DISTANCE_M)
        return simulate_response(room, 16_000, seed=number)

    assert np.array_equal(response(1, 5), response(1, 5))
    assert len({response(1, number).tobytes() for number in range(5)}) == 5
    assert not np.array_equal(response(1, 5), response(2, 5))


def test_speech_in_a_room_is_as_loud_as_before_as_long_and_not_later():
    # White, so that its correlation has one peak for each path.
    speech = hiss(48_000)
    for number in range(10):
        room = draw_room(Draws(4, number), (0.2, 0.8), SIDE_M, HEIGHT_M, (0.3, 1.0))
        reverberated = reverberate(speech, simulate_response(room, 16_000, seed=number), delay=0)
        assert reverberated.shape == speech.shape
        assert reverberated.dtype == np.float32
        assert level_db(reverberated) == pytest.approx(level_db(speech), abs=0.01)
        assert shift_of(reverberated, speech) == 0


def test_the_delay_of_a_recorded_response_is_taken_back():
    speech = syllables(1.0)
    response = np.zeros(4000, np.float32)
    response[1234] = -0.7
    response[:1200] = hiss(1200, amplitude=1e-6)
    reverberated = reverberate(speech, response, direct_sound(response))
    # Upside down, as the response is, and where it was.
    np.testing.assert_allclose(reverberated, -speech, atol=1e-4)


def test_silence_in_a_room_and_a_silent_response_give_no_nan():
    silence = np.zeros(1000, np.float32)
    assert np.array_equal(reverberate(silence, hiss(100), 0), silence)
    speech = syllables(0.1)
    assert np.array_equal(reverberate(speech, np.zeros(100, np.float32), 0), speech)


@pytest.mark.parametrize(("num_samples", "num_taps"), [(1, 1), (1, 50), (1000, 3), (1000, 1000), (33_000, 777)])
def test_convolution_is_that_of_torchaudio(num_samples, num_taps):
    waveform = hiss(num_samples, seed=1, amplitude=1)
    response = hiss(num_taps, seed=2, amplitude=1)
    expected = torchaudio.functional.fftconvolve(torch.from_numpy(waveform), torch.from_numpy(response)).numpy()
    for delay in {0, num_taps // 2, num_taps - 1}:
        convolved = convolve(waveform, response, delay)
        assert convolved.dtype == np.float32
        np.testing.assert_allclose(convolved, expected[delay : delay + num_samples], atol=1e-3)


def test_settings_of_simulated_rooms_beside_recorded_responses_are_refused():
    assert ReverberationConfig(recordings="irs").recordings == "irs"
    with pytest.raises(ValueError, match="rt60_s is that of simulated rooms"):
        ReverberationConfig(recordings="irs", rt60_s=(0.1, 0.2))
