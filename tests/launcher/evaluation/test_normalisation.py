"""Texts before they are compared."""

import importlib.util
import sys

import pytest

from launcher.errors import ConfigError
from launcher.evaluation.normalisation import basic, load_normaliser


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ёлка, ёлка!", "ёлка ёлка"),
        ("Don’t — “stop”", "don't stop"),
        ("rock 'n' roll", "rock n roll"),
        ("l'été à Noël", "l'été à noël"),
        ("Straße", "straße"),
        ("ﬁve\u00a0Ｆive", "five five"),
        ("नमस्ते।", "नमस्ते"),
        ("你好，世界。", "你好 世界"),
        ("a-b_c/d 5% $3", "a b c d 5 3"),
        ("  ", ""),
        ("…", ""),
    ],
)
def test_basic_leaves_words_alone_in_any_language(text, expected):
    assert basic(text) == expected
    assert basic(expected) == expected


def test_none_leaves_texts_as_they_are():
    assert load_normaliser("none")(" A, b ") == " A, b "


@pytest.mark.skipif(importlib.util.find_spec("whisper_normalizer") is None, reason="the extra is not installed")
def test_english_is_that_of_whisper():
    english = load_normaliser("english")
    assert english("Mr. Park's twenty-one colours, uh, won't do") == english("mister park is 21 colors will not do")


def test_english_without_its_package_is_one_sentence_that_says_what_to_install(monkeypatch):
    for name in ("whisper_normalizer", "whisper_normalizer.english"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"chorus-asr\[normalise\]"):
        load_normaliser("english")
