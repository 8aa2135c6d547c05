"""Language models and hotwords: by hand, against every text there is, and without a trace where they do not apply."""

import gzip
import importlib.util
import math
import sys

import pytest
import torch
from ctc_paths import path_scores, text_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from model.search import (
    Fusion,
    Hotwords,
    KenlmModel,
    TokenLanguageModel,
    WordLanguageModel,
    prefix_beam,
    read_arpa,
    read_language_model,
)
from model.search.fusion import FusionTable

ARPA = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=1

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-0.7\ta\t-0.2
-0.8\tb\t-0.4
-2.0\t<unk>

\\2-grams:
-0.3\t<s> a\t-0.1
-0.4\ta b\t-0.6
-0.2\tb </s>
-0.9\tb a

\\3-grams:
-0.05\t<s> a b

\\end\\
"""
# ids 0 to 3 are blank, unknown, start and end.
CHARACTERS = ["<blank>", "<unk>", "<s>", "</s>", "a", "b", "▁"]
PIECES = ["<blank>", "<unk>", "<s>", "</s>", "▁a", "▁b", "b", "c"]


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "small.arpa"
    path.write_text(ARPA)
    return path


def log10(model, words: list[str]) -> list[float]:
    """log10 p of each word after those before it, and of the end."""
    context, found = model.start, []
    for word in [*words, "</s>"]:
        found.append(model.score(context, word) / math.log(10))
        context = model.advance(context, word)
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "b"], [-0.3, -0.05, -0.6 - 0.2]),  # trigram; then a b (its back-off) and b </s>
        (["b", "a"], [-0.5 - 0.8, -0.9, -0.2 - 1.0]),
        (["a", "x", "a"], [-0.3, -0.1 - 0.2 - 2.0, -0.7, -0.2 - 1.0]),  # an unknown word leaves no context
        ([], [-0.5 - 1.0]),
    ],
)
def test_probabilities_back_off_as_computed_by_hand(arpa, words, expected):
    assert log10(read_arpa(arpa), words) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ngram 1=", "ngram   1  =   "),
        ("ngram 1=", "ngram\t1\t=\t"),
        ("\\data\\", "\ufeff\\data\\"),
        ("\n", "\r\n"),
        ("\n", "  \n"),
    ],
)
def test_a_header_of_another_tool_reads_the_same(arpa, tmp_path, old, new):
    path = tmp_path / "other.arpa"
    path.write_bytes(ARPA.replace(old, new).encode())
    assert read_arpa(path).entries == read_arpa(arpa).entries


def test_a_header_without_a_count_is_named(tmp_path):
    path = tmp_path / "uncounted.arpa"
    path.write_text(ARPA.replace("ngram 1=", "unigrams "))
    with pytest.raises(ValueError, match="has no line `ngram 1=COUNT` in its header"):
        read_arpa(path)


def test_a_gzipped_model_reads_the_same(arpa, tmp_path):
    packed = tmp_path / "small.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.encode()))
    assert read_arpa(packed).entries == read_arpa(arpa).entries


def test_without_an_unknown_word_the_rarest_stands_for_it(tmp_path):
    path = tmp_path / "closed.arpa"
    path.write_text(ARPA.replace("-2.0\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4"))
    assert log10(read_arpa(path), ["a", "x"]) == pytest.approx([-0.3, -0.1 - 0.2 - 1.0, -1.0])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\\end\\", "", "no whole ARPA file"),
        ("-0.9\tb a\n", "", "announces 4 2-grams and holds 3"),
        ("-0.9\tb a", "-0.9\tb", "line 17"),
        ("-0.9\tb a", "nine\tb a", "line 17"),
        (ARPA, "hello", "no whole ARPA file"),
    ],
)
def test_a_file_that_is_no_arpa_is_refused_with_its_place(tmp_path, old, new, words):
    path = tmp_path / "broken.arpa"
    path.write_text(ARPA.replace(old, new))
    with pytest.raises(ValueError, match=words):
        read_arpa(path)


def test_the_scores_of_all_tokens_are_those_of_each(arpa):
    model = read_arpa(arpa)
    scorer = TokenLanguageModel(model, CHARACTERS)
    for state in (model.start, ("a",), ("<s>", "a"), ("a", "b"), ()):
        # Start and end, as tokens within a text, are unknown.
        expected = [model.score(state, piece if piece not in ("<s>", "</s>") else "<unk>") for piece in CHARACTERS]
        assert scorer.scores(state).tolist() == pytest.approx(expected)


def total(scorer, tokens) -> float:
    """What a text is worth, token by token and with its end."""
    state, points = scorer.start, 0.0
    for token in tokens:
        points += scorer.scores(state)[token]
        state = scorer.advance(state, token)
    return points + scorer.end(state)


def test_a_word_counts_once_when_it_is_complete(arpa):
    model = read_arpa(arpa)
    scorer = WordLanguageModel(model, PIECES)
    for tokens, words in (([4, 5], ["a", "b"]), ([4, 6, 5], ["ab", "b"]), ([5], ["b"]), ([], [])):
        assert total(scorer, tokens) / math.log(10) == pytest.approx(sum(log10(model, words)))
    with_spaces = WordLanguageModel(model, CHARACTERS)
    assert total(with_spaces, [4, 6, 5]) / math.log(10) == pytest.approx(sum(log10(model, ["a", "b"])))
    assert total(with_spaces, [4, 6, 5, 6]) == pytest.approx(total(with_spaces, [4, 6, 5]))


needs_kenlm = pytest.mark.skipif(
    importlib.util.find_spec("kenlm") is None, reason="needs the package kenlm: pip install 'chorus-asr[kenlm]'"
)


@needs_kenlm
def test_kenlm_gives_the_scores_of_our_own_reader(arpa):
    """|log10 p_kenlm - log10 p| <= 1e-4 for words, texts and tokens: KenLM holds scores in fp32."""
    our_model, kenlm_model = read_arpa(arpa), KenlmModel(arpa)
    for words in (["a", "b"], ["b", "a"], ["a", "x", "a"], ["b", "b", "a", "b"], []):
        assert log10(kenlm_model, words) == pytest.approx(log10(our_model, words), abs=1e-4)
    for kind, pieces in (
        (TokenLanguageModel, CHARACTERS),
        (WordLanguageModel, CHARACTERS),
        (WordLanguageModel, PIECES),
    ):
        our_scorer, kenlm_scorer = kind(our_model, pieces), kind(kenlm_model, pieces)
        our_state, kenlm_state = our_scorer.start, kenlm_scorer.start
        for token in (4, 5, 6, 5, 1, 4, 2, 5):
            expected = our_scorer.scores(our_state).tolist()
            assert kenlm_scorer.scores(kenlm_state).tolist() == pytest.approx(expected, abs=1e-4)
            our_state, kenlm_state = our_scorer.advance(our_state, token), kenlm_scorer.advance(kenlm_state, token)
            assert kenlm_scorer.end(kenlm_state) == pytest.approx(our_scorer.end(our_state), abs=1e-4)


@needs_kenlm
def test_states_of_kenlm_that_score_the_same_are_one_state(arpa):
    model = KenlmModel(arpa)
    first, second = model.advance(model.start, "a"), model.advance(model.start, "a")
    assert first == second
    assert hash(first) == hash(second)
    assert first != model.no_context
    assert model.advance(first, "x") == model.no_context


@needs_kenlm
def test_a_beam_with_kenlm_finds_what_it_finds_with_our_own_reader(arpa):
    torch.manual_seed(0)
    logits, lengths = torch.randn(2, 8, 7), torch.tensor([8, 5])
    found = []
    for model in (read_arpa(arpa), KenlmModel(arpa)):
        fusion = Fusion(7, [(TokenLanguageModel(model, CHARACTERS), 0.5)])
        found.append(prefix_beam(logits, lengths, beam=5, n_best=5, fusion=fusion))
    for ours, kenlms in zip(*found, strict=True):
        assert [hypothesis.tokens for hypothesis in kenlms] == [hypothesis.tokens for hypothesis in ours]
        expected = [hypothesis.score for hypothesis in ours]
        assert [hypothesis.score for hypothesis in kenlms] == pytest.approx(expected, abs=1e-3)


def test_a_kenlm_binary_without_the_package_is_refused_with_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "lm.bin"
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ValueError, match=r"lm\.bin is a KenLM binary.*pip install"):
        read_language_model(path)


def test_an_arpa_file_is_read_without_kenlm_whatever_its_name(arpa, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    packed = tmp_path / "small.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.encode()))
    for path in (arpa, packed):
        assert log10(read_language_model(path), ["a", "b"]) == log10(read_arpa(arpa), ["a", "b"])


@settings(deadline=None, max_examples=25)
@given(
    frames=st.integers(1, 4),
    kind=st.sampled_from(["token", "word", "hotwords"]),
    weight=st.floats(0.1, 2.0),
    length_bonus=st.floats(-1.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_a_wide_beam_ranks_every_text_by_its_fused_score(arpa, frames, kind, weight, length_bonus, seed):
    """score(text) == ln p_ctc(text) + weight x points(text) + length_bonus x tokens."""
    torch.manual_seed(seed)
    logits = torch.full((1, frames, 7), -20.0)
    logits[..., [0, 4, 5, 6]] = 2 * torch.randn(1, frames, 4)
    scorer = {
        "token": TokenLanguageModel(read_arpa(arpa), CHARACTERS),
        "word": WordLanguageModel(read_arpa(arpa), CHARACTERS),
        "hotwords": Hotwords([[4, 5], [5, 6, 4], [5]], CHARACTERS, 1.5),
    }[kind]
    fusion = Fusion(7, [(scorer, weight)], length_bonus)
    (found,) = prefix_beam(logits, torch.tensor([frames]), beam=300, candidates=6, n_best=300, fusion=fusion)
    texts = text_scores(path_scores(logits[0]))
    for hypothesis in found[:30]:
        expected = texts[tuple(hypothesis.tokens)] + weight * total(scorer, hypothesis.tokens)
        assert hypothesis.score == pytest.approx(expected + length_bonus * len(hypothesis.tokens), abs=1e-4)
    best = max(texts, key=lambda text: texts[text] + weight * total(scorer, text) + length_bonus * len(text))
    assert found[0].tokens == list(best)


def occurrences(text: str, phrases: list[str]) -> int:
    """Characters, spaces aside, of the phrases that stand in a text as whole words."""
    padded = f" {text} "
    return sum(
        len(phrase.replace(" ", "")) * sum(padded[i:].startswith(f" {phrase} ") for i in range(len(padded)))
        for phrase in phrases
    )


@settings(deadline=None, max_examples=200)
@given(
    text=st.text("ab ", max_size=9).map(lambda text: " ".join(text.split())),
    phrases=st.lists(st.sampled_from(["a", "ab", "a b", "b a", "ab a", "b"]), unique=True),
)
def test_only_phrases_that_stand_in_a_text_are_worth_anything(text, phrases):
    """points(text) == bonus x sum of the lengths of the phrases in it, whatever was given on account."""
    ids = {"a": 4, "b": 5, " ": 6}
    hotwords = Hotwords([[ids[c] for c in phrase] for phrase in phrases], CHARACTERS, 2.0)
    assert total(hotwords, [ids[c] for c in text]) == pytest.approx(2.0 * occurrences(text, phrases))


def test_a_hotword_changes_a_doubtful_text_and_leaves_no_trace_in_another():
    # "ab" and "aa" are nearly as probable.
    logits = torch.full((1, 3, 7), -9.0)
    logits[0, 0, 4], logits[0, 1, 0] = 5.0, 5.0
    logits[0, 2, 4], logits[0, 2, 5] = 3.0, 2.0
    logits += 0.01 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([3])
    plain = prefix_beam(logits, lengths, beam=300, n_best=300)[0]
    assert plain[0].tokens == [4, 4]
    wanted = Fusion(7, [(Hotwords([[4, 5]], CHARACTERS, 1.0), 1.0)])
    assert prefix_beam(logits, lengths, fusion=wanted)[0][0].tokens == [4, 5]
    # The match of "a b b b" begins and breaks: nothing of it may stay.
    broken = Fusion(7, [(Hotwords([[4, 5, 5, 5]], CHARACTERS, 1.0), 1.0)])
    after = prefix_beam(logits, lengths, beam=300, n_best=300, fusion=broken)[0]
    assert [h.tokens for h in after] == [h.tokens for h in plain]
    assert [h.score for h in after] == pytest.approx([h.score for h in plain])


def test_a_table_that_forgets_gives_the_same_points(arpa):
    fusion = Fusion(7, [(TokenLanguageModel(read_arpa(arpa), CHARACTERS), 1.0)])
    large, small = FusionTable(fusion), FusionTable(fusion, most_numbers=14)
    generator = torch.Generator().manual_seed(0)
    row_of = {"large": torch.zeros(2, 3, dtype=torch.int64), "small": torch.zeros(2, 3, dtype=torch.int64)}
    for _ in range(30):
        tokens = torch.randint(4, 7, (2, 3), generator=generator)
        moves = torch.rand(2, 3, generator=generator) < 0.6
        row_of = {
            "large": large.advance(row_of["large"], tokens, moves),
            "small": small.advance(row_of["small"], tokens, moves),
        }
        assert torch.equal(large.all_scores(row_of["large"]), small.all_scores(row_of["small"]))
        assert torch.equal(large.end(row_of["large"]), small.end(row_of["small"]))
    assert len(small._states) < len(large._states)
