"""What one micro-batch of masked features costs: the codes of what was not heard, and the experts' balance.

As everywhere, the loss is a sum divided by a count of the whole step: here of its masked encoder frames, which follow
from the lengths of the utterances and the seed, so that every process knows them before anything is read.

Shapes: B batch, S encoder frames, F mel bins, T feature frames.
"""

from torch import nn

from data.masking import hidden_encoder_frames
from data.plan import Totals
from launcher.training.measures import Measures
from launcher.training.tasks import MicroBatch, Parts, expert_parts
from model.encoder import EncoderConfig
from model.masked_prediction import MaskedPredictorOutput, evenness
from model.objectives import ExpertsObjectiveConfig


class SelfSupervised:
    """Masked prediction of a frozen quantizer's codes, and the experts' balance losses."""

    def __init__(self, objective: ExpertsObjectiveConfig, encoder: EncoderConfig):
        self.objective, self.encoder = objective, encoder

    def __call__(
        self, model: nn.Module, batch: MicroBatch, totals: Totals, progress: float
    ) -> tuple[Parts, MaskedPredictorOutput]:
        """The weighted parts of the loss, which add up to it. `batch` holds masked features and their source."""
        assert batch.source is not None
        factor = self.encoder.subsampling.factor
        predicted_BS = hidden_encoder_frames(batch.source.masked_BT, batch.lengths_B, factor)
        output = model(batch.source.features_BTF, batch.lengths_B, batch.features_BTF, predicted_BS)
        parts = {"loss/masked": output.loss_sum() / max(totals.masked, 1)}
        return parts | expert_parts(output.encoder, self.objective, self.encoder, totals), output


def masked_measures(output: MaskedPredictorOutput, totals: Totals) -> Measures:
    """A lane's part of the step's share of codes predicted right, and of how evenly lanes use the codes."""
    num_masked = max(totals.masked, 1)
    share = len(output.codes_NQ) / num_masked
    return {
        "masked_accuracy": output.num_correct() / num_masked,
        "code_entropy": share * evenness(output.code_counts()),
    }
