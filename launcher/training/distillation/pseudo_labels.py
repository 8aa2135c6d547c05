"""The texts that a teacher finds, as transcripts for its student (Kim and Rush, Sequence-Level Knowledge Distillation,
2016).

Empty texts, and texts that CTC cannot write in the student's frames, are left out; what remains of an utterance shares
a weight of 1. An utterance of which nothing remains counts for nothing.

Shapes: B batch, S teacher frames, N texts, U tokens, V vocabulary.
"""

from torch import Tensor
from torch.nn import functional

from launcher.recipe.distillation import SequenceDistillConfig
from model.search import Hypothesis, greedy, prefix_beam
from model.search.hypothesis import shares, stack_texts
from model.student import PseudoLabels


def pseudo_labels_of(
    logits_BSV: Tensor, lengths_B: Tensor, student_B: Tensor, config: SequenceDistillConfig
) -> PseudoLabels:
    """The best texts of each utterance in the teacher's CTC logits of `lengths_B` valid frames, for a student of
    `student_B` frames. There is always one, which weighs nothing where none was found, so that every lane does the
    same."""
    if config.search == "greedy":
        found = [[hypothesis] for hypothesis in greedy(logits_BSV, lengths_B)]
    else:
        found = prefix_beam(logits_BSV, lengths_B, config.beam, n_best=config.texts)
    frames = student_B.tolist()
    kept = [[text for text in texts if _is_usable(text, frames[row])] for row, texts in enumerate(found)]
    weights = [share for texts in kept for share in shares([text.score / config.temperature for text in texts])]
    if not weights:
        kept[0], weights = [Hypothesis([], [], 0.0)], [0.0]
    row_N, tokens_NU, token_lengths_N = stack_texts(kept, logits_BSV.device)
    if not tokens_NU.shape[1]:
        tokens_NU = functional.pad(tokens_NU, (0, 1))
    return PseudoLabels(row_N, tokens_NU, token_lengths_N, logits_BSV.new_tensor(weights).float())


def _is_usable(text: Hypothesis, num_frames: int) -> bool:
    """Whether there is something to learn, and room for it: between equal neighbours CTC needs a blank."""
    repeats = sum(a == b for a, b in zip(text.tokens, text.tokens[1:], strict=False))
    return len(text.tokens) > 0 and len(text.tokens) + repeats <= num_frames
