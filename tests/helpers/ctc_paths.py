"""Every CTC path there is, for searches to be compared with."""

from itertools import groupby, product

import torch
from torch import Tensor

from model.recognizer import BLANK


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in groupby(path) if token != BLANK)


def starts(path: tuple[int, ...]) -> list[int]:
    """The frames at which the tokens of a path begin."""
    return [s for s, token in enumerate(path) if token != BLANK and (s == 0 or path[s - 1] != token)]


def ends(path: tuple[int, ...]) -> list[int]:
    """The frame after the last one of each token of a path."""
    last = len(path) - 1
    return [s + 1 for s, token in enumerate(path) if token != BLANK and (s == last or path[s + 1] != token)]


def path_scores(logits_SV: Tensor) -> dict[tuple[int, ...], float]:
    """The log probability of every path over the frames."""
    log_probs = logits_SV.double().log_softmax(-1).tolist()
    frames, vocabulary = range(len(log_probs)), range(logits_SV.shape[1])
    return {
        path: sum(log_probs[frame][path[frame]] for frame in frames) for path in product(vocabulary, repeat=len(frames))
    }


def text_scores(paths: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """The log probability of every text: of all paths that write it."""
    found: dict[tuple[int, ...], list[float]] = {}
    for path, score in paths.items():
        found.setdefault(collapse(path), []).append(score)
    return {text: float(torch.tensor(scores, dtype=torch.float64).logsumexp(0)) for text, scores in found.items()}
