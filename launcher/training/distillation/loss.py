"""What a micro-batch costs under teachers: pretraining's objective, and what the student is to learn from each.

A term that several teachers teach is the mean of what each of them makes of it, by their weights. Whatever a lane
holds, and however the steps of a stage weigh the terms, every lane of a step calls the same parts of the model.

Shapes: B batch, T feature frames, S encoder frames, F mel bins, U tokens, V vocabulary, N texts, C units, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.masking import fully_masked_frames
from data.sampler import Totals
from launcher.recipe import DistillConfig
from launcher.training.distillation.cluster_targets import nearest_units
from launcher.training.distillation.frame_alignment import interpolate, pick_nearest
from launcher.training.distillation.pseudo_labels import pseudo_labels_of
from launcher.training.feature_batch import FeatureBatch
from launcher.training.recognition_loss import LossTerms, RecognitionLoss
from launcher.training.teachers.teacher import Teacher, TeacherOutput
from model import losses
from model.layers.subsampling import output_length, valid_mask
from model.recognizer import RecognizerOutput
from model.student import AuxiliaryHead, PseudoLabels, StudentOutput


@dataclass
class TeacherTerms:
    """A teacher and what it teaches.

    pairs: the student's layers beside the teacher's that they are compared to. ratio: frames of the teacher to one of
    the student. projections: the student's helpers by its layers. unit_helper, unit_layer, centroids_CD: the student's
    helper that predicts units, the teacher's layer that they are clusters of, and these once they are made.
    """

    name: str
    teacher: Teacher
    weight: float
    terms: frozenset[str]
    pairs: tuple[tuple[int, int], ...] = ()
    ratio: float = 1.0
    projections: dict[int, str] = field(default_factory=dict)
    unit_helper: str = ""
    unit_layer: int = 0
    centroids_CD: Tensor | None = None


def run_teacher(teacher: Teacher, batch: FeatureBatch, autocast: bool) -> TeacherOutput:
    """What a teacher makes of a batch, in bf16 or as it is."""
    device = batch.features_BTF.device.type
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=autocast):
        return teacher(batch)


@dataclass
class TeacherForward:
    """What student and teacher made of a batch; valid_BS are the student's frames that the teacher has too."""

    student: RecognizerOutput
    teacher: TeacherOutput
    batch: FeatureBatch
    totals: Totals
    valid_BS: Tensor
    texts: PseudoLabels | None

    def auxiliary(self, helper: str) -> Tensor:
        """What a helper of the student gives."""
        assert isinstance(self.student, StudentOutput)
        return self.student.auxiliary[helper]


class DistillationLoss:
    """Pretraining's objective beside frozen teachers that hear the same utterances."""

    def __init__(
        self,
        pretrain: RecognitionLoss,
        config: DistillConfig,
        named_teachers: Sequence[TeacherTerms],
        helpers: dict[str, AuxiliaryHead] | None = None,
        autocast: bool = False,
    ):
        self.pretrain, self.config, self.named_teachers, self.helpers = pretrain, config, named_teachers, helpers or {}
        self.autocast = autocast  # teachers run outside the engine, which would see to it

    def __call__(
        self, model: nn.Module, batch: FeatureBatch, totals: Totals, progress: float
    ) -> tuple[LossTerms, RecognizerOutput]:
        """The weighted parts of the loss, which add up to it. `progress` is the share of the stage's steps done."""
        factors = self.config.factors(progress) if model.training else {}
        heard = {
            lesson.name: self.run_teacher(lesson, batch)
            for lesson in self.named_teachers
            if lesson.terms & factors.keys()
        }
        texts = self._texts(heard, factors, batch)
        further = {"pseudo_labels": texts} if texts else {}
        output = model(batch.features_BTF, batch.lengths_B, batch.tokens_BU, batch.token_lengths_B, **further)
        parts = self.pretrain.terms(output, batch, totals)
        if self.helpers and model.training:
            parts["loss/ctc"] = parts["loss/ctc"] + self._idle(output, factors)
        for lesson in self.named_teachers:
            if lesson.name in heard:
                parts |= self._parts(lesson, output, heard[lesson.name], batch, totals, factors, texts)
        return parts, output

    def run_teacher(self, lesson: TeacherTerms, batch: FeatureBatch) -> TeacherOutput:
        """What a teacher makes of a batch, at the precision of the run."""
        return run_teacher(lesson.teacher, batch, self.autocast)

    def _texts(
        self, heard: dict[str, TeacherOutput], factors: dict[str, float], batch: FeatureBatch
    ) -> dict[str, PseudoLabels]:
        """The texts that each teacher finds, where they count."""
        if "sequence" not in factors:
            return {}
        student_B = output_length(batch.lengths_B, self.pretrain.encoder.subsampling.factor)
        return {
            lesson.name: pseudo_labels_of(ctc_BSV, heard[lesson.name].lengths_B, student_B, self.config.sequence)
            for lesson in self.named_teachers
            if "sequence" in lesson.terms and (ctc_BSV := heard[lesson.name].ctc_BSV) is not None
        }

    def _idle(self, output: RecognizerOutput, factors: dict[str, float]) -> Tensor:
        """0, with a gradient of 0 for helpers whose term does not count now: ZeRO wants one for every parameter."""
        assert isinstance(output, StudentOutput)
        busy = {
            name
            for lesson in self.named_teachers
            for term, names in (("hidden", lesson.projections.values()), ("units", [lesson.unit_helper]))
            if term in factors
            for name in names
        }
        idle = [helped.float().sum() * 0.0 for name, helped in output.auxiliary.items() if name not in busy]
        return torch.stack(idle).sum() if idle else output.ctc_BSV.new_zeros(())

    def _parts(
        self,
        lesson: TeacherTerms,
        student: RecognizerOutput,
        teacher: TeacherOutput,
        batch: FeatureBatch,
        totals: Totals,
        factors: dict[str, float],
        texts: dict[str, PseudoLabels],
    ) -> LossTerms:
        """What the student is to learn in one lesson, in the terms that count now, each by its weight and factor."""
        valid_BS = valid_mask(student.encoder.lengths_B, student.ctc_BSV.shape[1]) & (teacher.lengths_B > 0)[:, None]
        heard = TeacherForward(student, teacher, batch, totals, valid_BS, texts.get(lesson.name))
        terms = {
            "hidden": self._hidden,
            "ctc": self._ctc,
            "decoder": self._decoder,
            "sequence": self._sequence,
            "units": self._units,
        }
        parts = {}
        for term, measure in terms.items():
            if term in factors and term in lesson.terms:
                alike = [other for other in self.named_teachers if term in other.terms]
                share = lesson.weight / sum(other.weight for other in alike)
                for name, value in measure(lesson, heard):
                    key = f"distill/{name}" if len(self.named_teachers) == 1 else f"distill/{name}/{lesson.name}"
                    parts[key] = factors[term] * share * value
        return parts

    def _hidden(self, lesson: TeacherTerms, heard: TeacherForward) -> Iterator[tuple[str, Tensor]]:
        config, pairs = self.config.hidden, []
        for mine, theirs in lesson.pairs:
            helper = lesson.projections.get(mine)
            student_BSD = heard.auxiliary(helper) if helper else heard.student.encoder.layers[mine]
            teacher_BSD = interpolate(
                heard.teacher.layers[theirs], heard.teacher.lengths_B, lesson.ratio, student_BSD.shape[1]
            )
            pairs.append((student_BSD, teacher_BSD))
        scale = 1 / (heard.totals.frames * len(pairs))
        nothing = heard.student.ctc_BSV.new_zeros((), dtype=torch.float32)
        distance = sum((losses.hidden_sum(s, t, heard.valid_BS) for s, t in pairs), nothing)
        yield "hidden", config.weight * scale * distance
        if config.cosine:
            angle = sum((losses.cosine_sum(s, t, heard.valid_BS) for s, t in pairs), nothing)
            yield "cosine", config.cosine * scale * angle

    def _ctc(self, lesson: TeacherTerms, heard: TeacherForward) -> Iterator[tuple[str, Tensor]]:
        config, mine_BSV, theirs_BSV = self.config.ctc, heard.student.ctc_BSV, heard.teacher.ctc_BSV
        assert theirs_BSV is not None
        weight_BS = losses.frame_weights(theirs_BSV, heard.valid_BS, config.blank_weight)
        divergence = losses.divergence_sum(mine_BSV, theirs_BSV, weight_BS, config.temperature)
        # By tokens, like the CTC loss beside it: blank frames hardly count.
        yield "ctc", config.weight * divergence / heard.totals.tokens

    def _decoder(self, lesson: TeacherTerms, heard: TeacherForward) -> Iterator[tuple[str, Tensor]]:
        config, mine_BUV, theirs_BUV = self.config.decoder, heard.student.decoder_BUV, heard.teacher.decoder_BUV
        assert mine_BUV is not None
        assert theirs_BUV is not None
        valid_B = heard.student.encoder.lengths_B > 0
        weight_BU = losses.target_mask(heard.batch.token_lengths_B, valid_B, mine_BUV.shape[1])
        divergence = losses.divergence_sum(mine_BUV, theirs_BUV, weight_BU, config.temperature)
        yield "decoder", config.weight * divergence / (heard.totals.tokens + heard.totals.utterances)

    def _sequence(self, lesson: TeacherTerms, heard: TeacherForward) -> Iterator[tuple[str, Tensor]]:
        """The recognition objective on the teacher's texts, over the counts of the transcripts."""
        objective, texts, student, totals = self.pretrain.objective, heard.texts, heard.student, heard.totals
        assert texts is not None
        assert isinstance(student, StudentOutput)
        decoder_NUV = student.pseudo_label_logits.get(lesson.name)
        lengths_N = student.encoder.lengths_B[texts.row_N]
        weighted = (texts.tokens_NU, texts.token_lengths_N)
        ctc = losses.ctc_sum(student.ctc_BSV[texts.row_N], lengths_N, *weighted, weight_B=texts.weight_N)
        loss = ctc / totals.tokens
        if decoder_NUV is not None:
            attention = losses.attention_sum(
                decoder_NUV, *weighted, lengths_N > 0, objective.label_smoothing, texts.weight_N
            )
            num_targets = totals.tokens + totals.utterances
            loss = objective.ctc_weight * loss + (1 - objective.ctc_weight) * attention / num_targets
        yield "sequence", self.config.sequence.weight * loss

    def _units(self, lesson: TeacherTerms, heard: TeacherForward) -> Iterator[tuple[str, Tensor]]:
        config, logits_BSC = self.config.units, heard.auxiliary(lesson.unit_helper)
        assert lesson.centroids_CD is not None
        units_BS = nearest_units(heard.teacher.layers[lesson.unit_layer], lesson.centroids_CD)
        units_BS = pick_nearest(units_BS, heard.teacher.lengths_B, lesson.ratio, logits_BSC.shape[1])
        valid_BS = heard.valid_BS
        if config.masked_only:
            assert heard.batch.source is not None
            factor = self.pretrain.encoder.subsampling.factor
            valid_BS = valid_BS & fully_masked_frames(heard.batch.source.masked_BT, heard.batch.lengths_B, factor)
        yield "units", config.weight * losses.units_sum(logits_BSC, units_BS, valid_BS) / heard.totals.frames
