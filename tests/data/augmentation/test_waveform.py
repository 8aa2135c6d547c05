"""The policy: who hears what, and that it depends on seed, step and key alone."""

import threading

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from signals import hiss, level_db, syllables

from data.augmentation import AugmentConfig, WaveformAugmentation
from data.augmentation.config import WAVEFORM_KINDS
from data.augmentation.recordings import FolderSet
from data.shards.reader import UtteranceError

ROOMS = {"rooms": 3, "rt60_s": [0.1, 0.2]}
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Noises, voices and impulse responses as folders of audio files."""
    root = tmp_path_factory.mktemp("sets")
    for kind in ("noises", "voices", "responses"):
        (root / kind).mkdir()
        for number in range(4):
            waveform = syllables(0.7, seed=number + 10)
            if kind == "noises":
                waveform = hiss(9000, seed=number)
            elif kind == "responses":
                waveform = (hiss(3000, seed=number) * np.exp(-np.arange(3000) / 400)).astype(np.float32)
                waveform[number] = 1.0
            soundfile.write(root / kind / f"{number}.wav", waveform, RATE_HZ, subtype="FLOAT")
    return root


def sections(folders, probability=1.0):
    """Every kind, with a probability."""
    values = {key: {"probability": probability} for key in WAVEFORM_KINDS}
    values["noise"]["recordings"] = str(folders / "noises")
    values["reverberation"] |= ROOMS
    values["codec"]["kinds"] = ["mu_law", "g722", "mp3", "opus"]
    return values


def make(folders, values, seed=1):
    config = AugmentConfig.model_validate(values)
    return WaveformAugmentation(config, RATE_HZ, seed, FolderSet(folders / "voices", RATE_HZ))


def test_the_same_seed_step_and_key_sound_the_same_whatever_was_heard_before(folders):
    """augmentation(seed).apply(x, step, key) is a function: of a new object, in any order, beside any others."""
    speech = syllables(0.5)
    utterances = [(step, f"key-{number}") for step in (0, 7, 10**9) for number in range(4)]
    first = make(folders, sections(folders, 0.6))
    heard = {utterance: first.apply(speech, *utterance) for utterance in utterances}
    again = make(folders, sections(folders, 0.6))
    for utterance in reversed(utterances):
        assert np.array_equal(again.apply(speech, *utterance), heard[utterance])
    assert len({waveform.tobytes() for waveform in heard.values()}) == len(utterances)
    other_seed = make(folders, sections(folders, 0.6), seed=2)
    assert not np.array_equal(other_seed.apply(speech, 0, "key-0"), heard[0, "key-0"])


def test_threads_hear_what_one_thread_hears(folders):
    speech = syllables(0.4)
    steps = range(24)
    expected = [make(folders, sections(folders, 0.5)).apply(speech, step, "key") for step in steps]
    shared = make(folders, sections(folders, 0.5))
    results = {}

    def work(offset):
        for step in steps[offset::4]:
            results[step] = shared.apply(speech, step, "key")

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step in steps:
        assert np.array_equal(results[step], expected[step])


@pytest.mark.parametrize("kind", WAVEFORM_KINDS)
def test_a_kind_changes_its_share_of_the_utterances_and_leaves_the_others_to_the_bit(folders, kind):
    speech = syllables(0.3)
    values = sections(folders, 0.4)
    if kind == "codec":
        values["codec"]["kinds"] = ["mu_law"]
    augmentation = make(folders, {kind: values[kind]})
    changed = 0
    for step in range(150):
        heard = augmentation.apply(speech, step, "key")
        assert heard.shape == speech.shape
        assert heard.dtype == np.float32
        assert np.isfinite(heard).all()
        changed += not np.array_equal(heard, speech)
    # Three standard deviations of the binomial distribution.
    assert changed == pytest.approx(60, abs=18)


@pytest.mark.parametrize("kind", WAVEFORM_KINDS)
def test_another_kind_in_the_recipe_changes_no_draw_of_the_first(folders, kind):
    """The volume's gain is the same whichever other kind there is."""
    values = sections(folders, 0.0)
    values["volume"] = {"probability": 1.0}
    alone = make(folders, {"volume": values["volume"]})
    values[kind]["probability"] = values[kind]["probability"] or 1e-12
    beside = make(folders, values)
    for step in range(5):
        speech = syllables(0.1, seed=step)
        assert np.array_equal(alone.apply(speech, step, "key"), beside.apply(speech, step, "key"))


@settings(max_examples=25, deadline=None)
@given(num_samples=st.integers(0, 6000), step=st.integers(0, 10**6))
def test_an_utterance_of_any_length_keeps_it_and_has_no_nan(folders, num_samples, step):
    augmentation = make(folders, sections(folders))
    heard = augmentation.apply(hiss(num_samples, seed=step), step, "key")
    assert heard.shape == (num_samples,)
    assert heard.dtype == np.float32
    assert np.isfinite(heard).all()


def test_silence_stays_silence(folders):
    silence = np.zeros(5000, np.float32)
    assert np.array_equal(make(folders, sections(folders)).apply(silence, 3, "key"), silence)


def test_the_waveform_that_was_given_is_not_changed(folders):
    speech = syllables(0.3)
    before = speech.copy()
    make(folders, sections(folders)).apply(speech, 3, "key")
    assert np.array_equal(speech, before)


def test_noise_and_babble_come_at_a_ratio_within_the_range(folders):
    speech = syllables(0.6, seed=3)
    for kind in ("noise", "babble"):
        values = sections(folders)[kind] | {"snr_db": [4.0, 9.0]}
        augmentation = make(folders, {kind: values})
        ratios_db = []
        for step in range(60):
            added = augmentation.apply(speech, step, "key") - speech
            ratios_db.append(level_db(speech) - level_db(added))
        assert min(ratios_db) == pytest.approx(4.0, abs=0.5)
        assert max(ratios_db) == pytest.approx(9.0, abs=0.5)
        assert min(ratios_db) > 3.9
        assert max(ratios_db) < 9.1


def test_babble_comes_from_recordings_of_its_own_where_these_are_named(folders):
    speech = syllables(0.6, seed=3)
    own = make(folders, {"babble": {"probability": 1.0}})
    other = make(folders, {"babble": {"probability": 1.0, "recordings": str(folders / "noises")}})
    assert not np.array_equal(own.apply(speech, 1, "key"), other.apply(speech, 1, "key"))


def test_recorded_responses_are_used_and_move_nothing(folders):
    augmentation = make(folders, {"reverberation": {"probability": 1.0, "recordings": str(folders / "responses")}})
    click = np.zeros(4000, np.float32)
    click[2000] = 0.5
    for step in range(8):
        assert int(np.abs(augmentation.apply(click, step, "key")).argmax()) == 2000


def test_a_run_simulates_each_room_once_and_no_more_rooms_than_asked(folders, monkeypatch):
    simulated = []
    simulate = WaveformAugmentation._simulated_response.__globals__["simulate_response"]

    def count(*arguments):
        simulated.append(arguments)
        return simulate(*arguments)

    monkeypatch.setitem(WaveformAugmentation._simulated_response.__globals__, "simulate_response", count)
    augmentation = make(folders, {"reverberation": {"probability": 1.0, **ROOMS}})
    speech = syllables(0.1)
    heard = {augmentation.apply(speech, step, "key").tobytes() for step in range(40)}
    assert len(simulated) == len(heard) == 3


def test_a_recording_that_cannot_be_read_makes_its_utterance_one_that_cannot_with_the_reason(folders, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    augmentation = make(folders, {"noise": {"probability": 0.5, "recordings": str(tmp_path)}})
    errors = []
    for step in range(40):
        try:
            augmentation.apply(syllables(0.1), step, "key-7")
        except UtteranceError as error:
            errors.append(error)
    assert 8 <= len(errors) <= 32
    for error in errors:
        assert error.key == "key-7"
        assert "broken.wav" in str(error)
        assert "augment.noise" in str(error)
