"""The loss of one micro-batch from transcripts: CTC, attention, transducer, and the experts' balance.

Every term is a sum over the micro-batch divided by a count of the whole step. So the sum over all micro-batches of a
step, on however many processes, is the step's loss, and no process needs to know the others' lengths.

A new term of the loss is a line in `RecognitionLoss.terms`, its mathematics a function in model/losses.py.

Shapes: B batch, S encoder frames, U tokens, V vocabulary.
"""

import torch
from torch import Tensor, nn

from data.sampling.sampler import Totals
from launcher.training.feature_batch import FeatureBatch
from model import losses
from model.decoder import reverse
from model.encoder import EncoderConfig, EncoderOutput
from model.losses import ExpertsObjectiveConfig, ObjectiveConfig
from model.moe.router import ExpertsConfig, Routing, pool
from model.recognizer import RecognizerOutput

LossTerms = dict[str, Tensor]


class RecognitionLoss:
    """Joint CTC/attention, a transducer where the model has one, and the experts' balance losses."""

    def __init__(self, objective: ObjectiveConfig, encoder: EncoderConfig):
        self.objective = objective
        self.encoder = encoder

    def __call__(
        self,
        model: nn.Module,
        batch: FeatureBatch,
        totals: Totals,
        progress: float,
    ) -> tuple[LossTerms, RecognizerOutput]:
        """The weighted terms of the loss, which add up to it. `progress` is the share of the stage's steps done."""
        output = model(batch.features_BTF, batch.lengths_B, batch.tokens_BU, batch.token_lengths_B)
        return self.terms(output, batch, totals), output

    def terms(self, output: RecognizerOutput, batch: FeatureBatch, totals: Totals) -> LossTerms:
        objective = self.objective
        # Without a decoder nothing shares the weight of 1 with it.
        ctc_weight = 1.0
        if output.decoder_BUV is not None:
            ctc_weight = objective.ctc_weight

        ctc_sum = self._ctc_sum(output.ctc_BSV, output, batch)
        terms = {"loss/ctc": ctc_weight * ctc_sum / totals.tokens}
        if output.intermediate:
            # Lee and Watanabe, 2021: deep encoders find the alignment sooner, and generalise better.
            intermediate = []
            for logits_BSV in output.intermediate:
                layer_sum = self._ctc_sum(logits_BSV, output, batch)
                intermediate.append(ctc_weight * layer_sum / totals.tokens)
            mean = torch.stack(intermediate).mean()
            terms["loss/intermediate"] = objective.intermediate_weight * mean

        if output.decoder_BUV is not None:
            # Each utterance has one target more than tokens: its end.
            num_targets = totals.tokens + totals.utterances
            valid_B = output.encoder.lengths_B > 0
            weight = 1 - ctc_weight
            # A decoder that reads backwards takes its share of the weight.
            forward_weight = weight
            if output.reverse_BUV is not None:
                forward_weight = weight * (1 - objective.reverse_weight)
            forward_sum = losses.attention_sum(
                output.decoder_BUV,
                batch.tokens_BU,
                batch.token_lengths_B,
                valid_B,
                objective.label_smoothing,
            )
            terms["loss/attention"] = forward_weight * forward_sum / num_targets
            if output.reverse_BUV is not None:
                reversed_BU = reverse(batch.tokens_BU, batch.token_lengths_B)
                reverse_sum = losses.attention_sum(
                    output.reverse_BUV,
                    reversed_BU,
                    batch.token_lengths_B,
                    valid_B,
                    objective.label_smoothing,
                )
                terms["loss/reverse_attention"] = weight * objective.reverse_weight * reverse_sum / num_targets

        if output.transducer_B is not None:
            transducer_sum = output.transducer_B.sum()
            terms["loss/transducer"] = objective.transducer_weight * transducer_sum / totals.tokens
        return terms | router_loss_terms(output.encoder, objective, self.encoder, totals)

    def _ctc_sum(self, logits_BSV: Tensor, output: RecognizerOutput, batch: FeatureBatch) -> Tensor:
        return losses.ctc_sum(logits_BSV, output.encoder.lengths_B, batch.tokens_BU, batch.token_lengths_B)


def router_loss_terms(
    output: EncoderOutput,
    objective: ExpertsObjectiveConfig,
    encoder: EncoderConfig,
    totals: Totals,
) -> LossTerms:
    """The weighted losses of the routers; none without experts."""
    if not encoder.experts:
        return {}
    routings = output.routings
    # Balance is computed per lane and counts by the lane's share of the step's frames: a balance of all lanes of a
    # process would depend on how many lanes it has.
    frame_share = output.lengths_B.sum() / totals.frames / len(routings)
    balance = balance_sum(routings, encoder, encoder.experts)
    terms = {"loss/balance": objective.balance_weight * frame_share * balance}
    if objective.z_weight:
        z = torch.stack([routing.z for routing in routings]).sum()
        terms["loss/z"] = objective.z_weight * frame_share * z
    if objective.sparsity_weight:
        sparsity = torch.stack([routing.sparsity for routing in routings]).sum()
        terms["loss/sparsity"] = objective.sparsity_weight * frame_share * sparsity
    return terms


def balance_sum(routings: list[Routing], encoder: EncoderConfig, experts: ExpertsConfig) -> Tensor:
    """The balance loss summed over layers and places.

    With `balance_scope: group` it is that of the pooled routing of all layers that use the same experts, as often as
    there are such layers.
    """
    if experts.balance_scope == "layer":
        return torch.stack([routing.balance_loss(experts.balance) for routing in routings]).sum()

    routings_of_group: dict[tuple[int, str], list[Routing]] = {}
    position = 0
    for block in encoder.block_of_layer:
        for place in experts.places:
            routings_of_group.setdefault((block, place), []).append(routings[position])
            position += 1
    assert position == len(routings)

    pooled = []
    for group in routings_of_group.values():
        pooled.append(len(group) * pool(group).balance_loss(experts.balance))
    return torch.stack(pooled).sum()
