"""Error rates with intervals, by group, and what is confused."""

import jiwer
import numpy as np
import pytest

from launcher.evaluation.normalisation import load_normaliser
from launcher.evaluation.recognition import MAX_SNR_DB, Row, estimate_snr_db
from launcher.evaluation.scores import bucket, confusions, group_rates, interval, rates, replicate_rates, score
from launcher.evaluation.sets import Entry

PAIRS = [("a b c d", "a x c d"), ("e f", "e f"), ("g", ""), ("h i", "h i j"), ("k", "k")]


def scored(pairs=PAIRS, **given):
    utterances = []
    for number, (reference, hypothesis) in enumerate(pairs):
        entry = Entry(f"u{number}", reference, given.get("speaker", f"s{number % 2}"), "xx", 0.0)
        row = Row(0, number, hypothesis, (), given.get("seconds", 1.0 + 4 * number), given.get("snr_db", 15.0))
        utterances.append(score("corpus", entry, row, load_normaliser("none")))
    return utterances


def test_rates_are_those_of_jiwer_over_all_utterances():
    result = rates(scored())
    references, hypotheses = map(list, zip(*PAIRS, strict=True))
    assert result["wer"]["value"] == pytest.approx(jiwer.wer(references, hypotheses))
    assert result["cer"]["value"] == pytest.approx(jiwer.cer(references, hypotheses))
    assert {kind: result["wer"][kind] for kind in ("substitutions", "deletions", "insertions")} == {
        "substitutions": 1,
        "deletions": 1,
        "insertions": 1,
    }
    assert result["wer"]["low"] <= result["wer"]["value"] <= result["wer"]["high"]


def test_an_interval_has_the_width_that_statistics_say():
    generator = np.random.default_rng(0)
    lengths = np.full(400, 10.0)
    errors = generator.binomial(10, 0.2, 400).astype(float)
    value, low, high = interval(errors, lengths)
    # Of a mean of 4000 independent words: 1.96 standard deviations to each side; the percentiles of 1000 replicates
    # are that to some percent.
    half = 1.96 * (0.2 * 0.8 / 4000) ** 0.5
    assert value == pytest.approx(errors.sum() / 4000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_sets_of_the_same_size_are_drawn_alike():
    errors = np.arange(50.0)
    lengths = np.ones(50)
    assert replicate_rates(errors, lengths) + 2 == pytest.approx(replicate_rates(errors + 2, lengths))


def test_references_that_hold_nothing_have_no_rate():
    result = rates(scored([("", "a")]))
    assert result["wer"]["value"] is None
    assert result["wer"]["errors"] == 1


def test_groups_together_are_the_whole():
    utterances = scored()
    groups = group_rates(utterances)
    # One corpus, language, rate and ratio: nothing to tell apart.
    assert list(groups) == ["speaker", "length"]
    for members in groups.values():
        assert sum(group["utterances"] for group in members.values()) == len(utterances)
        assert sum(group["wer"]["errors"] for group in members.values()) == 3
    assert list(groups["length"]) == ["below 2 s", "5 to 10 s", "10 to 20 s"]


@pytest.mark.parametrize(
    ("value", "name"),
    [(-3, "below 0 dB"), (0, "0 to 10 dB"), (9.9, "0 to 10 dB"), (10, "10 to 20 dB"), (20, "20 dB or more")],
)
def test_an_edge_belongs_to_the_bucket_above_it(value, name):
    assert bucket(value, (0.0, 10.0, 20.0), "dB") == name


def test_the_most_frequent_confusions_are_counted():
    aligned = [
        jiwer.process_words(*pair) for pair in [("a b", "a c"), ("b", "c"), ("d e", "d"), ("f", "f g"), ("b", "x")]
    ]
    assert confusions(aligned) == {
        "substitutions": [
            {"reference": "b", "hypothesis": "c", "count": 2},
            {"reference": "b", "hypothesis": "x", "count": 1},
        ],
        "insertions": [{"text": "g", "count": 1}],
        "deletions": [{"text": "e", "count": 1}],
    }


@pytest.mark.parametrize("snr_db", [0, 10, 25])
def test_the_ratio_of_signal_to_noise_is_found_where_speech_pauses(snr_db):
    generator = np.random.default_rng(1)
    # Speech for three quarters of the time.
    speech = generator.standard_normal(64_000) * np.repeat([1, 1, 0, 1], 16_000)
    noise = generator.standard_normal(64_000) * (speech**2).mean() ** 0.5 * 10 ** (-snr_db / 20)
    assert estimate_snr_db((speech + noise).astype(np.float32), 16_000) == pytest.approx(snr_db, abs=1.5)


@pytest.mark.parametrize("waveform", [np.zeros(16_000), np.ones(10), np.repeat([0.0, 1.0], 8000)])
def test_without_noise_the_ratio_is_the_largest_and_silence_has_none(waveform):
    assert estimate_snr_db(waveform.astype(np.float32), 16_000) in (0.0, MAX_SNR_DB)
