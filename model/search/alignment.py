"""CTC forced alignment: the most probable path that writes given tokens (Viterbi over blank, token, blank, ...).

Shapes: B batch, R recordings, S encoder frames, V vocabulary, U tokens, N hypotheses of all utterances, L = 2 U + 1
states.
"""

from dataclasses import replace

import torch
from torch import Tensor

from model.recognizer import BLANK
from model.search.hypothesis import Hypothesis, flatten, stack_texts, unflatten

NEVER = -torch.inf


@torch.no_grad()
def align(
    log_probs_RSV: Tensor,
    lengths_B: Tensor,
    tokens_BU: Tensor,
    token_lengths_B: Tensor,
    row_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The number of the token that each frame belongs to, [B, S] with -1 for blanks and padding, and the log
    probability [B] of the path, -inf where the tokens do not fit into the frames. `row_B` says which recording of R
    each text belongs to; None: to its own."""
    batch, num_tokens = tokens_BU.shape
    num_frames = log_probs_RSV.shape[1]
    device = tokens_BU.device
    if row_B is None:
        row_B = torch.arange(batch, device=device)

    # The states of a text: blank, token, blank, token, ..., blank.
    num_states = 2 * num_tokens + 1
    states_BL = tokens_BU.new_full((batch, num_states), BLANK)
    states_BL[:, 1::2] = tokens_BU
    # A blank may be left out between different tokens: without it, equal ones would be merged.
    previous_BU = tokens_BU[:, :-1]
    skips_BL = torch.zeros_like(states_BL, dtype=torch.bool)
    skips_BL[:, 3::2] = tokens_BU[:, 1:] != previous_BU

    # The log probability of every state at every frame, gathered at once.
    row_B11 = row_B[:, None, None]
    frame_S1 = torch.arange(num_frames, device=device)[:, None]
    states_B1L = states_BL[:, None]
    log_probs_BSL = log_probs_RSV[row_B11, frame_S1, states_B1L]
    scores_BL, moves_SBL = forward_scores(log_probs_BSL, lengths_B, skips_BL)

    # A path ends in the last token or in the blank after it.
    last_blank_B = 2 * token_lengths_B
    last_token_B = (last_blank_B - 1).clamp(min=0)
    ends_B2 = torch.stack((last_blank_B, last_token_B), dim=1)
    best = scores_BL.gather(1, ends_B2).max(1)
    best_B1 = best.indices[:, None]
    state_B = ends_B2.gather(1, best_B1).squeeze(1)

    # Backward along the moves. States of odd number are tokens.
    token_BS = tokens_BU.new_full((batch, num_frames), -1)
    for frame in reversed(range(num_frames)):
        active_B = frame < lengths_B
        is_token_B = state_B % 2 == 1
        writes_B = active_B & is_token_B
        token_BS[:, frame] = torch.where(writes_B, state_B // 2, -1)

        move_B1 = moves_SBL[frame].gather(1, state_B[:, None])
        before_B = state_B - move_B1.squeeze(1)
        state_B = torch.where(active_B, before_B, state_B)
    return token_BS, best.values


def forward_scores(
    log_probs_BSL: Tensor,
    lengths_B: Tensor,
    skips_BL: Tensor,
) -> tuple[Tensor, Tensor]:
    """The best score [B, L] of each state after the last valid frame, and for each frame from how many states before
    each state was reached, int8 [S, B, L]. `skips_BL` is True at states that may be reached from two before."""
    batch, num_frames, num_states = log_probs_BSL.shape
    scores_BL = log_probs_BSL.new_full((batch, num_states), NEVER)
    scores_BL[:, 0] = 0.0
    # A byte each: they are kept for all frames.
    moves_SBL = torch.empty(num_frames, batch, num_states, dtype=torch.int8, device=scores_BL.device)
    for frame in range(num_frames):
        step_BL = torch.full_like(scores_BL, NEVER)
        step_BL[:, 1:] = scores_BL[:, :-1]
        skip_BL = torch.full_like(scores_BL, NEVER)
        skip_BL[:, 2:] = scores_BL[:, :-2]
        skip_BL.masked_fill_(~skips_BL, NEVER)

        # The index of the maximum is the number of states: 0, 1 or 2.
        entered = torch.stack((scores_BL, step_BL, skip_BL)).max(0)
        moves_SBL[frame] = entered.indices
        after_BL = entered.values + log_probs_BSL[:, frame]
        active_B = frame < lengths_B
        scores_BL = torch.where(active_B[:, None], after_BL, scores_BL)
    return scores_BL, moves_SBL


def with_times(
    hypotheses: list[list[Hypothesis]],
    logits_BSV: Tensor,
    lengths_B: Tensor,
) -> list[list[Hypothesis]]:
    """The hypotheses of each utterance with the frames that CTC gives their tokens; none where they do not fit."""
    flat = flatten(hypotheses)
    if not flat:
        return hypotheses

    row_N, tokens_NU, token_lengths_N = stack_texts(hypotheses)
    log_probs_BSV = logits_BSV.float().log_softmax(-1).cpu()
    lengths_N = lengths_B.cpu()[row_N]
    token_NS, scores_N = align(
        log_probs_BSV,
        lengths_N,
        tokens_NU,
        token_lengths_N,
        row_N,
    )

    paths = token_NS.tolist()
    scores = scores_N.tolist()
    timed = []
    for hypothesis, path, score in zip(flat, paths, scores, strict=True):
        starts: list[int] = []
        ends: list[int] = []
        if score > NEVER:
            for frame, token in enumerate(path):
                if token < 0:
                    continue
                # Tokens come in order, each on frames that follow each other.
                if token == len(starts):
                    starts.append(frame)
                    ends.append(frame)
                ends[token] = frame + 1
        timed.append(replace(hypothesis, frames=starts, ends=ends))
    return unflatten(timed, hypotheses)
