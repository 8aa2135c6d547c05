"""What a micro-batch costs under a teacher: pretraining's objective, and the distance from the teacher.

Shapes: B batch, T feature frames, S encoder frames, F mel bins, U tokens, V vocabulary.
"""

import torch
from torch import nn

from data.plan import Totals
from launcher.recipe import DistillConfig
from launcher.training.tasks import MicroBatch, Parts, Pretrain
from model import objectives
from model.encoder import EncoderConfig
from model.recognizer import Recognizer, RecognizerOutput
from model.subsampling import valid_mask


class Distill:
    """Pretraining's objective beside a frozen teacher that sees the same augmented features."""

    def __init__(
        self,
        pretrain: Pretrain,
        config: DistillConfig,
        teacher: Recognizer,
        student: EncoderConfig,
        autocast: bool = False,
    ):
        self.pretrain, self.config, self.teacher = pretrain, config, teacher
        self.layers = config.hidden.layers or last_layers_of_groups(student)
        self.autocast = autocast  # the teacher runs outside the engine, which would see to it

    def __call__(
        self, model: nn.Module, batch: MicroBatch, totals: Totals, progress: float
    ) -> tuple[Parts, RecognizerOutput]:
        """The weighted parts of the loss, which add up to it. `progress` is the share of the stage's steps done."""
        parts, output = self.pretrain(model, batch, totals, progress)
        factors = self.config.factors(progress) if model.training else {}
        if factors:
            device = batch.features_BTF.device.type
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self.autocast):
                target = self.teacher(batch.features_BTF, batch.lengths_B, batch.tokens_BU)
            parts |= self.distances(output, target, batch, totals, factors)
        return parts, output

    def distances(
        self,
        student: RecognizerOutput,
        teacher: RecognizerOutput,
        batch: MicroBatch,
        totals: Totals,
        factors: dict[str, float],
    ) -> Parts:
        """How far the student is from its teacher, in the terms that count now, each times its factor."""
        config, parts = self.config, {}
        lengths_B = student.encoder.lengths_B
        valid_BS = valid_mask(lengths_B, student.ctc_BSV.shape[1])
        if "hidden" in factors and (config.hidden.weight or config.hidden.cosine):
            pairs = [(student.encoder.layers[i], teacher.encoder.layers[i]) for i in self.layers]
            scale = 1 / (totals.frames * len(pairs))
            distance = sum(objectives.hidden_sum(s, t, valid_BS) for s, t in pairs)
            parts["distill/hidden"] = factors["hidden"] * config.hidden.weight * scale * distance
            if config.hidden.cosine:
                angle = sum(objectives.cosine_sum(s, t, valid_BS) for s, t in pairs)
                parts["distill/cosine"] = factors["hidden"] * config.hidden.cosine * scale * angle
        if "ctc" in factors and config.ctc.weight:
            weight_BS = objectives.frame_weights(teacher.ctc_BSV, valid_BS, config.ctc.blank_weight)
            divergence = objectives.divergence_sum(student.ctc_BSV, teacher.ctc_BSV, weight_BS, config.ctc.temperature)
            # By tokens, like the CTC loss beside it: blank frames hardly count.
            parts["distill/ctc"] = factors["ctc"] * config.ctc.weight * divergence / totals.tokens
        both = student.decoder_BUV is not None and teacher.decoder_BUV is not None
        if "decoder" in factors and config.decoder.weight and both:
            weight_BU = objectives.target_mask(batch.token_lengths_B, lengths_B > 0, student.decoder_BUV.shape[1])
            divergence = objectives.divergence_sum(
                student.decoder_BUV, teacher.decoder_BUV, weight_BU, config.decoder.temperature
            )
            weight = factors["decoder"] * config.decoder.weight
            parts["distill/decoder"] = weight * divergence / (totals.tokens + totals.utterances)
        return parts


def last_layers_of_groups(encoder: EncoderConfig) -> tuple[int, ...]:
    """The last layer that uses each block: where a contiguous group ends."""
    last = {block: layer for layer, block in enumerate(encoder.block_of_layer)}
    return tuple(sorted(last.values()))
