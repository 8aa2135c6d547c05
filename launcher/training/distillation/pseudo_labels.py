"""A teacher's hypotheses as transcripts for its student (Kim and Rush, Sequence-Level Knowledge Distillation, 2016).

Empty hypotheses are dropped, and so are those that CTC cannot align with the student's frames. The others of an
utterance share a weight of 1. An utterance without any counts for nothing.

Shapes: B batch, S teacher frames, N pseudo-labels, U tokens, V vocabulary.
"""

from itertools import pairwise

from torch import Tensor
from torch.nn import functional

from launcher.recipe.distillation import SequenceDistillConfig
from model.search import Hypothesis, greedy, prefix_beam
from model.search.hypothesis import shares, stack_texts
from model.student import PseudoLabels


def make_pseudo_labels(
    logits_BSV: Tensor,
    lengths_B: Tensor,
    student_lengths_B: Tensor,
    config: SequenceDistillConfig,
) -> PseudoLabels:
    """The best hypotheses of each utterance in the teacher's CTC logits of `lengths_B` valid frames, for a student of
    `student_lengths_B` frames.

    There is always one pseudo-label, so that every lane runs the same parts of the model; it has a weight of 0 where no
    hypothesis can be learnt.
    """
    if config.search == "greedy":
        hypotheses = [[hypothesis] for hypothesis in greedy(logits_BSV, lengths_B)]
    else:
        hypotheses = prefix_beam(logits_BSV, lengths_B, config.beam, n_best=config.texts)

    labels: list[list[Hypothesis]] = []
    weights: list[float] = []
    student_lengths: list[int] = student_lengths_B.tolist()
    for candidates, num_frames in zip(hypotheses, student_lengths, strict=True):
        fitting: list[Hypothesis] = []
        for hypothesis in candidates:
            # Between equal neighbours CTC needs a blank, which takes a frame of its own.
            repeats = sum(previous == token for previous, token in pairwise(hypothesis.tokens))
            if 0 < len(hypothesis.tokens) + repeats <= num_frames:
                fitting.append(hypothesis)
        labels.append(fitting)
        # The temperature softens the distribution over an utterance's hypotheses.
        weights += shares([hypothesis.score / config.temperature for hypothesis in fitting])
    if not weights:
        # Every lane runs the same parts of the model, so there must be one.
        labels[0] = [Hypothesis([], [], 0.0)]
        weights = [0.0]

    row_N, tokens_NU, token_lengths_N = stack_texts(labels, logits_BSV.device)
    if not tokens_NU.shape[1]:
        # CTC and the decoder take no empty dimension.
        tokens_NU = functional.pad(tokens_NU, (0, 1))
    weight_N = logits_BSV.new_tensor(weights).float()
    return PseudoLabels(row_N, tokens_NU, token_lengths_N, weight_N)
