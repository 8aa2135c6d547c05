"""CTC forced alignment: the most probable path that writes given tokens (Viterbi over blank, token, blank, ...).

Shapes: B batch, R recordings, S encoder frames, V vocabulary, U tokens, L = 2 U + 1 states.
"""

from dataclasses import replace

import torch
from torch import Tensor

from model.recognizer import BLANK
from model.search.hypothesis import Hypothesis, stack_texts

NEVER = -torch.inf


@torch.no_grad()
def align(
    log_probs_RSV: Tensor, lengths_B: Tensor, tokens_BU: Tensor, token_lengths_B: Tensor, row_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The number of the token that each frame belongs to, [B, S] with -1 for blanks and padding, and the log
    probability [B] of the path, -inf where the tokens do not fit into the frames. `row_B` says which recording of R
    each text belongs to; None: to its own."""
    batch = len(tokens_BU)
    num_frames = log_probs_RSV.shape[1]
    if row_B is None:
        row_B = torch.arange(batch, device=tokens_BU.device)

    # The states of a text: blank, token, blank, token, ..., blank.
    states_BL = tokens_BU.new_full((batch, 2 * tokens_BU.shape[1] + 1), BLANK)
    states_BL[:, 1::2] = tokens_BU
    # A blank may be left out between different tokens.
    skips_BL = torch.zeros_like(states_BL, dtype=torch.bool)
    skips_BL[:, 3::2] = tokens_BU[:, 1:] != tokens_BU[:, :-1]

    # Forward: the best score of each state after each frame, and from how many states before it was reached.
    frame_S1 = torch.arange(num_frames, device=tokens_BU.device)[:, None]
    points_BSL = log_probs_RSV[row_B[:, None, None], frame_S1, states_BL[:, None]]
    scores_BL = log_probs_RSV.new_full(states_BL.shape, NEVER)
    scores_BL[:, 0] = 0.0
    moves = torch.zeros(num_frames, *states_BL.shape, dtype=torch.int8, device=states_BL.device)
    for frame in range(num_frames):
        entered_BL, moves[frame] = _enter_states(scores_BL, skips_BL)
        after_BL = entered_BL + points_BSL[:, frame]
        scores_BL = torch.where((frame < lengths_B)[:, None], after_BL, scores_BL)

    # A path ends in the last token or in the blank after it.
    last_B = 2 * token_lengths_B
    ends_B2 = torch.stack((last_B, (last_B - 1).clamp(min=0)), dim=1)
    best = scores_BL.gather(1, ends_B2).max(1)
    state_B = ends_B2.gather(1, best.indices[:, None]).squeeze(1)

    # Backward along the moves.
    token_BS = tokens_BU.new_full((batch, num_frames), -1)
    for frame in range(num_frames - 1, -1, -1):
        active_B = frame < lengths_B
        token_BS[:, frame] = torch.where(active_B & (state_B % 2 == 1), state_B // 2, -1)
        state_B = torch.where(active_B, state_B - moves[frame].gather(1, state_B[:, None]).squeeze(1), state_B)
    return token_BS, best.values


def _enter_states(scores_BL: Tensor, skips_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The best score with which each state is entered, and from how many states before."""
    stay = scores_BL
    step = torch.full_like(scores_BL, NEVER)
    step[:, 1:] = scores_BL[:, :-1]
    skip = torch.full_like(scores_BL, NEVER)
    skip[:, 2:] = scores_BL[:, :-2]
    skip.masked_fill_(~skips_BL, NEVER)
    best = torch.stack((stay, step, skip)).max(0)
    return best.values, best.indices


def with_times(hypotheses: list[list[Hypothesis]], logits_BSV: Tensor, lengths_B: Tensor) -> list[list[Hypothesis]]:
    """The hypotheses of each utterance with the frames that CTC gives their tokens; none where they do not fit."""
    flat = [hypothesis for of_utterance in hypotheses for hypothesis in of_utterance]
    if not flat:
        return hypotheses
    row_N, tokens_NU, token_lengths_N = stack_texts(hypotheses)
    log_probs_BSV = logits_BSV.float().log_softmax(-1).cpu()
    token_NS, scores_N = align(log_probs_BSV, lengths_B.cpu()[row_N], tokens_NU, token_lengths_N, row_N)
    timed: list[list[Hypothesis]] = [[] for _ in hypotheses]
    for row, hypothesis, path, score in zip(row_N.tolist(), flat, token_NS.tolist(), scores_N.tolist(), strict=True):
        starts = []
        if score > NEVER:
            starts = [path.index(token) for token in range(len(hypothesis.tokens))]
        timed[row].append(replace(hypothesis, frames=starts))
    return timed
