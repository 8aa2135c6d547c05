"""The training loop of one stage, as every process runs it.

Each step: forward and backward of every lane's micro-batch, one collective in which all processes agree (was a stop
asked for? what did the step measure?), then the update, which is skipped when the gradient is not finite. Whatever is
random is seeded by step and lane, so a step is the same on any number of processes.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from data.loader import WaveformBatch
from data.sampling.sampler import Totals
from data.seeds import derive_seed
from launcher.errors import CheckpointError, DivergedError
from launcher.processes.heartbeat import Heartbeat
from launcher.processes.start_profile import start_profile
from launcher.processes.stop_request import StopRequest
from launcher.recipe import AnyTrainingStage
from launcher.stages.context import StageContext
from launcher.training import checkpoint, parallel
from launcher.training.adaptation import KeepCheck
from launcher.training.collectives import all_gather_json
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.feature_batch import FeatureBatch
from launcher.training.health.nonfinite_steps import NonfiniteSteps
from launcher.training.inputs import Inputs
from launcher.training.layer_metrics import LayerProbe, layer_row
from launcher.training.masked_prediction_loss import MaskedPredictionLoss
from launcher.training.memory.shortage import MemoryLimit, free_unused, is_out_of_memory
from launcher.training.memory.splitting import split
from launcher.training.memory.trial import Trial
from launcher.training.metrics import (
    MetricAccumulator,
    ReducedMetrics,
    StepMetrics,
    add_metrics,
    all_reduce_metrics,
    norm_metrics,
    routing_metrics,
)
from launcher.training.profiling import GarbageCollection, StepProfiler, peak_flops
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.running_average import RunningAverage
from launcher.training.schedule import learning_rate
from launcher.training.training_log import TrainingLog
from launcher.training.training_state import capture_state, restore_state
from launcher.training.validation import Validator, validate

logger = logging.getLogger(__name__)

StageLoss: TypeAlias = RecognitionLoss | DistillationLoss | MaskedPredictionLoss


@dataclass
class Trainer:
    """One process's part in training a stage. Build it on every process alike, then call `run`."""

    context: StageContext[AnyTrainingStage]
    engine: parallel.Engine
    stage_loss: StageLoss
    inputs: Inputs
    validation_inputs: Inputs | None
    validator: Validator
    log: TrainingLog
    heartbeat: Heartbeat
    stop: StopRequest
    flops_per_audio_s: float
    memory: MemoryLimit
    average: RunningAverage | None = None
    keep: KeepCheck | None = None
    step: int = 0
    accumulator: MetricAccumulator = field(default_factory=MetricAccumulator)
    nonfinite: NonfiniteSteps = field(default_factory=NonfiniteSteps)

    def __post_init__(self) -> None:
        self.stage = self.context.stage
        self.saver = checkpoint.Saver(self.context.folder, self.stage.retention, self.inputs.device)
        cluster = self.context.recipe.cluster
        self.profiler = StepProfiler(
            cluster.profile_range, self.context.folder.profile, dist.get_rank(), start=cluster.profile_start
        )
        self.inputs.loader.on_wait = self._report_wait
        if self.validation_inputs is not None:
            self.validation_inputs.loader.on_wait = self.heartbeat.tick
        if self.keep is not None:
            self.keep.inputs.loader.on_wait = self.heartbeat.tick

    def run(self) -> Literal["done", "stopped"]:
        """Train to the stage's last step, or until a stop is asked for; either way end with a checkpoint."""
        trial = Trial(self.context, self.engine, self.inputs, self.heartbeat, self._try_micro_batch)
        trial.run(self.step)
        if self.keep is not None and self.keep.base_cer is None:
            # Before the first step the model is its base.
            self.keep.base_cer = self._keep_cer(self.keep)
            self.log.event("keep_measured", self.step, split=self.keep.split, cer=self.keep.base_cer)
        start_profile.mark("trial of memory")
        with GarbageCollection() as garbage_collection:
            self.log.event("training_started", self.step)
            wait_started = time.perf_counter()
            for batches in self.inputs.steps(self.step, self.stage.steps):
                data_wait_s = time.perf_counter() - wait_started
                self.profiler.before_step(self.step)
                stop_agreed = self.train_step(batches, data_wait_s)
                self.profiler.after_step(self.step)
                garbage_collection.after_step(self.step)

                # Validated before it is saved: a checkpoint carries the error rate of its weights.
                at_end = self.step == self.stage.steps
                validation_cer = None
                if at_end or self.step % self.stage.validate_every == 0:
                    validation_cer = self.run_validation()

                # While updates are skipped, a checkpoint would only push out an older, better one.
                save_due = self.step % self.stage.checkpoint.every_steps == 0 and self.nonfinite.sound
                if at_end or stop_agreed or save_due:
                    self.save(validation_cer, last=at_end or stop_agreed)
                if stop_agreed:
                    break
                wait_started = time.perf_counter()

        self.profiler.finish()
        self.log.event("training_ended", self.step)
        self.log.goodput(self.step)
        if self.step == self.stage.steps:
            return "done"
        return "stopped"

    def _report_wait(self) -> None:
        # How long one utterance may take is the loader's to judge: it knows the shard.
        self.heartbeat.beat(self.step, "data")

    def train_step(self, batches: list[WaveformBatch], data_wait_s: float) -> bool:
        """One update from this process's lanes. True when the processes agreed to stop after it."""
        self.heartbeat.beat(self.step, "train")
        started = time.perf_counter()
        rate = learning_rate(self.stage.optimizer, self.step, self.stage.steps)
        parallel.set_learning_rate(self.engine, rate)
        totals = self.inputs.totals(self.step)
        self.engine.train()

        metrics, lane_losses = self._run_lanes(batches, totals)

        # Agreement: the step's one collective of our own.
        self.heartbeat.tick()
        reduced = self.agree(metrics, batches)
        layers = layer_row(reduced.scalars, dist.get_world_size())
        self.heartbeat.tick()

        # Update, the same on every process: applied by all or by none.
        applied = parallel.update(self.engine)
        self.step += 1
        if applied:
            self.nonfinite.update_applied()
            self._update_buffers(reduced)
            if self.average is not None:
                self.average.update(self.step - self.nonfinite.skipped)
            step_s = time.perf_counter() - started + data_wait_s
            self.accumulator.add(
                reduced,
                learning_rate=rate,
                grad_norm=parallel.gradient_norm(self.engine),
                step_s=step_s,
                data_wait=data_wait_s / step_s,
            )
        else:
            self.accumulator.add_skipped(reduced)
            self._skip_update(batches, lane_losses)

        # Log.
        if self._row_due(self.step) and self.accumulator.steps:
            self._write_row(layers)
        return reduced.scalars["stop"] > 0

    def _row_due(self, step: int) -> bool:
        """Whether a row is written after so many steps."""
        return step % self.stage.log_every == 0 or step == self.stage.steps

    def _run_lanes(self, batches: list[WaveformBatch], totals: Totals) -> tuple[StepMetrics, list[Tensor]]:
        """Forward and backward, lane after lane; the engine adds the gradients up. Returns the metrics of all lanes and
        the loss of each. Where memory runs out it begins anew, with that micro-batch in smaller parts."""
        while True:
            metrics: StepMetrics = {}
            lane_losses: list[Tensor] = []
            try:
                for index, batch in enumerate(batches):
                    self.heartbeat.tick()
                    loss = self.forward_backward(batch, totals, metrics)
                    lane_losses.append(loss)
                    if index < len(batches) - 1:
                        # It counts the micro-batch; the one after the last lane is the update.
                        self.engine.step()
                return metrics, lane_losses
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.memory.take(batches[len(lane_losses)], error)
            # Outside of the handler: the error refers to the activations.
            parallel.discard_gradients(self.engine)
            free_unused()

    def forward_backward(
        self, batch: WaveformBatch, totals: Totals, metrics: StepMetrics, discarded: bool = False
    ) -> Tensor:
        """Forward and backward of one lane, in parts where the whole does not fit into memory; adds its metrics to
        `metrics` and returns its loss. Gradients that are to be `discarded` are not numbers."""
        whole = self.inputs.micro_batch(batch)
        # By the batch's step: what is read of stored teachers with it is what the loss asks for at that step.
        progress = min(1.0, batch.step / self.stage.steps)
        num_parts = 1 if discarded else self.memory.num_parts(batch)
        if num_parts == 1:
            torch.manual_seed(derive_seed(self.context.seed, "dropout", batch.step, batch.lane))
            return self._run_part(whole, totals, progress, metrics, discarded)

        losses = []
        parts = split(whole, num_parts)
        for number, part in enumerate(parts):
            self.heartbeat.tick()
            torch.manual_seed(derive_seed(self.context.seed, "dropout", batch.step, batch.lane, number))
            if number < len(parts) - 1:
                with parallel.accumulating(self.engine):
                    losses.append(self._run_part(part, totals, progress, metrics))
            else:
                losses.append(self._run_part(part, totals, progress, metrics))
        return torch.stack(losses).sum()

    def _run_part(
        self,
        feature_batch: FeatureBatch,
        totals: Totals,
        progress: float,
        metrics: StepMetrics,
        discarded: bool = False,
    ) -> Tensor:
        """Forward and backward of a micro-batch, or of a part of one."""
        terms, output = self.stage_loss(self.engine, feature_batch, totals, progress)
        loss = torch.stack(list(terms.values())).sum()
        value = loss.detach()
        # Only at steps that are logged: it would cost a decomposition of the encoder's output at every one.
        probe = None
        if self.stage.log_layers and self._row_due(self.step + 1):
            probe = LayerProbe(output.encoder, totals.frames)
        self.heartbeat.tick()

        # Backward can make finite gradients of an infinite loss (CTC's does). Multiplied by NaN they are seen as what
        # they are by the gradient norm, which decides about the update.
        finite = torch.where(value.isfinite(), 1.0, torch.nan)
        if discarded:
            finite = torch.full_like(finite, torch.nan)
        # The engine divides by its micro-batches and processes, which are the lanes together; terms are divided by the
        # counts of the whole step already.
        self.engine.backward(loss * finite * self.inputs.sampler.batches.lanes)

        for name, term in terms.items():
            add_metrics(metrics, {name: term.detach()})
        add_metrics(metrics, self.validator.step_metrics(output, totals))
        add_metrics(metrics, {"loss": value})
        add_metrics(metrics, routing_metrics(output.encoder.routings, self.stage.model.encoder.routing_names))
        add_metrics(metrics, norm_metrics(output.encoder.moments))
        if probe is not None:
            add_metrics(metrics, probe.metrics)
        return value

    def _try_micro_batch(self, batch: WaveformBatch) -> None:
        """Forward and backward of a micro-batch before the training, whose gradients are discarded."""
        self.forward_backward(batch, self.inputs.totals(batch.step), {}, discarded=True)

    def agree(self, metrics: StepMetrics, batches: list[WaveformBatch]) -> ReducedMetrics:
        """Sum the step's metrics over all processes, and with them whether to stop and how the save under way is."""
        counts = {
            "samples": sum(int(batch.samples_B.sum()) for batch in batches),
            "quarantined": sum(len(batch.quarantined) for batch in batches),
            "stop": int(self.context.folder.stop_file.exists() or self.stop.count > 0),
            **self.saver.progress(),
            **self.memory.counts(batches),
        }
        for name, count in counts.items():
            metrics[name] = torch.tensor(count)
        reduced = all_reduce_metrics(metrics, self.inputs.device)
        self.saver.settle(reduced.scalars.pop("save/writing"), reduced.scalars.pop("save/failed"))
        return reduced

    def _update_buffers(self, reduced: ReducedMetrics) -> None:
        """Move what learns without gradients: the routers' biases by the loads, BatchNorm's statistics by the moments,
        both of all lanes."""
        device = self.inputs.device
        encoder = self.engine.module.encoder
        loads = []
        for name in self.stage.model.encoder.routing_names:
            loads.append(torch.tensor(reduced.loads[f"experts/{name}/load"], device=device))
        encoder.rebalance(loads)
        encoder.update_norms([torch.tensor(values, dtype=torch.float64) for values in reduced.moments.values()])

    def _skip_update(self, batches: list[WaveformBatch], lane_losses: list[Tensor]) -> None:
        """Record a step whose update was skipped, with the utterances it may be due to; too many roll back."""
        self.nonfinite.update_skipped()

        # Those whose own loss is not finite are to blame; where all losses are finite, every utterance of the step.
        every_key = [key for batch in batches for key in batch.keys]
        bad_keys = []
        for batch, loss in zip(batches, lane_losses, strict=True):
            if not torch.isfinite(loss):
                bad_keys += batch.keys
        bad_keys_of_all = _gather_lists(bad_keys)
        every_key_of_all = _gather_lists(every_key)
        if bad_keys_of_all:
            reason = "the loss of these utterances is not finite"
            suspects = bad_keys_of_all
        else:
            reason = "the gradient is not finite"
            suspects = every_key_of_all
        logger.warning("step %d: update skipped, %s: %s", self.step, reason, ", ".join(suspects))
        self.log.event("update_skipped", self.step, reason=reason, utterances=suspects)

        if self.nonfinite.too_many(self.stage.recovery):
            self._roll_back()

    def _roll_back(self) -> None:
        """Load the weights of a checkpoint from before the bad steps; the step goes on. DivergedError at the limit."""
        self.heartbeat.beat(self.step, "restore")
        self.saver.finish()
        saved = None
        if self.nonfinite.rollbacks < self.stage.recovery.max_rollbacks:
            saved = checkpoint.agreed_checkpoint(
                self.context.folder, up_to=self.nonfinite.newest_good(self.step), on_progress=self.heartbeat.tick
            )
        if saved is None:
            raise DivergedError(
                f"The loss or the gradient was not finite in {self.nonfinite.in_a_row} steps up to step {self.step} of "
                f"stage {self.stage.name}. No such update was applied. The weights were rolled back to an earlier "
                f"checkpoint {self.nonfinite.rollbacks} times (recovery.max_rollbacks is "
                f"{self.stage.recovery.max_rollbacks}), and there is none left to try. events.jsonl names the "
                "utterances: listen to them, or lower optimizer.peak_learning_rate, and run the same command again."
            )
        _, nonfinite_then = restore_state(self.engine, saved, self.heartbeat.tick, self.average)
        self.nonfinite.rolled_back(self.step, saved.step, nonfinite_then.skipped)
        logger.warning("step %d: weights rolled back to those of step %d", self.step, saved.step)
        self.log.event("rolled_back", self.step, to_step=saved.step)

    def _write_row(self, layers: dict[str, float]) -> None:
        """One row of metrics: the means over the steps since the last one, and what layers did in the last of them."""
        row: dict[str, Any] = self.accumulator.close()
        del row["stop"]
        audio_s = row.pop("samples") / self.inputs.sampler.sample_rate_hz
        audio_s_per_s = audio_s / row["step_s"]
        epoch, _ = self.inputs.sampler.position(self.step - 1)

        # FLOPs as model/costs/flops.py counts them, with recomputed layers and loaded teachers; utilisation is their
        # share of what the devices can do.
        row["flops_per_s"] = audio_s_per_s * self.flops_per_audio_s
        peak = peak_flops(self.inputs.device)
        if peak is not None:
            row["mfu"] = row["flops_per_s"] / (peak * dist.get_world_size())

        self.log.training_row(
            self.step,
            epoch=epoch,
            **row,
            **layers,
            audio_s_per_s=audio_s_per_s,
            time=time.time(),
            skipped=self.nonfinite.skipped,
            **self.memory.row(),
        )

    def run_validation(self) -> float | None:
        """Log the metrics of the validation split. Returns its character error rate over all processes; None without
        such a split, or without transcripts, or where too much of a former domain is lost."""
        if self.validation_inputs is None:
            return None
        started = time.perf_counter()
        self.heartbeat.beat(self.step, "validate")
        metrics = validate(
            self.engine,
            self.stage_loss,
            self.validation_inputs,
            self.validator,
            self.heartbeat,
            self.step,
        )
        is_kept = True
        if self.keep is not None:
            keep_cer = self._keep_cer(self.keep)
            metrics["validation/keep_cer"] = keep_cer
            is_kept = self.keep.allows(keep_cer)
        self.log.row(self.step, **metrics, validation_s=time.perf_counter() - started)
        if not is_kept:
            # Without an error rate no checkpoint is among the best.
            return None
        return metrics.get("validation/cer")

    def _keep_cer(self, keep: KeepCheck) -> float:
        """The character error rate on the speech that is not to be forgotten. Collective."""
        self.heartbeat.beat(self.step, "validate")
        metrics = validate(self.engine, self.stage_loss, keep.inputs, self.validator, self.heartbeat, self.step)
        return metrics["validation/cer"]

    def save(self, validation_cer: float | None, last: bool) -> None:
        """Begin a checkpoint of this step; the last one of a stage is waited for, and CheckpointError if it fails.

        Any other that fails is logged, and no reason to end. Logs how long training stood still for it.
        """
        self.heartbeat.beat(self.step, "save")
        started = time.perf_counter()
        state = capture_state(
            self.engine,
            self.step,
            self.accumulator,
            self.nonfinite,
            validation_cer,
            self.inputs.loader.tokenizer,
            self.average,
            self.keep.state() if self.keep is not None else None,
        )
        saved = self.saver.start(state)
        self.heartbeat.tick()
        if saved and last:
            saved = self.saver.finish()
        self.log.row(self.step, save_stall_s=time.perf_counter() - started)
        if last and not saved:
            raise CheckpointError(
                f"Stage {self.stage.name} reached step {self.step}, but its last checkpoint could not be written to "
                f"{self.context.folder.checkpoints}. Make room there and run the same command again."
            )


def _gather_lists(local: list[str]) -> list[str]:
    """The lists of all processes, one after the other. Collective."""
    gathered = []
    for items in all_gather_json(local):
        gathered += items
    return gathered
