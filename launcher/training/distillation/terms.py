"""The terms of distillation, one function each: what a student loses by differing from one teacher on a micro-batch.

Like every term of a loss, each is a sum over the micro-batch divided by a count of the whole step (see
recognition_loss.py). `DistillationLoss` multiplies it by the teacher's share and the term's schedule.

Shapes: B batch, T feature frames, S encoder frames, U tokens, V vocabulary, N pseudo-labels, C units, D width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.masking import fully_masked_frames
from data.sampling.sampler import Totals
from launcher.recipe.distillation import (
    CtcDistillConfig,
    DecoderDistillConfig,
    HiddenDistillConfig,
    SequenceDistillConfig,
    UnitsDistillConfig,
)
from launcher.training.distillation.cluster_targets import nearest_units
from launcher.training.distillation.frame_alignment import gather_nearest, interpolate
from launcher.training.feature_batch import FeatureBatch
from launcher.training.recognition_loss import LossTerms
from launcher.training.teachers.teacher import Teacher, TeacherOutput
from model import losses
from model.losses import ObjectiveConfig
from model.recognizer import RecognizerOutput
from model.student import PseudoLabels, StudentOutput


@dataclass
class TeacherTerms:
    """A teacher and what it teaches.

    terms: the keys of the terms. weight: beside the other teachers of a term. layer_pairs: the student's layers beside
    the teacher's that they are compared to. ratio: frames of the teacher to one of the student. projections: the
    auxiliary heads that project the student's layers to the teacher's width, by layer. units_head, units_layer,
    centroids_CD: the auxiliary head that predicts units, the teacher's layer whose states are clustered, and the
    clusters once they are made.
    """

    name: str
    teacher: Teacher
    weight: float
    terms: frozenset[str]
    layer_pairs: tuple[tuple[int, int], ...] = ()
    ratio: float = 1.0
    projections: dict[int, str] = field(default_factory=dict)
    units_head: str = ""
    units_layer: int = 0
    centroids_CD: Tensor | None = None


@dataclass
class TeacherForward:
    """The forward passes of student and teacher on a batch.

    valid_BS: the student's valid frames, in utterances of which the teacher has a frame. pseudo_labels: the teacher's,
    where it teaches the term `sequence`.
    """

    student: RecognizerOutput
    teacher: TeacherOutput
    batch: FeatureBatch
    totals: Totals
    valid_BS: Tensor
    pseudo_labels: PseudoLabels | None

    def auxiliary(self, head: str) -> Tensor:
        """The output [B, S, size] of one of the student's auxiliary heads."""
        assert isinstance(self.student, StudentOutput)
        return self.student.auxiliary[head]


def hidden_terms(config: HiddenDistillConfig, teacher_terms: TeacherTerms, forward: TeacherForward) -> LossTerms:
    """Distance and angle of hidden states over L pairs of layers (Chang et al., DistilHuBERT, 2022, equation 1):

        hidden = weight / (L frames) sum |P s - t|^2 / D,   cosine = cosine / (L frames) sum -log sigmoid(cos(P s, t))

    with the student's state s, its projection P where there is one, and the teacher's state t at the student's times.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for student_layer, teacher_layer in teacher_terms.layer_pairs:
        if student_layer in teacher_terms.projections:
            student_BSD = forward.auxiliary(teacher_terms.projections[student_layer])
        else:
            student_BSD = forward.student.encoder.layers[student_layer]
        states_BSD = forward.teacher.layers[teacher_layer]
        num_frames = student_BSD.shape[1]
        teacher_BSD = interpolate(states_BSD, forward.teacher.lengths_B, teacher_terms.ratio, num_frames)
        pairs.append((student_BSD, teacher_BSD))

    # The mean over pairs, so that a longer list of layers does not weigh more.
    scale = 1 / (forward.totals.frames * len(pairs))
    distance = forward.student.ctc_BSV.new_zeros((), dtype=torch.float32)
    for student_BSD, teacher_BSD in pairs:
        distance = distance + losses.hidden_sum(student_BSD, teacher_BSD, forward.valid_BS)
    terms = {"hidden": config.weight * scale * distance}
    if config.cosine:
        angle = forward.student.ctc_BSV.new_zeros((), dtype=torch.float32)
        for student_BSD, teacher_BSD in pairs:
            angle = angle + losses.cosine_sum(student_BSD, teacher_BSD, forward.valid_BS)
        terms["cosine"] = config.cosine * scale * angle
    return terms


def ctc_term(config: CtcDistillConfig, forward: TeacherForward) -> Tensor:
    """Divergence of the CTC posteriors, frame by frame (Hinton et al., Distilling the Knowledge, 2015):

    weight / tokens  sum over frames  w T^2 KL(teacher || student),   w = blank_weight where the teacher has blank
    """
    student_BSV = forward.student.ctc_BSV
    teacher_BSV = forward.teacher.ctc_BSV
    assert teacher_BSV is not None
    # Most frames are blank, and which of them are not is what the student is to learn.
    weight_BS = losses.frame_weights(teacher_BSV, forward.valid_BS, config.blank_weight)
    divergence = losses.divergence_sum(student_BSV, teacher_BSV, weight_BS, config.temperature)
    # By tokens, like the CTC loss beside it: blank frames hardly count.
    return config.weight * divergence / forward.totals.tokens


def decoder_term(config: DecoderDistillConfig, forward: TeacherForward) -> Tensor:
    """Divergence of the decoders' posteriors, token by token, both teacher-forced (Hinton et al., 2015):

    weight / (tokens + utterances)  sum over tokens and ends  T^2 KL(teacher || student)
    """
    student_BUV = forward.student.decoder_BUV
    teacher_BUV = forward.teacher.decoder_BUV
    assert student_BUV is not None
    assert teacher_BUV is not None
    valid_B = forward.student.encoder.lengths_B > 0
    num_positions = student_BUV.shape[1]
    weight_BU = losses.target_mask(forward.batch.token_lengths_B, valid_B, num_positions)
    divergence = losses.divergence_sum(student_BUV, teacher_BUV, weight_BU, config.temperature)
    # Each utterance has one target more than tokens: its end.
    num_targets = forward.totals.tokens + forward.totals.utterances
    return config.weight * divergence / num_targets


def sequence_term(
    config: SequenceDistillConfig,
    objective: ObjectiveConfig,
    teacher: str,
    forward: TeacherForward,
) -> Tensor:
    """The recognition objective on the pseudo-labels of a teacher (Kim and Rush, 2016), over the counts of the
    transcripts; CTC alone where the student has no decoder:

        weight (ctc_weight CTC / tokens + (1 - ctc_weight) attention / (tokens + utterances))
    """
    student = forward.student
    totals = forward.totals
    labels = forward.pseudo_labels
    assert labels is not None
    assert isinstance(student, StudentOutput)
    # Several pseudo-labels of an utterance share its frames.
    lengths_N = student.encoder.lengths_B[labels.row_N]
    ctc_NSV = student.ctc_BSV[labels.row_N]
    ctc = losses.ctc_sum(
        ctc_NSV,
        lengths_N,
        labels.tokens_NU,
        labels.token_lengths_N,
        weight_B=labels.weight_N,
    )
    loss = ctc / totals.tokens

    decoder_NUV = student.pseudo_label_logits.get(teacher)
    if decoder_NUV is not None:
        attention = losses.attention_sum(
            decoder_NUV,
            labels.tokens_NU,
            labels.token_lengths_N,
            valid_B=lengths_N > 0,
            smoothing=objective.label_smoothing,
            weight_B=labels.weight_N,
        )
        num_targets = totals.tokens + totals.utterances
        loss = objective.ctc_weight * loss + (1 - objective.ctc_weight) * attention / num_targets
    return config.weight * loss


def units_term(
    config: UnitsDistillConfig,
    teacher_terms: TeacherTerms,
    forward: TeacherForward,
    subsampling_factor: int,
) -> Tensor:
    """Cross-entropy of the teacher's units (Hsu et al., HuBERT, 2021, section II.B):

        weight / frames  sum over frames  -log p(unit of the teacher's nearest frame | student)

    over all valid frames, or with `masked_only` over those that a time mask hides from the student as a whole.
    """
    logits_BSC = forward.auxiliary(teacher_terms.units_head)
    assert teacher_terms.centroids_CD is not None
    # Units are numbers of clusters: where frame rates differ the nearest is taken, not interpolated as states are.
    states_BSD = forward.teacher.layers[teacher_terms.units_layer]
    teacher_units_BS = nearest_units(states_BSD, teacher_terms.centroids_CD)
    num_frames = logits_BSC.shape[1]
    units_BS = gather_nearest(teacher_units_BS, forward.teacher.lengths_B, teacher_terms.ratio, num_frames)

    # At masked frames the student has to infer the unit from the context, as in HuBERT.
    valid_BS = forward.valid_BS
    if config.masked_only:
        source = forward.batch.source
        assert source is not None
        valid_BS = valid_BS & fully_masked_frames(source.masked_BT, forward.batch.lengths_B, subsampling_factor)
    cross_entropy = losses.units_sum(logits_BSC, units_BS, valid_BS)
    return config.weight * cross_entropy / forward.totals.frames
