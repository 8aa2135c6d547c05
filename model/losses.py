"""The losses of training and distillation.

Every function returns a *sum*; the caller divides by the step's global counts, so that a loss does not depend on how a
step was split into micro-batches or processes. Losses are computed in fp32 whatever the precision of the logits.

Shapes: B batch, S encoder frames, U tokens, V vocabulary, D width.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional

from model.decoder import append_end
from model.recognizer import BLANK, END


class ExpertsObjectiveConfig(BaseModel, frozen=True, extra="forbid"):
    """Weights of the routers' losses, whatever else a model is trained for."""

    balance_weight: float = Field(
        default=0.01,
        ge=0,
        le=1e6,
        description="of the experts' balance loss, mean over layers",
    )
    z_weight: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="of the routers' z-loss, mean over layers",
    )
    sparsity_weight: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="of the routers' sparsity (the L1 norm of L2-normed probabilities), mean over layers",
    )


class ObjectiveConfig(ExpertsObjectiveConfig, frozen=True, extra="forbid"):
    ctc_weight: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of CTC; the rest is the attention decoder's",
    )
    intermediate_weight: float = Field(
        default=0.3,
        ge=0,
        le=1e6,
        description="weight of CTC at the layers of model.intermediate_ctc, relative to CTC at the last",
    )
    reverse_weight: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of the decoder that reads backwards in the attention part, in a model that has one",
    )
    transducer_weight: float = Field(
        default=1.0,
        ge=0,
        le=1e6,
        description="of the transducer's loss, added to the others in a model that has one",
    )
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="of the decoder's cross-entropy",
    )


def ctc_sum(
    logits_BSV: Tensor,
    lengths_B: Tensor,
    tokens_BU: Tensor,
    token_lengths_B: Tensor,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Sum over utterances of -log p(tokens | frames) (Graves et al., 2006), each times its weight where there are
    weights. Utterances of no frames count 0."""
    log_probs_SBV = logits_BSV.float().log_softmax(-1).transpose(0, 1)
    losses_B = functional.ctc_loss(
        log_probs_SBV,
        tokens_BU,
        lengths_B.clamp(min=1),  # of no frames the loss would be infinite
        token_lengths_B,
        blank=BLANK,
        reduction="none",
    )
    # Not times 0: the product of 0 and an infinite loss is NaN.
    losses_B = torch.where(lengths_B > 0, losses_B, 0.0)
    if weight_B is not None:
        losses_B = losses_B * weight_B
    return losses_B.sum()


def attention_sum(
    logits_BUV: Tensor,
    tokens_BU: Tensor,
    token_lengths_B: Tensor,
    valid_B: Tensor,
    smoothing: float,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Sum over tokens and ends of the label-smoothed cross-entropy, each times the weight of its row where there are
    weights; rows where valid_B is False count 0."""
    target_BU = append_end(tokens_BU, token_lengths_B, END)
    losses_BU = functional.cross_entropy(
        # torch takes the classes second.
        logits_BUV.float().transpose(1, 2),
        target_BU,
        reduction="none",
        label_smoothing=smoothing,
    )
    counted_BU = target_mask(token_lengths_B, valid_B, target_BU.shape[1])
    losses_BU = torch.where(counted_BU, losses_BU, 0.0)
    if weight_B is not None:
        losses_BU = losses_BU * weight_B[:, None]
    return losses_BU.sum()


def target_mask(
    token_lengths_B: Tensor,
    valid_B: Tensor,
    num_targets: int,
) -> Tensor:
    """[B, num_targets] bool: True at each valid utterance's tokens and at the end after them."""
    positions_U = torch.arange(num_targets, device=token_lengths_B.device)
    # Up to and with the place after the last token, which is the end's.
    within_BU = positions_U <= token_lengths_B[:, None]
    return within_BU & valid_B[:, None]


def hidden_sum(
    student_BSD: Tensor,
    teacher_BSD: Tensor,
    valid_BS: Tensor,
) -> Tensor:
    """Sum over valid frames of the squared distance of two hidden states, as a mean over the width."""
    difference_BSD = student_BSD.float() - teacher_BSD.float()
    distance_BS = difference_BSD.square().mean(-1)
    return torch.where(valid_BS, distance_BS, 0.0).sum()


def cosine_sum(
    student_BSD: Tensor,
    teacher_BSD: Tensor,
    valid_BS: Tensor,
) -> Tensor:
    """Sum over valid frames of -log sigmoid(cos(student, teacher)) (Chang et al., DistilHuBERT, 2022, equation 1)."""
    cosine_BS = functional.cosine_similarity(
        student_BSD.float(),
        teacher_BSD.float(),
        dim=-1,
    )
    losses_BS = -functional.logsigmoid(cosine_BS)
    return torch.where(valid_BS, losses_BS, 0.0).sum()


def divergence_sum(
    student_V: Tensor,
    teacher_V: Tensor,
    weight: Tensor,
    temperature: float,
) -> Tensor:
    """Sum of weight x T^2 KL(teacher || student) over logits [..., V] softened by T (Hinton et al., 2015).

    `weight` [...] is 0 where a position does not count.
    """
    # Log probabilities of both: a probability may be 0 in fp32, its logarithm stays finite.
    log_student_V = (student_V.float() / temperature).log_softmax(-1)
    log_teacher_V = (teacher_V.float() / temperature).log_softmax(-1)
    divergence = functional.kl_div(
        log_student_V,
        log_teacher_V,
        reduction="none",
        log_target=True,
    ).sum(-1)
    # Softening divides gradients by about T^2: the factor keeps their size beside the other losses.
    return temperature**2 * (divergence * weight).sum()


def frame_weights(
    teacher_BSV: Tensor,
    valid_BS: Tensor,
    blank_weight: float,
) -> Tensor:
    """[B, S]: 1 at frames where the teacher's CTC favours a token, `blank_weight` where blank, 0 beyond the end."""
    # Most frames are blank in CTC: unweighted, they would hide what the teacher says about tokens.
    blank_BS = teacher_BSV.argmax(-1) == BLANK
    weight_BS = torch.where(blank_BS, blank_weight, 1.0)
    return weight_BS * valid_BS


def units_sum(
    logits_BSV: Tensor,
    codes_BS: Tensor,
    valid_BS: Tensor,
) -> Tensor:
    """Sum over valid frames of the cross-entropy of units (Hsu et al., HuBERT, 2021, section II.B)."""
    logits_BVS = logits_BSV.float().transpose(1, 2)
    losses_BS = functional.cross_entropy(logits_BVS, codes_BS, reduction="none")
    return torch.where(valid_BS, losses_BS, 0.0).sum()
