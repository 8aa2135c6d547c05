"""The loss of one micro-batch of masked features: the codes of the masked frames, and the experts' balance.

As everywhere, the loss is a sum divided by a count of the whole step: here of its masked encoder frames, which follow
from the lengths of the utterances and the seed, so that every process knows them before anything is read.

Shapes: B batch, S encoder frames, F mel bins, T feature frames.
"""

from torch import nn

from data.masking import fully_masked_frames
from data.sampling.sampler import Totals
from launcher.training.feature_batch import FeatureBatch
from launcher.training.metrics import StepMetrics
from launcher.training.recognition_loss import LossTerms, router_loss_terms
from model.encoder import EncoderConfig
from model.losses import ExpertsObjectiveConfig
from model.masked_prediction import MaskedPredictorOutput, evenness


class MaskedPredictionLoss:
    """Masked prediction of a frozen quantizer's codes, and the experts' balance losses."""

    def __init__(self, objective: ExpertsObjectiveConfig, encoder: EncoderConfig):
        self.objective = objective
        self.encoder = encoder

    def __call__(
        self,
        model: nn.Module,
        batch: FeatureBatch,
        totals: Totals,
        progress: float,
    ) -> tuple[LossTerms, MaskedPredictorOutput]:
        """The weighted terms of the loss, which add up to it. `batch` holds masked features and their source."""
        assert batch.source is not None
        factor = self.encoder.subsampling.factor
        predicted_BS = fully_masked_frames(batch.source.masked_BT, batch.lengths_B, factor)
        # The codes to predict are those of the features before masks were put on.
        output = model(batch.source.features_BTF, batch.lengths_B, batch.features_BTF, predicted_BS)
        # A short step may have nothing masked: its loss is 0, not undefined.
        terms = {"loss/masked": output.loss_sum() / max(totals.masked, 1)}
        terms |= router_loss_terms(output.encoder, self.objective, self.encoder, totals)
        return terms, output


def masked_prediction_metrics(output: MaskedPredictorOutput, totals: Totals) -> StepMetrics:
    """A lane's part of the step's share of codes predicted right, and of how evenly lanes use the codes."""
    num_masked = max(totals.masked, 1)
    # A lane counts by its masked frames, so that the sum over lanes is a mean over all of them.
    share = len(output.codes_NQ) / num_masked
    return {
        "masked_accuracy": output.num_correct() / num_masked,
        "code_entropy": share * evenness(output.code_counts()),
    }
