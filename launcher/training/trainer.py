"""The training loop of one stage, as every process runs it.

Each step: every lane's micro-batch forward and backward, one collective in which all processes agree (was a stop asked
for? what did the step measure?), then the update, which is left out when the gradient is not finite. Whatever is random
is seeded by step and lane, so a step is the same on any number of processes.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from data.loader import WaveformBatch
from data.sampler import Totals, derive_seed
from launcher.errors import CheckpointError, DivergedError
from launcher.monitoring.goodput import stage_goodput
from launcher.processes.heartbeat import Heartbeat
from launcher.processes.stop_request import StopRequest
from launcher.recipe import AnyTrainingStage
from launcher.run_folder import RunFolder, StageFolder
from launcher.tracking import Tracker
from launcher.training import checkpoint, parallel
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.fragments import full_shapes, owned_fragments, replica_fragments, set_optimizer_step
from launcher.training.health.loss_spikes import SpikeDetector
from launcher.training.health.nonfinite_steps import NonfiniteSteps
from launcher.training.health.routing_collapse import CollapseDetector
from launcher.training.inputs import Inputs
from launcher.training.masked_prediction_loss import MaskedPredictionLoss
from launcher.training.metrics import (
    MetricAccumulator,
    ReducedMetrics,
    StepMetrics,
    add_metrics,
    all_reduce_metrics,
    norm_metrics,
    routing_metrics,
)
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.schedule import learning_rate
from launcher.training.validation import Validator

logger = logging.getLogger(__name__)

Task: TypeAlias = RecognitionLoss | DistillationLoss | MaskedPredictionLoss


@dataclass
class Trainer:
    """One process's part in training a stage. Build it on every process alike, then call `run`."""

    stage: AnyTrainingStage
    folder: StageFolder
    seed: int
    engine: Any
    task: Task
    train: Inputs
    validation: Inputs | None
    judge: Validator
    heartbeat: Heartbeat
    stop: StopRequest
    tracker: Tracker | None
    step: int = 0
    window: MetricAccumulator = field(default_factory=MetricAccumulator)
    recovery: NonfiniteSteps = field(default_factory=NonfiniteSteps)
    spikes: SpikeDetector = field(default_factory=SpikeDetector)
    collapses: CollapseDetector = field(default_factory=CollapseDetector)
    saver: checkpoint.Saver = field(init=False)

    def __post_init__(self) -> None:
        self.saver = checkpoint.Saver(self.folder, self.stage.checkpoint, self.train.device)

    def run(self) -> Literal["done", "stopped"]:
        """Train to the stage's last step, or until a stop is asked for; either way end with a checkpoint."""
        self._event("training_started")
        waiting = time.perf_counter()
        for batches in self.train.steps(self.step, self.stage.steps):
            data_wait_s = time.perf_counter() - waiting
            stop = self._step(batches, data_wait_s)
            due = self.step % self.stage.validate_every == 0 or self.step == self.stage.steps
            validation_cer = self._validate() if due else None
            last = stop or self.step == self.stage.steps
            if last or (self.step % self.stage.checkpoint.every_steps == 0 and self.recovery.sound):
                self._save(validation_cer, last)
            if last:
                break
            waiting = time.perf_counter()
        self._event("training_ended")
        self._log_goodput()
        return "done" if self.step == self.stage.steps else "stopped"

    def _step(self, batches: list[WaveformBatch], data_wait_s: float) -> bool:
        """One update, and its measures. True when the processes agreed to stop after it."""
        self.heartbeat.beat(self.step, "train")
        started = time.perf_counter()
        rate = learning_rate(self.stage.optimizer, self.step, self.stage.steps)
        parallel.set_learning_rate(self.engine, rate)
        totals = self.train.totals(self.step)
        self.engine.train()
        sums: StepMetrics = {}
        losses = []
        for index, batch in enumerate(batches):
            losses.append(self._lane(batch, totals, sums))
            if index < len(batches) - 1:
                self.engine.step()
        agreed = self._agree(sums, batches)
        applied = parallel.update(self.engine)
        self.step += 1
        if applied:
            self.recovery.applied()
            self._rebalance(agreed)
            self._update_norms(agreed)
            step_s = time.perf_counter() - started + data_wait_s
            own = {"learning_rate": rate, "grad_norm": parallel.gradient_norm(self.engine)}
            self.window.add(agreed, {**own, "step_s": step_s, "data_wait": data_wait_s / step_s})
        else:
            self._leave_out(batches, losses)
        if self.window.steps and (self.step % self.stage.log_every == 0 or self.step == self.stage.steps):
            self._log(self.window.close())
        return agreed.scalars["stop"] > 0

    def _lane(self, batch: WaveformBatch, totals: Totals, sums: StepMetrics) -> Tensor:
        """Forward and backward of one lane; returns its loss. Its measures are added to `sums`."""
        micro_batch = self.train.micro_batch(batch)
        torch.manual_seed(derive_seed(self.seed, "dropout", batch.step, batch.lane))
        parts, output = self.task(self.engine, micro_batch, totals, self.step / self.stage.steps)
        loss = torch.stack(list(parts.values())).sum()
        value = loss.detach()
        # 1, unless the loss is not finite: then its gradient must not be either, whatever backward would make of it.
        finite = 1 + (value - value)
        # The engine averages over micro-batches and processes; lanes are both together.
        self.engine.backward(loss * finite * self.train.sampler.batches.lanes)
        measures = {name: part.detach() for name, part in parts.items()} | self.judge.measures(output, totals)
        experts = routing_metrics(output.encoder.routings, self.stage.model.encoder.routing_names)
        layers = {**experts, **norm_metrics(output.encoder.moments)}
        add_metrics(sums, {**measures, "loss": value, **layers})
        return value

    def _agree(self, sums: StepMetrics, batches: list[WaveformBatch]) -> ReducedMetrics:
        """This step's measures over all processes, and whether to stop."""
        own = {
            "samples": sum(int(batch.samples_B.sum()) for batch in batches),
            "quarantined": sum(len(batch.quarantined) for batch in batches),
            "stop": int(self.folder.stop_file.exists() or self.stop.count > 0),
            **self.saver.progress(),
        }
        counts = {name: torch.tensor(value) for name, value in own.items()}
        agreed = all_reduce_metrics({**sums, **counts}, self.train.device)
        self.saver.settle(agreed.scalars.pop("save/writing"), agreed.scalars.pop("save/failed"))
        return agreed

    def _leave_out(self, batches: list[WaveformBatch], losses: list[Tensor]) -> None:
        """Record a step whose update was not applied; after too many in a row take the weights back."""
        self.recovery.left_out()
        bad = [batch for batch, loss in zip(batches, losses, strict=True) if not torch.isfinite(loss)]
        found: list[list[list[str]]] = [[] for _ in range(dist.get_world_size())]
        mine = [[key for batch in of for key in batch.keys] for of in (bad, batches)]
        dist.all_gather_object(found, mine)
        suspects = [key for keys, _ in found for key in keys]
        reason = "the loss of these utterances is not finite" if suspects else "the gradient is not finite"
        suspects = suspects or [key for _, keys in found for key in keys]
        logger.warning("step %d: update left out, %s: %s", self.step, reason, ", ".join(suspects))
        self._event("update_left_out", reason=reason, utterances=suspects)
        if self.recovery.too_many(self.stage.recovery):
            self._take_back()

    def _take_back(self) -> None:
        """Load the weights of a checkpoint from before the bad steps; the step goes on. DivergedError at the limit."""
        self.saver.finish()
        saved = None
        if self.recovery.rollbacks < self.stage.recovery.max_rollbacks:
            saved = checkpoint.agreed_checkpoint(self.folder, up_to=self.recovery.newest_good(self.step))
        if saved is None:
            raise DivergedError(
                f"The loss or the gradient was not finite in {self.recovery.in_a_row} steps up to step {self.step} of "
                f"stage {self.stage.name}. No such update was applied. The weights were taken back to an earlier "
                f"checkpoint {self.recovery.rollbacks} times (recovery.max_rollbacks is "
                f"{self.stage.recovery.max_rollbacks}), and there is none left to try. events.jsonl names the "
                "utterances: listen to them, or lower optimizer.peak_learning_rate, and run the same command again."
            )
        then = self._load(saved)
        self.recovery.taken_back(self.step, saved.step, then.skipped)
        logger.warning("step %d: weights taken back to those of step %d", self.step, saved.step)
        self._event("weights_taken_back", to_step=saved.step)

    def _event(self, name: str, **details: Any) -> None:
        """Leave a record among the run's events, once for all processes."""
        if dist.get_rank() == 0:
            event = {"event": name, "stage": self.stage.name, "step": self.step, **details}
            RunFolder(self.folder.path.parent).append_event(**event)
            if self.tracker:
                self.tracker.event(event)

    def _rebalance(self, agreed: ReducedMetrics) -> None:
        loads = [agreed.loads[f"experts/{name}/load"] for name in self.stage.model.encoder.routing_names]
        self.engine.module.encoder.rebalance([torch.tensor(load, device=self.train.device) for load in loads])

    def _update_norms(self, agreed: ReducedMetrics) -> None:
        moments = [torch.tensor(values, dtype=torch.float64) for values in agreed.moments.values()]
        self.engine.module.encoder.update_norms(moments)

    def _log(self, row: dict[str, Any]) -> None:
        del row["stop"]
        audio_s = row.pop("samples") / self.train.sampler.sample_rate_hz
        position = {"step": self.step, "epoch": self.train.sampler.position(self.step - 1)[0]}
        row = {**position, **row, "audio_s_per_s": audio_s / row["step_s"], "time": time.time()}
        row["skipped"] = self.recovery.skipped
        if self.tracker:
            self.tracker.log(row)
            if usual := self.spikes.look(row["loss"]):
                logger.warning("step %d: the loss jumped to %.3g, usual was %.3g", self.step, row["loss"], usual)
                self._event("loss_spike", loss=row["loss"], usual=usual)
            for change in self.collapses.look(row):
                logger.warning("step %d: %s", self.step, change)
                self._event(change.pop("event"), **change)

    def _log_goodput(self) -> None:
        """What the stage's wall time went to until now, as fractions of it."""
        if self.tracker is None:
            return
        run = RunFolder(self.folder.path.parent)
        goodput = stage_goodput(run, self.stage.name, run.events())
        if goodput is not None:
            measured = {f"goodput/{name}": share for name, share in goodput.shares().items()}
            measured["goodput/wall_s"] = goodput.wall_s
            self.tracker.log({"step": self.step, **measured, "time": time.time()})
            self.tracker.summarize(measured)

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Measure the loss and what the judge asks for on the validation split, each process on its lanes.

        Returns the character error rate over all processes; None without a validation split, or transcripts.
        """
        if self.validation is None:
            return None
        started = time.perf_counter()
        self.engine.eval()
        sampler = self.validation.sampler
        sums = torch.zeros(1 + self.judge.num_sums, dtype=torch.float64, device=self.train.device)
        num_steps = sampler.steps_per_epoch
        for batches in self.validation.steps(0, num_steps):
            self.heartbeat.beat(self.step, "validate")
            totals = self.validation.totals(batches[0].step)
            for batch in batches:
                parts, output = self.task(self.engine, self.validation.micro_batch(batch), totals, 1.0)
                loss = sum(float(part) for part in parts.values())
                sums += sums.new_tensor([loss / num_steps, *self.judge.sums(batch, output)])
        dist.all_reduce(sums)
        loss, *judged = sums.tolist()
        row = {"step": self.step, "validation/loss": loss, **self.judge.row(judged)}
        row |= {"validation_s": time.perf_counter() - started, "time": time.time()}
        if self.tracker:
            self.tracker.log(row)
        return row.get("validation/cer")

    def _save(self, validation_cer: float | None, last: bool) -> None:
        """Begin a checkpoint of this step; the last one of a stage is waited for, and CheckpointError if it fails.

        Any other that fails is logged, and no reason to end. Logs how long training stood still for it.
        """
        self.heartbeat.beat(self.step, "save")
        started = time.perf_counter()
        module = self.engine.module
        buffers = dict(_buffers(module))
        begun = self.saver.start(
            checkpoint.State(
                self.step,
                owned_fragments(self.engine),
                {**full_shapes(module), **{name: list(buffer.shape) for name, buffer in buffers.items()}},
                buffers,
                {"window": asdict(self.window), "recovery": asdict(self.recovery)},
                validation_cer,
            )
        )
        saved = begun and (not last or self.saver.finish())
        row = {"step": self.step, "save_stall_s": time.perf_counter() - started, "time": time.time()}
        if self.tracker:
            self.tracker.log(row)
        if last and not saved:
            raise CheckpointError(
                f"Stage {self.stage.name} reached step {self.step}, but its last checkpoint could not be written to "
                f"{self.folder.checkpoints}. Make room there and run the same command again."
            )

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: weights, moments, buffers, step, and the open row of metrics."""
        self.recovery = self._load(saved)
        self.step = saved.step
        self.window = MetricAccumulator(**saved.trainer["window"])
        logger.info("resumed from %s: weights, moments, step %d", saved.folder, saved.step)

    def _load(self, saved: checkpoint.Checkpoint) -> NonfiniteSteps:
        """Copy weights, moments and buffers from a checkpoint; returns its record of bad steps."""
        for replica in replica_fragments(self.engine):
            saved.fill(replica)
        for fragment in owned_fragments(self.engine):
            saved.fill(fragment)
        for name, buffer in _buffers(self.engine.module):
            buffer.copy_(saved.whole(checkpoint.BUFFER, name))
        recovery = NonfiniteSteps(**saved.trainer.get("recovery", {}))
        set_optimizer_step(self.engine, saved.step - recovery.skipped)
        return recovery


def _buffers(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of a model's state, such as the routers' biases and BatchNorm's statistics."""
    state = module.state_dict()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in state)
