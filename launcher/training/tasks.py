"""What one micro-batch costs: the recognition objective, and, under a teacher, the distance from it.

Every loss is a sum over the micro-batch divided by a count of the whole step, so the sum over all micro-batches of a
step, on however many processes, is the step's loss.

Shapes: B batch, T feature frames, S encoder frames, F mel bins, U tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.plan import Totals
from launcher.recipe import DistillConfig
from model import objectives
from model.decoder import reverse
from model.encoder import EncoderConfig
from model.objectives import ObjectiveConfig
from model.recognizer import Recognizer, RecognizerOutput
from model.router import ExpertsConfig, Routing, pool
from model.subsampling import valid_mask


@dataclass
class MicroBatch:
    """Augmented features of one lane on the device. An empty lane is one utterance of no frames and no tokens."""

    features_BTF: Tensor
    lengths_B: Tensor
    tokens_BU: Tensor
    token_lengths_B: Tensor


Parts = dict[str, Tensor]


class Pretrain:
    """Joint CTC/attention, a transducer where the model has one, and the experts' balance losses."""

    def __init__(self, objective: ObjectiveConfig, encoder: EncoderConfig):
        self.objective, self.encoder = objective, encoder

    def __call__(
        self, model: nn.Module, batch: MicroBatch, totals: Totals, progress: float
    ) -> tuple[Parts, RecognizerOutput]:
        """The weighted parts of the loss, which add up to it. `progress` is the share of the stage's steps done."""
        output = model(batch.features_BTF, batch.lengths_B, batch.tokens_BU, batch.token_lengths_B)
        return self.parts(output, batch, totals), output

    def parts(self, output: RecognizerOutput, batch: MicroBatch, totals: Totals) -> Parts:
        objective, lengths_B = self.objective, output.encoder.lengths_B
        ctc_weight = objective.ctc_weight if output.decoder_BUV is not None else 1.0

        def ctc(logits_BSV: Tensor) -> Tensor:
            sum_of_batch = objectives.ctc_sum(logits_BSV, lengths_B, batch.tokens_BU, batch.token_lengths_B)
            return ctc_weight * sum_of_batch / totals.tokens

        parts = {"loss/ctc": ctc(output.ctc_BSV)}
        if output.intermediate:
            # Lee and Watanabe, 2021: deep encoders find the alignment sooner, and generalise better.
            mean = torch.stack([ctc(logits_BSV) for logits_BSV in output.intermediate]).mean()
            parts["loss/intermediate"] = objective.intermediate_weight * mean
        if output.decoder_BUV is not None:
            parts |= self._attention(output, batch, totals, 1 - ctc_weight)
        if output.transducer_B is not None:
            parts["loss/transducer"] = objective.transducer_weight * output.transducer_B.sum() / totals.tokens
        if self.encoder.experts:
            # A lane's balance counts by its share of the frames: lanes, not processes, make the sum.
            routings = output.encoder.routings
            share = lengths_B.sum() / totals.frames / len(routings)
            balance = balance_sum(routings, self.encoder, self.encoder.experts)
            parts["loss/balance"] = objective.balance_weight * share * balance
            if objective.z_weight:
                parts["loss/z"] = objective.z_weight * share * torch.stack([r.z for r in routings]).sum()
            if objective.sparsity_weight:
                sparsity = torch.stack([r.sparsity for r in routings]).sum()
                parts["loss/sparsity"] = objective.sparsity_weight * share * sparsity
        return parts

    def _attention(self, output: RecognizerOutput, batch: MicroBatch, totals: Totals, weight: float) -> Parts:
        """The decoder's part of the loss, shared with the decoder that reads backwards where there is one."""
        assert output.decoder_BUV is not None
        num_targets = totals.tokens + totals.utterances

        def part(logits_BUV: Tensor, tokens_BU: Tensor, share: float) -> Tensor:
            valid_B = output.encoder.lengths_B > 0
            smoothing = self.objective.label_smoothing
            attention = objectives.attention_sum(logits_BUV, tokens_BU, batch.token_lengths_B, valid_B, smoothing)
            return share * attention / num_targets

        if output.reverse_BUV is None:
            return {"loss/attention": part(output.decoder_BUV, batch.tokens_BU, weight)}
        backwards_BU = reverse(batch.tokens_BU, batch.token_lengths_B)
        share = self.objective.reverse_weight
        return {
            "loss/attention": part(output.decoder_BUV, batch.tokens_BU, weight * (1 - share)),
            "loss/reverse_attention": part(output.reverse_BUV, backwards_BU, weight * share),
        }


def balance_sum(routings: list[Routing], encoder: EncoderConfig, experts: ExpertsConfig) -> Tensor:
    """The balance loss summed over layers and places; over a group's, that of their pooled routing as often as there
    are layers in it."""
    if experts.balance_scope == "layer":
        return torch.stack([routing.balance_loss(experts.balance) for routing in routings]).sum()
    sharing: dict[tuple[int, str], list[Routing]] = {}
    uses = [(block, place) for block in encoder.block_of_layer for place in experts.places]
    for use, routing in zip(uses, routings, strict=True):
        sharing.setdefault(use, []).append(routing)
    pooled = [len(together) * pool(together).balance_loss(experts.balance) for together in sharing.values()]
    return torch.stack(pooled).sum()


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
        parts, output = self.pretrain(model, batch, totals, progress)
        if model.training and progress < self.config.until:
            device = batch.features_BTF.device.type
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self.autocast):
                target = self.teacher(batch.features_BTF, batch.lengths_B, batch.tokens_BU)
            parts |= self.distances(output, target, batch, totals)
        return parts, output

    def distances(
        self, student: RecognizerOutput, teacher: RecognizerOutput, batch: MicroBatch, totals: Totals
    ) -> Parts:
        """How far the student is from its teacher, in the parts that the configuration weighs."""
        config, parts = self.config, {}
        lengths_B = student.encoder.lengths_B
        valid_BS = valid_mask(lengths_B, student.ctc_BSV.shape[1])
        if config.hidden.weight or config.hidden.cosine:
            pairs = [(student.encoder.layers[i], teacher.encoder.layers[i]) for i in self.layers]
            scale = 1 / (totals.frames * len(pairs))
            distance = sum(objectives.hidden_sum(s, t, valid_BS) for s, t in pairs)
            parts["distill/hidden"] = config.hidden.weight * scale * distance
            if config.hidden.cosine:
                angle = sum(objectives.cosine_sum(s, t, valid_BS) for s, t in pairs)
                parts["distill/cosine"] = config.hidden.cosine * scale * angle
        if config.ctc.weight:
            weight_BS = objectives.frame_weights(teacher.ctc_BSV, valid_BS, config.ctc.blank_weight)
            divergence = objectives.divergence_sum(student.ctc_BSV, teacher.ctc_BSV, weight_BS, config.ctc.temperature)
            # By tokens, like the CTC loss beside it: blank frames hardly count.
            parts["distill/ctc"] = config.ctc.weight * divergence / totals.tokens
        if config.decoder.weight and student.decoder_BUV is not None and teacher.decoder_BUV is not None:
            weight_BU = objectives.target_mask(batch.token_lengths_B, lengths_B > 0, student.decoder_BUV.shape[1])
            divergence = objectives.divergence_sum(
                student.decoder_BUV, teacher.decoder_BUV, weight_BU, config.decoder.temperature
            )
            parts["distill/decoder"] = config.decoder.weight * divergence / (totals.tokens + totals.utterances)
        return parts


def last_layers_of_groups(encoder: EncoderConfig) -> tuple[int, ...]:
    """The last layer that uses each block: where a contiguous group ends."""
    last = {block: layer for layer, block in enumerate(encoder.block_of_layer)}
    return tuple(sorted(last.values()))
