"""Greedy search against every path there is."""

from itertools import groupby, product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.recognizer import BLANK
from model.search import greedy


def collapse(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in groupby(path) if token != BLANK]


@settings(deadline=None, max_examples=40)
@given(frames=st.integers(1, 4), vocabulary=st.integers(2, 3), seed=st.integers(0, 10_000))
def test_greedy_finds_the_most_probable_of_all_paths(frames, vocabulary, seed):
    torch.manual_seed(seed)
    logits = 3 * torch.randn(1, frames, vocabulary)
    log_probs = logits[0].log_softmax(-1)

    def score(path: tuple[int, ...]) -> float:
        return sum(log_probs[frame, token].item() for frame, token in enumerate(path))

    best = max(product(range(vocabulary), repeat=frames), key=score)
    (found,) = greedy(logits, torch.tensor([frames]))
    assert found.tokens == collapse(best)
    assert abs(found.score - score(best)) < 1e-4


def test_token_times_are_the_frames_where_tokens_start_and_padding_is_ignored():
    path = [4, 4, BLANK, 4, 5, BLANK, 6, 6]
    logits = torch.nn.functional.one_hot(torch.tensor([path]), 7).float() * 9
    (found,) = greedy(logits, torch.tensor([6]))
    assert (found.tokens, found.frames, found.ends) == ([4, 4, 5], [0, 3, 4], [2, 4, 5])


def test_an_utterance_without_frames_has_no_tokens():
    (found,) = greedy(torch.randn(1, 3, 5), torch.tensor([0]))
    assert (found.tokens, found.score) == ([], 0.0)
