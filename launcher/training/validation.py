"""How good a model is on the validation split: its errors against transcripts, or the codes that it predicts right.

A `Validator` turns each micro-batch into a few sums. `validate` adds them up over the whole split and all processes,
and the validator makes metrics of the result.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jiwer
import torch
import torch.distributed as dist
from torch import Tensor

from data.loader import WaveformBatch
from data.sampling.sampler import Totals
from data.text.tokenizer import Tokenizer
from launcher.inference.error_counts import count_errors
from launcher.processes.heartbeat import Heartbeat
from launcher.training.inputs import Inputs
from launcher.training.masked_prediction_loss import masked_prediction_metrics
from launcher.training.metrics import StepMetrics
from launcher.training.parallel import Engine
from model.masked_prediction import MaskedPredictorOutput, evenness
from model.quantizer import QuantizerConfig
from model.recognizer import RecognizerOutput
from model.search import greedy


class Validator(Protocol):
    """What a trainer asks about the output of its stage's model."""

    num_sums: int

    def step_metrics(self, output: Any, totals: Totals) -> StepMetrics:
        """What a lane adds to the metrics of a training step."""
        ...

    def sums(self, batch: WaveformBatch, output: Any) -> Sequence[float]:
        """`num_sums` numbers that are added up over a split."""
        ...

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The metrics that follow from the sums of a whole split."""
        ...


class ErrorRateValidator:
    """The character error rate of greedy hypotheses."""

    num_sums = 2

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def step_metrics(self, output: RecognizerOutput, totals: Totals) -> StepMetrics:
        """Nothing: a search in every training step would cost more than it tells."""
        return {}

    def sums(self, batch: WaveformBatch, output: RecognizerOutput) -> Sequence[float]:
        """Character edits between the greedy hypotheses and the references, and the references' length."""
        # An empty lane has a hypothesis, of no frames, and no reference.
        if not batch.keys:
            return 0, 0
        hypotheses = []
        for hypothesis in greedy(output.ctc_BSV, output.encoder.lengths_B):
            hypotheses.append(self.tokenizer.decode(hypothesis.tokens))
        return count_errors(jiwer.process_characters(batch.texts, hypotheses))

    def metrics(self, sums: list[float]) -> dict[str, float]:
        edits, characters = sums
        # References may be empty, all of them.
        return {"validation/cer": edits / max(characters, 1)}


class MaskedAccuracyValidator:
    """The share of masked frames whose codes are predicted right, and how evenly the split uses the codes."""

    def __init__(self, quantizer: QuantizerConfig):
        self.code_shape = (quantizer.codebooks, quantizer.codes)
        self.num_sums = 2 + quantizer.codebooks * quantizer.codes

    def step_metrics(self, output: MaskedPredictorOutput, totals: Totals) -> StepMetrics:
        """A lane's part of the accuracy and of the use of codes in a training step."""
        return masked_prediction_metrics(output, totals)

    def sums(self, batch: WaveformBatch, output: MaskedPredictorOutput) -> Sequence[float]:
        """Codes predicted right, masked frames, and how often each code was the target."""
        counts: Tensor = output.code_counts().flatten()
        return [float(output.num_correct()), len(output.codes_NQ), *counts.tolist()]

    def metrics(self, sums: list[float]) -> dict[str, float]:
        correct, masked, *counts = sums
        entropy = evenness(torch.tensor(counts, dtype=torch.float64).view(self.code_shape))
        return {"validation/masked_accuracy": correct / max(masked, 1), "validation/code_entropy": float(entropy)}


@torch.no_grad()
def validate(
    engine: Engine,
    stage_loss: Any,
    inputs: Inputs,
    validator: Validator,
    heartbeat: Heartbeat,
    step: int,
) -> dict[str, float]:
    """The loss and the validator's metrics over a whole split, each process on its lanes. Collective.

    Every term of the loss is divided by the split's own count (tokens, frames, ...), as a training step divides by
    the step's.
    """
    engine.eval()
    num_steps = inputs.sampler.steps_per_epoch
    # Not the mean over steps: how many utterances the last one holds depends on the number of lanes.
    totals = inputs.sum_totals(range(num_steps))
    # In fp64, so that edits and codes of any split are counted exactly.
    sums = torch.zeros(1 + validator.num_sums, dtype=torch.float64, device=inputs.device)
    for batches in inputs.steps(0, num_steps):
        heartbeat.beat(step, "validate")
        for batch in batches:
            heartbeat.tick()
            # At progress 1 every schedule of the stage has reached its end.
            terms, output = stage_loss(engine, inputs.micro_batch(batch), totals, 1.0)
            loss = sum(float(term) for term in terms.values())
            heartbeat.tick()
            sums += sums.new_tensor([loss, *validator.sums(batch, output)])
    dist.all_reduce(sums)
    loss, *validator_sums = sums.tolist()
    return {"validation/loss": loss, **validator.metrics(validator_sums)}
