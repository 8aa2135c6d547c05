"""Mixtures of strangers' corpora: weights, labels, steps and languages of any kind end in shares or in one error."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data.errors import DataError
from data.sampling import languages
from data.sampling.languages import utterance_languages
from data.sampling.mixture import MixedCorpus, Mixture, Part, _counts, _locate, _share_out
from launcher.recipe.corpora import MIN_WEIGHT, MixtureCorpus

# A sample at 16 kHz, and a hundred million utterances of an hour.
LEAST_HOURS = 1 / 16000 / 3600
MOST_HOURS = 1e8


def mixture_of(entries: list[dict[str, Any]], **values: Any) -> MixtureCorpus:
    corpora = [
        {"name": "shards", "label": f"c{number}", "shards": "/x"} | entry for number, entry in enumerate(entries)
    ]
    return MixtureCorpus.model_validate({"mix": corpora} | values)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, -1, 0, -0.0, 5e-324, 1e-300, 1e300, 10**400, "nan"])
def test_a_weight_with_which_nothing_can_be_shared_is_refused(weight: object) -> None:
    with pytest.raises(ValidationError):
        mixture_of([{"weight": weight}])


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -0.1, 1.1, 1e300, "nan"])
def test_a_temperature_that_is_none_is_refused(temperature: object) -> None:
    with pytest.raises(ValidationError):
        mixture_of([{}], temperature=temperature)


@pytest.mark.parametrize(
    "label", ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a\n", "a\0", "a b", "<b>", "a" * 201, "\u202ea", "а"]
)
def test_a_label_that_is_no_name_of_a_folder_is_refused(label: str) -> None:
    with pytest.raises(ValidationError):
        mixture_of([{"label": label}])


@pytest.mark.parametrize("step", [-1, 10**13, 10**400, math.nan, 0.5])
def test_a_step_that_no_training_reaches_is_refused(step: object) -> None:
    with pytest.raises(ValidationError):
        mixture_of([{}, {"from_step": step}])


def test_more_corpora_than_a_mixture_has_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError):
        mixture_of([{}] * 1001)
    with pytest.raises(ValidationError, match="are called a"):
        mixture_of([{"label": "a"}, {"label": "a"}])


@pytest.mark.parametrize("over", ["corpora", "languages"])
@pytest.mark.parametrize("temperature", [0.0, 1e-300, 0.3, 1.0])
def test_the_most_uneven_mixture_still_has_shares_and_every_corpus_its_turn(over: Any, temperature: float) -> None:
    """sum(shares) == 1, and each share > 0, for all weights and hours that there can be"""
    amounts = list(itertools.product([MIN_WEIGHT, 1.0, 1e6], [LEAST_HOURS, 1.0, MOST_HOURS]))
    corpora = tuple(MixedCorpus(f"c{number}", weight) for number, (weight, _) in enumerate(amounts))
    hours = {}
    for corpus, (_, corpus_hours) in zip(corpora, amounts, strict=True):
        hours[Part(corpus, "xx" if over == "languages" else None)] = corpus_hours
    shares = list(Mixture(corpora, temperature, over).shares(hours).values())
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    tree = _share_out(dict(enumerate(shares)))
    # Far more micro-batches than any training has.
    for position in (0, 10**6, 10**15):
        number, _ = _locate(tree, position)
        assert number in range(len(shares))
        assert sum(count for _, count in _counts(tree, position)) == position


def test_a_thousand_corpora_each_smaller_than_all_before_are_shared_out_without_deep_recursion() -> None:
    ratio = MIN_WEIGHT * LEAST_HOURS / (1e6 * MOST_HOURS)
    # The deepest tree: each corpus is as large as all smaller ones together.
    shares = {number: ratio ** (number / 999) for number in range(1000)}
    golden = (1 + math.sqrt(5)) / 2
    depth = 0
    while golden**-depth > ratio:
        shares[depth] = golden**-depth
        depth += 1
    tree = _share_out(shares)
    assert {number for number, _ in _counts(tree, 10**12)} == set(shares)
    assert _locate(tree, 10**12)[0] in shares


def index_of(*names: str) -> Any:
    rows = [{"key": f"k{number}", "language": name} for number, name in enumerate(names)]

    class Index(SimpleNamespace):
        def __len__(self) -> int:
            return len(rows)

    return Index(rows=lambda: iter(rows), folder="/shards", fingerprint="f" * 64)


@pytest.mark.parametrize("name", ["x" * 101, "x" * 2**20, "a\0", "\0", "a\nb", "a\u2028b", "\x1b[31m", "\u202ea"])
def test_a_language_that_is_no_name_is_refused_with_its_utterance(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"utterance k1 of /shards has the language"):
        utterance_languages(index_of("de", name), tmp_path / "languages.npz")
    assert not (tmp_path / "languages.npz").exists()


def test_more_languages_than_are_spoken_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "MAX_LANGUAGES", 3)
    assert utterance_languages(index_of("a", "b", "c", "a"), tmp_path / "few.npz")[0] == ["a", "b", "c"]
    with pytest.raises(DataError, match="more than 3 languages"):
        utterance_languages(index_of("a", "b", "c", "d"), tmp_path / "many.npz")


@pytest.mark.parametrize("name", ["", "de", "zh-Hant", "../x", "a/b", "русский", "unknown", "<b>", "a" * 100])
def test_languages_are_the_same_when_they_are_read_from_their_file(tmp_path: Path, name: str) -> None:
    index = index_of("aa", name)
    names, codes = utterance_languages(index, tmp_path / "languages.npz")
    again = utterance_languages(WithoutRows(index), tmp_path / "languages.npz")  # pyright: ignore[reportArgumentType]
    assert again[0] == names
    np.testing.assert_array_equal(again[1], codes)


class WithoutRows:
    """An index whose transcripts must not be read again."""

    def __init__(self, index: Any) -> None:
        self.fingerprint = index.fingerprint
        self._length = len(index)

    def __len__(self) -> int:
        return self._length
