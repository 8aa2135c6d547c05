"""Greedy search with a transducer: at each frame the best tokens one after the other, until a blank.

Shapes: B batch, S encoder frames, C context tokens, D encoder width, W joint width, V vocabulary.
"""

import torch
from torch import Tensor

from model.search.hypothesis import Hypothesis
from model.transducer import Transducer


def transducer_greedy(
    transducer: Transducer, frames_BSD: Tensor, lengths_B: Tensor, symbols_per_frame: int
) -> list[Hypothesis]:
    """The greedy path of each utterance over its valid frames, with at most so many tokens per frame.

    All utterances of the batch move together. A token's confidence is its probability where it was chosen. A frame that
    has given its most tokens is left without a blank.
    """
    # The encoder's part of the joint network does not depend on the tokens: all frames at once.
    frames_BSW = transducer.frames(frames_BSD)
    batch = len(frames_BSW)
    context_BC = torch.full((batch, transducer.config.context), transducer.blank, device=frames_BSD.device)
    scores_B = torch.zeros(batch, device=frames_BSD.device)
    tokens: list[list[int]] = [[] for _ in range(batch)]
    starts: list[list[int]] = [[] for _ in range(batch)]
    confidences: list[list[float]] = [[] for _ in range(batch)]
    for frame in range(frames_BSD.shape[1]):
        going_B = frame < lengths_B
        for _ in range(symbols_per_frame):
            joint_BW = frames_BSW[:, frame] + transducer.prediction(context_BC)[:, 0]
            best_B, token_B = transducer.joint.logits(joint_BW).log_softmax(-1).max(-1)
            scores_B = scores_B + torch.where(going_B, best_B, 0.0)
            # An utterance stays at the frame until it gives a blank.
            going_B = going_B & (token_B != transducer.blank)
            if not going_B.any():
                break
            extended_BC = torch.cat((context_BC[:, 1:], token_B[:, None]), dim=1)
            context_BC = torch.where(going_B[:, None], extended_BC, context_BC)
            for row in going_B.nonzero().squeeze(1).tolist():
                tokens[row].append(int(token_B[row]))
                starts[row].append(frame)
                confidences[row].append(best_B[row].exp().item())
    hypotheses = []
    for row, score in enumerate(scores_B.tolist()):
        hypotheses.append(Hypothesis(tokens[row], starts[row], score, confidences[row]))
    return hypotheses
