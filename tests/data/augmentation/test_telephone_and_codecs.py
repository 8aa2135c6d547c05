"""Telephone lines and codecs: what is lost, and that nothing is moved."""

import threading

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from signals import band_db, hiss, level_db, shift_of, syllables, tone

from data.augmentation import codecs
from data.augmentation.codecs import (
    MP3_RATES_HZ,
    CodecConfig,
    decode_mu_law,
    encode_mu_law,
    missing_codec,
    mp3_bitrates,
    through_g722,
    through_mp3,
    through_mu_law,
    through_opus,
)
from data.augmentation.telephone import TelephoneConfig, limit_band

CODECS = {
    "mu_law": through_mu_law,
    "g722": through_g722,
    "mp3 16": lambda waveform, rate_hz: through_mp3(waveform, rate_hz, max(16.0, mp3_bitrates(rate_hz)[0])),
    "mp3 64": lambda waveform, rate_hz: through_mp3(waveform, rate_hz, 64.0),
    "opus 8": lambda waveform, rate_hz: through_opus(waveform, rate_hz, 8.0),
    "opus 32": lambda waveform, rate_hz: through_opus(waveform, rate_hz, 32.0),
}
RATES_HZ = [8000, 16_000, 44_100]


# --- telephone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_a_telephone_passes_its_band_and_nothing_else(rate_hz):
    waveform = hiss(4 * rate_hz)
    limited = limit_band(waveform, rate_hz, 300.0, 3400.0)
    assert limited.shape == waveform.shape
    assert limited.dtype == np.float32
    if rate_hz > 8000:
        lost_db = band_db(limited, 4000, rate_hz / 2, rate_hz) - band_db(waveform, 4000, rate_hz / 2, rate_hz)
        assert lost_db < -50
    for low_hz, high_hz, expected_db in ((0, 200, -30), (3600, 4000, -30)):
        assert band_db(limited, low_hz, high_hz, rate_hz) - band_db(waveform, low_hz, high_hz, rate_hz) < expected_db
    passed_db = band_db(limited, 400, 3300, rate_hz) - band_db(waveform, 400, 3300, rate_hz)
    assert passed_db == pytest.approx(0, abs=0.2)


def test_a_telephone_delays_nothing():
    speech = syllables(2.0)
    assert shift_of(limit_band(speech, 16_000, 300.0, 3400.0), speech) == 0
    # A click stays the largest sample.
    click = np.zeros(4000, np.float32)
    click[1700] = 0.5
    assert int(np.abs(limit_band(click, 16_000, 100.0, 4000.0)).argmax()) == 1700


def test_a_band_without_a_lower_end_passes_the_lowest_tones():
    low = tone(60, 1.0)
    assert level_db(limit_band(low, 16_000, 0.0, 3400.0)) == pytest.approx(level_db(low), abs=0.1)
    assert level_db(limit_band(low, 16_000, 300.0, 3400.0)) < level_db(low) - 30


def test_a_band_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no band lies between them"):
        TelephoneConfig(low_hz=2000, high_hz=1500)


# --- codecs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("name", CODECS)
def test_a_codec_gives_as_many_samples_and_says_everything_when_it_was_said(name, rate_hz):
    speech = syllables(0.7, rate_hz)
    decoded = CODECS[name](speech, rate_hz)
    assert decoded.shape == speech.shape
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    # Filter banks may move some frequencies by a sample at the encoder's rate.
    assert abs(shift_of(decoded, speech)) <= max(1, round(2 * rate_hz / 16_000))
    # It is that speech, and has lost something.
    similarity = np.corrcoef(decoded, speech)[0, 1]
    assert 0.5 < similarity < 0.99999
    assert level_db(decoded) == pytest.approx(level_db(speech), abs=3)


@pytest.mark.parametrize("rate_hz", MP3_RATES_HZ)
def test_the_delay_of_mp3_is_taken_back_at_every_rate_and_bitrate(rate_hz):
    lowest, highest = mp3_bitrates(rate_hz)
    speech = syllables(0.5, rate_hz)
    for kbps in (lowest, (lowest + highest) / 2, highest):
        decoded = through_mp3(speech, rate_hz, kbps)
        assert decoded.shape == speech.shape
        assert abs(shift_of(decoded, speech)) <= 1


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("num_samples", [0, 1, 3, 1105])
def test_an_utterance_of_any_length_goes_through_a_codec(name, num_samples):
    decoded = CODECS[name](hiss(num_samples), 16_000)
    assert decoded.shape == (num_samples,)
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("name", CODECS)
def test_silence_stays_near_silence_and_has_no_nan(name):
    decoded = CODECS[name](np.zeros(8000, np.float32), 16_000)
    # mu-law has no code for 0: the nearest is 86 millionths.
    assert np.abs(decoded).max() < 2e-3


@pytest.mark.parametrize("name", CODECS)
def test_an_utterance_above_full_scale_is_not_clipped_by_a_codec(name):
    speech = syllables(1.0)
    loud = speech * np.float32(3 / np.abs(speech).max())
    decoded = CODECS[name](loud, 16_000)
    assert np.corrcoef(decoded, loud)[0, 1] > 0.5
    assert level_db(decoded) == pytest.approx(level_db(loud), abs=3)


def test_mu_law_is_that_of_torchaudio():
    samples = np.linspace(-1, 1, 200_001).astype(np.float32)
    expected = torchaudio.functional.mu_law_encoding(torch.from_numpy(samples), 256).numpy()
    codes = encode_mu_law(samples)
    # Where a logarithm differs in its last bit, a sample at the edge of two codes may get the other one.
    assert np.abs(codes - expected).max() <= 1
    assert (codes != expected).mean() < 1e-4
    assert (codes.min(), codes.max()) == (0, 255)
    every_code = np.arange(256)
    decoded = torchaudio.functional.mu_law_decoding(torch.from_numpy(every_code), 256).numpy()
    np.testing.assert_allclose(decode_mu_law(every_code), decoded, rtol=1e-5, atol=1e-8)


def test_mu_law_is_narrow_and_g722_is_wide():
    waveform = hiss(32_000)
    assert band_db(through_mu_law(waveform, 16_000), 4200, 8000) < band_db(waveform, 4200, 8000) - 40
    assert band_db(through_g722(waveform, 16_000), 4200, 7000) > band_db(waveform, 4200, 7000) - 3


@pytest.mark.parametrize(("name", "kbps"), [("mp3", 16.0), ("mp3", 48.0), ("opus", 8.0), ("opus", 24.0)])
def test_the_bitrate_is_about_what_was_asked(name, kbps, monkeypatch):
    sizes_bytes = []
    decode = codecs._decode

    def measure(file):
        sizes_bytes.append(len(file.getvalue()))
        return decode(file)

    monkeypatch.setattr(codecs, "_decode", measure)
    seconds = 2.0
    {"mp3": through_mp3, "opus": through_opus}[name](hiss(round(16_000 * seconds)), 16_000, kbps)
    measured_kbps = 8 * sizes_bytes[0] / (seconds + codecs.PADDING_S) / 1000
    # The container and the frames' headers come on top.
    assert measured_kbps == pytest.approx(kbps, rel=0.25)


def test_lower_bitrates_lose_more():
    speech = syllables(1.0)
    for codec, few, many in ((through_mp3, 16.0, 96.0), (through_opus, 8.0, 64.0)):
        low, high = (np.corrcoef(codec(speech, 16_000, kbps), speech)[0, 1] for kbps in (few, many))
        assert low < high


def test_threads_that_encode_at_once_give_what_one_gives():
    speech = [syllables(0.3, seed=seed) for seed in range(4)]
    expected = [[codec(waveform, 16_000) for codec in CODECS.values()] for waveform in speech]
    results = [None] * 4

    def encode(number):
        results[number] = [codec(speech[number], 16_000) for codec in CODECS.values()]

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row, expected_row in zip(results, expected, strict=True):
        for decoded, expected_decoded in zip(row, expected_row, strict=True):
            assert np.array_equal(decoded, expected_decoded)


def test_a_codec_that_is_not_installed_is_named_with_a_remedy(monkeypatch):
    assert [missing_codec(kind) for kind in ("mu_law", "g722", "mp3", "opus")] == [""] * 4
    monkeypatch.setattr(codecs.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'chorus-asr[g722]'" in missing_codec("g722")
    monkeypatch.setattr(soundfile, "available_subtypes", lambda file_format: {"PCM_16": ""})
    assert "libsndfile" in missing_codec("mp3")
    assert "libsndfile" in missing_codec("opus")
    assert missing_codec("mu_law") == ""


def test_the_default_codecs_need_no_extra():
    assert "g722" not in CodecConfig().kinds
