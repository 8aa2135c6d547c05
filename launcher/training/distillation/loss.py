"""The loss of one micro-batch under frozen teachers: the recognition loss, and the terms that each teacher teaches.

A term that several teachers teach is the mean of their terms, weighted by the teachers' weights. Whatever a lane holds,
and however the terms' weights change over a stage, every lane of a step calls the same parts of the model: with ZeRO
and expert parallelism each call is a collective.

Shapes: B batch, S encoder frames, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import nn

from data.sampling.sampler import Totals
from launcher.recipe import DistillConfig
from launcher.training.distillation.pseudo_labels import make_pseudo_labels
from launcher.training.distillation.terms import (
    TeacherForward,
    TeacherTerms,
    ctc_term,
    decoder_term,
    hidden_terms,
    sequence_term,
    units_term,
)
from launcher.training.feature_batch import FeatureBatch
from launcher.training.recognition_loss import LossTerms, RecognitionLoss
from launcher.training.teachers.teacher import TeacherOutput, run_teacher
from model.layers.subsampling import output_length, valid_mask
from model.recognizer import RecognizerOutput
from model.student import AuxiliaryHead, PseudoLabels, StudentOutput


class DistillationLoss:
    """The recognition loss beside the terms of frozen teachers.

    With `autocast` teachers run in bf16: they are outside the engine, which sees to it for the student.
    """

    def __init__(
        self,
        recognition: RecognitionLoss,
        config: DistillConfig,
        teachers: Sequence[TeacherTerms],
        auxiliary_heads: dict[str, AuxiliaryHead] | None = None,
        autocast: bool = False,
    ):
        self.recognition = recognition
        self.config = config
        self.teachers = teachers
        self.auxiliary_heads = auxiliary_heads or {}
        self.autocast = autocast

    def __call__(
        self,
        model: nn.Module,
        batch: FeatureBatch,
        totals: Totals,
        progress: float,
    ) -> tuple[LossTerms, RecognizerOutput]:
        """The weighted terms of the loss, which add up to it. `progress` is the share of the stage's steps done."""
        # Validation measures recognition alone: no term counts, so no teacher runs.
        factors: dict[str, float] = {}
        if model.training:
            factors = self.config.factors(progress)

        # Teachers, before the student: its decoder reads their pseudo-labels.
        subsampling_factor = self.recognition.encoder.subsampling.factor
        teacher_outputs: dict[str, TeacherOutput] = {}
        pseudo_labels: dict[str, PseudoLabels] = {}
        for teacher_terms in self.teachers:
            active = teacher_terms.terms & factors.keys()
            if not active:
                continue
            teacher = run_teacher(teacher_terms.teacher, batch, self.autocast)
            teacher_outputs[teacher_terms.name] = teacher
            if "sequence" in active and teacher.ctc_BSV is not None:
                student_lengths_B = output_length(batch.lengths_B, subsampling_factor)
                pseudo_labels[teacher_terms.name] = make_pseudo_labels(
                    teacher.ctc_BSV,
                    teacher.lengths_B,
                    student_lengths_B,
                    self.config.sequence,
                )

        # Student.
        inputs = (batch.features_BTF, batch.lengths_B, batch.tokens_BU, batch.token_lengths_B)
        if pseudo_labels:
            student = model(*inputs, pseudo_labels=pseudo_labels)
        else:
            # A recogniser that is no `Student` does not know the argument.
            student = model(*inputs)

        # Loss.
        terms = self.recognition.terms(student, batch, totals)
        if self.auxiliary_heads and model.training:
            terms["loss/ctc"] = terms["loss/ctc"] + self._zero_of_idle_heads(student, factors)
        for teacher_terms in self.teachers:
            teacher = teacher_outputs.get(teacher_terms.name)
            if teacher is None:
                continue
            valid_BS = valid_mask(student.encoder.lengths_B, student.ctc_BSV.shape[1])
            forward = TeacherForward(
                student=student,
                teacher=teacher,
                batch=batch,
                totals=totals,
                valid_BS=valid_BS & (teacher.lengths_B > 0)[:, None],
                pseudo_labels=pseudo_labels.get(teacher_terms.name),
            )
            terms |= self._terms_of_teacher(teacher_terms, forward, factors)
        return terms, student

    def _zero_of_idle_heads(self, student: RecognizerOutput, factors: dict[str, float]) -> torch.Tensor:
        """0, with a gradient of 0 for auxiliary heads whose term does not count now: ZeRO wants one for every
        parameter."""
        assert isinstance(student, StudentOutput)
        busy = set()
        for teacher_terms in self.teachers:
            if "hidden" in factors:
                busy.update(teacher_terms.projections.values())
            if "units" in factors:
                busy.add(teacher_terms.units_head)
        zeros = []
        for head, values in student.auxiliary.items():
            if head not in busy:
                # In fp32: a sum over all frames may overflow in half precision, and inf times 0 is not 0.
                zeros.append(values.float().sum() * 0.0)
        if not zeros:
            return student.ctc_BSV.new_zeros(())
        return torch.stack(zeros).sum()

    def _terms_of_teacher(
        self,
        teacher_terms: TeacherTerms,
        forward: TeacherForward,
        factors: dict[str, float],
    ) -> LossTerms:
        """The terms of one teacher that count now, each times its schedule's factor and the teacher's share of it."""
        config = self.config
        active = teacher_terms.terms & factors.keys()
        unscaled: dict[str, LossTerms] = {}
        if "hidden" in active:
            unscaled["hidden"] = hidden_terms(config.hidden, teacher_terms, forward)
        if "ctc" in active:
            unscaled["ctc"] = {"ctc": ctc_term(config.ctc, forward)}
        if "decoder" in active:
            unscaled["decoder"] = {"decoder": decoder_term(config.decoder, forward)}
        if "sequence" in active:
            objective = self.recognition.objective
            sequence = sequence_term(config.sequence, objective, teacher_terms.name, forward)
            unscaled["sequence"] = {"sequence": sequence}
        if "units" in active:
            factor = self.recognition.encoder.subsampling.factor
            unscaled["units"] = {"units": units_term(config.units, teacher_terms, forward, factor)}

        terms = {}
        for term, values in unscaled.items():
            # The share among the teachers of this term: one alone has all of it, whatever its weight.
            total_weight = 0.0
            for other in self.teachers:
                if term in other.terms:
                    total_weight += other.weight
            scale = factors[term] * (teacher_terms.weight / total_weight)
            for name, value in values.items():
                # The metric's key names the teacher only where there are several.
                key = f"distill/{name}"
                if len(self.teachers) > 1:
                    key = f"distill/{name}/{teacher_terms.name}"
                terms[key] = scale * value
        return terms
