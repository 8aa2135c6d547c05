"""What tells how good a model is: its errors against transcripts, or the codes that it predicts right.

A judge gives sums over a micro-batch, which are added up over all of a split and all processes, and makes metrics of
them.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jiwer
import torch
from torch import Tensor

from data.loader import WaveformBatch
from data.sampler import Totals
from data.tokenizer import Tokenizer
from launcher.inference.error_counts import count_errors
from launcher.training.masked_prediction_loss import masked_prediction_metrics
from launcher.training.metrics import StepMetrics
from model.masked_prediction import MaskedPredictorOutput, evenness
from model.quantizer import QuantizerConfig
from model.recognizer import RecognizerOutput
from model.search import greedy


class Validator(Protocol):
    """What a trainer asks about the output of its stage's model."""

    num_sums: int

    def measures(self, output: Any, totals: Totals) -> StepMetrics:
        """What a lane adds to the measures of a training step."""
        ...

    def sums(self, batch: WaveformBatch, output: Any) -> Sequence[float]:
        """`num_sums` numbers that are added up over a split."""
        ...

    def row(self, sums: list[float]) -> dict[str, float]:
        """The metrics that follow from the numbers of a whole split."""
        ...


class ErrorRate:
    """The character error rate of greedy transcripts."""

    num_sums = 2

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def measures(self, output: RecognizerOutput, totals: Totals) -> StepMetrics:
        """What a lane of a training step adds to its row: nothing, transcripts are not searched for then."""
        return {}

    def sums(self, batch: WaveformBatch, output: RecognizerOutput) -> Sequence[float]:
        """Character edits between the greedy transcripts and the references, and the references' length."""
        if not batch.keys:
            return 0, 0
        hypotheses = [
            self.tokenizer.decode(hypothesis.tokens) for hypothesis in greedy(output.ctc_BSV, output.encoder.lengths_B)
        ]
        return count_errors(jiwer.process_characters(batch.texts, hypotheses))

    def row(self, sums: list[float]) -> dict[str, float]:
        edits, characters = sums
        return {"validation/cer": edits / max(characters, 1)}


class MaskedAccuracy:
    """The share of masked frames whose codes are predicted right, and how evenly the split uses the codes."""

    def __init__(self, quantizer: QuantizerConfig):
        self.shape = quantizer.codebooks, quantizer.codes
        self.num_sums = 2 + quantizer.codebooks * quantizer.codes

    def measures(self, output: MaskedPredictorOutput, totals: Totals) -> StepMetrics:
        """A lane's part of the accuracy and of the use of codes in a training step."""
        return masked_prediction_metrics(output, totals)

    def sums(self, batch: WaveformBatch, output: MaskedPredictorOutput) -> Sequence[float]:
        """Frames predicted right, masked frames, and how often each code was right."""
        counts: Tensor = output.code_counts().flatten()
        return [float(output.num_correct()), len(output.codes_NQ), *counts.tolist()]

    def row(self, sums: list[float]) -> dict[str, float]:
        correct, masked, *counts = sums
        entropy = evenness(torch.tensor(counts, dtype=torch.float64).view(self.shape))
        return {"validation/masked_accuracy": correct / max(masked, 1), "validation/code_entropy": float(entropy)}
