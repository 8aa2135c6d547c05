"""Estimated n-gram models: probabilities that add up, by hand, and read back by the search that uses them."""

import gzip
import json
import math

import pytest

from data.errors import DataError
from data.text.language_model import count_ngrams, estimate, write_language_model
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.cli import main as chorus
from model.search import read_arpa

TEXTS = [text.split() for text in ("a b", "a b b", "b a c", "a")]
WORDS = ["a", "b", "c", "</s>", "<unk>"]


def test_probabilities_are_those_of_the_formula_by_hand():
    probabilities, backoffs = estimate(count_ngrams(TEXTS, 2))
    # 13 tokens with the ends: a 4, b 4, c 1, </s> 4; four kinds.
    assert probabilities[("a",)] == pytest.approx((4 + 4 / 5) / 17)
    assert probabilities[("<unk>",)] == pytest.approx(4 / 5 / 17)
    # After a: b twice, c once, </s> once; three kinds.
    assert probabilities[("a", "b")] == pytest.approx((2 + 3 * probabilities[("b",)]) / 7)
    assert backoffs[("a",)] == pytest.approx(3 / 7)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_probabilities_of_all_words_add_up_to_one_after_any_context(order, tmp_path):
    write_language_model(TEXTS, order, tmp_path / "lm.arpa")
    model = read_arpa(tmp_path / "lm.arpa")
    for context in ((), ("a",), ("<s>",), ("<s>", "a"), ("a", "b"), ("c", "c"), ("a", "b", "b")):
        context = model.shorten(context)
        assert sum(math.exp(model.score(context, word)) for word in WORDS) == pytest.approx(1.0, abs=1e-5)


def test_a_higher_order_expects_its_own_texts_more(tmp_path):
    def log_probability(order: int) -> float:
        write_language_model(TEXTS, order, tmp_path / "lm.arpa.gz")
        model = read_arpa(tmp_path / "lm.arpa.gz")
        total = 0.0
        for words in TEXTS:
            context = model.start
            for word in [*words, "</s>"]:
                total += model.score(context, word)
                context = model.advance(context, word)
        return total

    assert log_probability(1) < log_probability(2) < log_probability(3)


def test_texts_without_words_and_words_that_arpa_cannot_hold_are_refused(tmp_path):
    with pytest.raises(DataError, match="hold no word"):
        write_language_model([[]], 2, tmp_path / "lm.arpa")
    with pytest.raises(DataError, match="'<s>'"):
        write_language_model([["<s>"]], 2, tmp_path / "lm.arpa")
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_models_of_words_and_of_tokens(tmp_path, capsys):
    text = tmp_path / "text.txt"
    out = tmp_path / "lm.arpa"
    text.write_text("ab ba\n\nba  ab ab\n")
    assert chorus(["language-model", str(text), "--order", "2", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ngrams"] == {"1": 5, "2": 7}
    assert ("ab", "ba") in read_arpa(out).entries
    train_tokenizer(["ab ba"], TokenizerConfig(), tmp_path / "tokenizer")
    tokens = ["language-model", str(text), "--unit", "token", "--out", str(tmp_path / "lm.arpa.gz")]
    assert chorus(tokens) == 2
    assert "There is no tokenizer at" in capsys.readouterr().err
    assert chorus([*tokens, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert gzip.decompress((tmp_path / "lm.arpa.gz").read_bytes()).startswith(b"\\data\\")
    assert ("a", "b", "▁") in read_arpa(tmp_path / "lm.arpa.gz").entries
    assert chorus(["language-model", "/nowhere", "--out", str(out)]) == 2
    assert "neither a run folder nor a text file" in capsys.readouterr().err
