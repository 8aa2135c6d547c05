"""Attention rescoring: the decoder chooses among the hypotheses of CTC (Zhang et al., U2, 2020), with a decoder that
reads backwards too where there is one (Wu et al., U2++, 2021).

Shapes: B batch, S encoder frames, D width, N texts of all utterances, U tokens, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor

from model.decoder import Decoder, append_end, reverse, shift_right
from model.layers.subsampling import valid_mask
from model.recognizer import END, START, Recognizer
from model.search.hypothesis import Hypothesis, flatten, ranked, stack_texts, unflatten


@torch.no_grad()
def rescore(
    recognizer: Recognizer,
    frames_BSD: Tensor,
    lengths_B: Tensor,
    hypotheses: list[list[Hypothesis]],
    ctc_weight: float,
    reverse_weight: float = 0.0,
) -> list[list[Hypothesis]]:
    """The hypotheses of each utterance by ctc_weight x their score + (1 - reverse_weight) ln p_decoder +
    reverse_weight ln p_reverse, best first. Times and confidences stay; a reverse_weight above 0 needs a decoder that
    reads backwards."""
    flat = flatten(hypotheses)
    if not flat:
        return hypotheses

    # Each text is a row of the decoder's batch, beside a copy of its utterance's frames.
    row_N, tokens_NU, token_lengths_N = stack_texts(hypotheses, frames_BSD.device)
    num_frames = frames_BSD.shape[1]
    memory_NSD = frames_BSD[row_N]
    valid_NS = valid_mask(lengths_B, num_frames)[row_N]

    assert recognizer.decoder is not None
    scores_N = text_scores(recognizer.decoder, memory_NSD, valid_NS, tokens_NU, token_lengths_N)
    if reverse_weight:
        assert recognizer.reverse_decoder is not None
        backwards_NU = reverse(tokens_NU, token_lengths_N)
        backwards_N = text_scores(
            recognizer.reverse_decoder,
            memory_NSD,
            valid_NS,
            backwards_NU,
            token_lengths_N,
        )
        scores_N = (1 - reverse_weight) * scores_N + reverse_weight * backwards_N

    rescored = []
    for hypothesis, decoder_score in zip(flat, scores_N.tolist(), strict=True):
        score = ctc_weight * hypothesis.score + decoder_score
        rescored.append(replace(hypothesis, score=score))
    return [ranked(texts) for texts in unflatten(rescored, hypotheses)]


def text_scores(
    decoder: Decoder,
    memory_NSD: Tensor,
    valid_NS: Tensor,
    tokens_NU: Tensor,
    token_lengths_N: Tensor,
) -> Tensor:
    """ln p [N] of each text and its end, in one pass of the decoder."""
    inputs_NU = shift_right(tokens_NU, START)
    targets_NU = append_end(tokens_NU, token_lengths_N, END)
    logits_NUV = decoder(memory_NSD, valid_NS, inputs_NU)
    log_probs_NUV = logits_NUV.float().log_softmax(-1)
    # fp64: a sum over a long text would round in fp32, and scores are compared.
    log_probs_NU = log_probs_NUV.gather(2, targets_NU[..., None]).squeeze(2)
    log_probs_NU = log_probs_NU.double()

    # The tokens and the end after them count, padding does not.
    num_targets = targets_NU.shape[1]
    positions_U = torch.arange(num_targets, device=targets_NU.device)
    counts_NU = positions_U <= token_lengths_N[:, None]
    return torch.where(counts_NU, log_probs_NU, 0.0).sum(1)
