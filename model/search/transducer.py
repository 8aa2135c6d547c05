"""Greedy search with a transducer: at each frame the best tokens one after the other, until a blank.

Shapes: B batch, S encoder frames, C context tokens, D encoder width, W joint width, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.search.hypothesis import Hypothesis
from model.transducer import Transducer


@dataclass
class _Text:
    """The tokens of one utterance so far, with the frame and the probability of each."""

    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)


def transducer_greedy(
    transducer: Transducer,
    frames_BSD: Tensor,
    lengths_B: Tensor,
    symbols_per_frame: int,
) -> list[Hypothesis]:
    """The greedy path of each utterance over its valid frames, with at most so many tokens per frame.

    All utterances of the batch move together. A token's confidence is its probability where it was chosen. A frame that
    has given its most tokens is left without a blank.
    """
    batch, num_frames, _ = frames_BSD.shape
    device = frames_BSD.device
    # The encoder's part of the joint network does not depend on the tokens: all frames at once.
    frames_BSW = transducer.frames(frames_BSD)
    # A text begins after blanks.
    num_context = transducer.config.context
    context_BC = torch.full((batch, num_context), transducer.blank, device=device)
    scores_B = torch.zeros(batch, device=device)
    texts = [_Text() for _ in range(batch)]

    for frame in range(num_frames):
        at_frame_B = frame < lengths_B
        for _ in range(symbols_per_frame):
            prediction_BW = transducer.prediction(context_BC)[:, 0]
            joint_BW = frames_BSW[:, frame] + prediction_BW
            # The loss is over these probabilities, of tokens and the blank together.
            log_probs_BV = transducer.joint.logits(joint_BW).log_softmax(-1)
            best_B, token_B = log_probs_BV.max(-1)
            scores_B = scores_B + torch.where(at_frame_B, best_B, 0.0)

            # An utterance stays at the frame until it gives a blank.
            at_frame_B = at_frame_B & (token_B != transducer.blank)
            if not at_frame_B.any():
                break
            # The prediction network sees the newest C tokens.
            newest_BC = torch.cat((context_BC[:, 1:], token_B[:, None]), dim=1)
            context_BC = torch.where(at_frame_B[:, None], newest_BC, context_BC)
            confidence_B = best_B.exp()
            for row in at_frame_B.nonzero().squeeze(1).tolist():
                text = texts[row]
                text.tokens.append(int(token_B[row]))
                text.starts.append(frame)
                text.confidences.append(confidence_B[row].item())

    scores = scores_B.tolist()
    hypotheses = []
    for row, text in enumerate(texts):
        hypothesis = Hypothesis(
            tokens=text.tokens,
            frames=text.starts,
            score=scores[row],
            confidences=text.confidences,
            # A transducer says where it writes a token, and nothing of how long it lasts.
            ends=[start + 1 for start in text.starts],
        )
        hypotheses.append(hypothesis)
    return hypotheses
