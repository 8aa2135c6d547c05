"""What one micro-batch costs: the recognition objective.

Every loss is a sum over the micro-batch divided by a count of the whole step, so the sum over all micro-batches of a
step, on however many processes, is the step's loss.

Shapes: B batch, T feature frames, S encoder frames, F mel bins, U tokens.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.sampler import Totals
from data.sidecars import Arrays
from model import losses
from model.decoder import reverse
from model.encoder import EncoderConfig, EncoderOutput
from model.losses import ExpertsObjectiveConfig, ObjectiveConfig
from model.moe.router import ExpertsConfig, Routing, pool
from model.recognizer import RecognizerOutput


@dataclass
class CleanInputs:
    """What augmented features were made from: features without masks, the frames that masks hide as a whole (bool), and
    the waveforms (S samples) with their lengths."""

    features_BTF: Tensor
    masked_BT: Tensor
    waveforms_BS: Tensor
    samples_B: Tensor


@dataclass
class FeatureBatch:
    """Augmented or masked features of one lane on the device. An empty lane is one utterance of no frames and no
    tokens.

    `source` is there where a task or a teacher asks for it, `sidecars` what was stored for each utterance, by the
    names of teachers that are read and not asked."""

    features_BTF: Tensor
    lengths_B: Tensor
    tokens_BU: Tensor
    token_lengths_B: Tensor
    source: CleanInputs | None = None
    sidecars: dict[str, list[Arrays]] = field(default_factory=dict)


LossTerms = dict[str, Tensor]


class RecognitionLoss:
    """Joint CTC/attention, a transducer where the model has one, and the experts' balance losses."""

    def __init__(self, objective: ObjectiveConfig, encoder: EncoderConfig):
        self.objective, self.encoder = objective, encoder

    def __call__(
        self, model: nn.Module, batch: FeatureBatch, totals: Totals, progress: float
    ) -> tuple[LossTerms, RecognizerOutput]:
        """The weighted parts of the loss, which add up to it. `progress` is the share of the stage's steps done."""
        output = model(batch.features_BTF, batch.lengths_B, batch.tokens_BU, batch.token_lengths_B)
        return self.parts(output, batch, totals), output

    def parts(self, output: RecognizerOutput, batch: FeatureBatch, totals: Totals) -> LossTerms:
        objective, lengths_B = self.objective, output.encoder.lengths_B
        ctc_weight = objective.ctc_weight if output.decoder_BUV is not None else 1.0

        def ctc(logits_BSV: Tensor) -> Tensor:
            sum_of_batch = losses.ctc_sum(logits_BSV, lengths_B, batch.tokens_BU, batch.token_lengths_B)
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
        return parts | router_loss_terms(output.encoder, objective, self.encoder, totals)

    def _attention(self, output: RecognizerOutput, batch: FeatureBatch, totals: Totals, weight: float) -> LossTerms:
        """The decoder's part of the loss, shared with the decoder that reads backwards where there is one."""
        assert output.decoder_BUV is not None
        num_targets = totals.tokens + totals.utterances

        def part(logits_BUV: Tensor, tokens_BU: Tensor, share: float) -> Tensor:
            valid_B = output.encoder.lengths_B > 0
            smoothing = self.objective.label_smoothing
            attention = losses.attention_sum(logits_BUV, tokens_BU, batch.token_lengths_B, valid_B, smoothing)
            return share * attention / num_targets

        if output.reverse_BUV is None:
            return {"loss/attention": part(output.decoder_BUV, batch.tokens_BU, weight)}
        backwards_BU = reverse(batch.tokens_BU, batch.token_lengths_B)
        share = self.objective.reverse_weight
        return {
            "loss/attention": part(output.decoder_BUV, batch.tokens_BU, weight * (1 - share)),
            "loss/reverse_attention": part(output.reverse_BUV, backwards_BU, weight * share),
        }


def router_loss_terms(
    output: EncoderOutput, objective: ExpertsObjectiveConfig, encoder: EncoderConfig, totals: Totals
) -> LossTerms:
    """The weighted losses of the routers; none without experts."""
    if not encoder.experts:
        return {}
    # A lane's balance counts by its share of the frames: lanes, not processes, make the sum.
    routings = output.routings
    share = output.lengths_B.sum() / totals.frames / len(routings)
    parts = {"loss/balance": objective.balance_weight * share * balance_sum(routings, encoder, encoder.experts)}
    if objective.z_weight:
        parts["loss/z"] = objective.z_weight * share * torch.stack([r.z for r in routings]).sum()
    if objective.sparsity_weight:
        sparsity = torch.stack([r.sparsity for r in routings]).sum()
        parts["loss/sparsity"] = objective.sparsity_weight * share * sparsity
    return parts


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
