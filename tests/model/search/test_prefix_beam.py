"""Prefix beam search against every path there is, in one piece and in many."""

import math
from itertools import pairwise

import pytest
import torch
from ctc_paths import collapse, ends, path_scores, starts, text_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from model.recognizer import BLANK
from model.search import GreedySearch, PrefixBeamSearch, greedy, prefix_beam

EVERYTHING = 400


@settings(deadline=None, max_examples=40)
@given(frames=st.integers(0, 5), vocabulary=st.integers(2, 3), seed=st.integers(0, 10_000))
def test_a_wide_beam_finds_every_text_with_its_probability_and_its_best_path(frames, vocabulary, seed):
    torch.manual_seed(seed)
    logits = 2 * torch.randn(1, frames + 1, vocabulary)
    paths = path_scores(logits[0, :frames])
    expected = text_scores(paths)
    (found,) = prefix_beam(logits, torch.tensor([frames]), beam=EVERYTHING, candidates=vocabulary, n_best=EVERYTHING)
    assert {tuple(hypothesis.tokens) for hypothesis in found} == set(expected)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for hypothesis in found:
        text = tuple(hypothesis.tokens)
        assert hypothesis.score == pytest.approx(expected[text], abs=1e-5)
        assert hypothesis.probability == pytest.approx(math.exp(expected[text]), abs=1e-5)
        best = max((path for path in paths if collapse(path) == text), key=paths.__getitem__)
        assert hypothesis.frames == starts(best)
        assert hypothesis.ends == ends(best)


def logits_of(path: list[int], vocabulary: int = 7, height: float = 9.0) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(path), vocabulary).float() * height


def test_the_most_probable_text_is_not_always_that_of_the_best_path():
    # Blank is the best token of both frames, but the three paths that write the token are more probable together.
    logits = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    assert greedy(logits, torch.tensor([2]))[0].tokens == []
    assert prefix_beam(logits, torch.tensor([2]))[0][0].tokens == [1]


def test_confidence_is_the_clearest_posterior_of_a_token():
    logits = torch.stack([torch.tensor([0.2, 0.8]), torch.tensor([0.1, 0.9]), torch.tensor([0.7, 0.3])]).log()[None]
    assert greedy(logits, torch.tensor([3]))[0].confidences == pytest.approx([0.9])
    assert prefix_beam(logits, torch.tensor([3]))[0][0].confidences == pytest.approx([0.9])


def test_an_utterance_is_searched_the_same_alone_and_among_others():
    torch.manual_seed(0)
    logits, lengths = 3 * torch.randn(3, 20, 6), torch.tensor([20, 0, 13])
    together = prefix_beam(logits, lengths, beam=4, candidates=3, n_best=4)
    for row, length in enumerate(lengths.tolist()):
        alone = prefix_beam(logits[row : row + 1, :length], lengths[row : row + 1], beam=4, candidates=3, n_best=4)
        assert together[row] == alone[0]


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 150), max_size=6), seed=st.integers(0, 1000))
def test_pieces_give_what_the_whole_gives(cuts, seed):
    """search(a + b) == search(a), then search(b), for every cut; long enough for tokens to settle on the way."""
    torch.manual_seed(seed)
    logits, lengths = 3 * torch.randn(2, 150, 6), torch.tensor([150, 90])
    whole = prefix_beam(logits, lengths, beam=5, candidates=4, n_best=5)
    search, simple = PrefixBeamSearch(2, beam=5, candidates=4), GreedySearch(2)
    edges = [0, *sorted(cuts), 150]
    for start, stop in pairwise(edges):
        piece = (lengths - start).clamp(0, stop - start)
        search.advance(logits[:, start:stop], piece)
        simple.advance(logits[:, start:stop], piece)
    assert search.finish(5) == whole
    assert simple.finish() == greedy(logits, lengths)


def test_the_state_of_a_long_search_stays_small_and_its_times_right():
    path = [4, BLANK, 5, 5, BLANK, 6] * 300
    logits = logits_of(path)[None]
    search = PrefixBeamSearch(1, beam=6, candidates=3)
    for start in range(0, len(path), 100):
        search.advance(logits[:, start : start + 100], torch.tensor([100]).clamp(max=len(path) - start))
        assert search.num_unsettled <= 256
    (found,) = search.finish()[0]
    assert [found] == prefix_beam(logits, torch.tensor([len(path)]), beam=6, candidates=3)[0]
    assert found.tokens == list(collapse(tuple(path)))
    assert found.frames == starts(tuple(path))
    assert found.ends == ends(tuple(path))


def test_a_result_on_the_way_does_not_disturb_the_search():
    torch.manual_seed(1)
    logits, lengths = 3 * torch.randn(1, 30, 6), torch.tensor([30])
    search = PrefixBeamSearch(1)
    search.advance(logits[:, :11], torch.tensor([11]))
    assert search.finish(3) == prefix_beam(logits[:, :11], torch.tensor([11]), n_best=3)
    search.advance(logits[:, 11:], torch.tensor([19]))
    assert search.finish(3) == prefix_beam(logits, lengths, n_best=3)
