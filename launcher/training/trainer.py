"""The training loop of one stage, as every process runs it.

Each step: every lane's micro-batch forward and backward, one collective in which all processes agree (is every loss
finite? was a stop asked for? what did the step measure?), then the update. Whatever is random is seeded by step and
lane, so a step is the same on any number of processes.
"""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import jiwer
import torch
import torch.distributed as dist
from torch import Tensor

from data.loader import Batch
from data.plan import derive_seed
from data.tokenizer import Tokenizer
from launcher.errors import DistributedError
from launcher.recipe import DistillStage, PretrainStage
from launcher.run_folder import StageFolder
from launcher.tracking import Tracker
from launcher.training import checkpoint, parallel
from launcher.training.heartbeat import Heartbeat
from launcher.training.inputs import Inputs
from launcher.training.schedule import learning_rate
from launcher.training.tasks import Distill, Pretrain
from model.router import Router
from model.search import greedy

logger = logging.getLogger(__name__)


@dataclass
class Window:
    """Sums over the steps since the last row of metrics; part of a checkpoint, so that rows survive a resume."""

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, measures: dict[str, float]) -> None:
        self.steps += 1
        for name, value in measures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def close(self) -> dict[str, float]:
        """The mean of every measure, after which the window is empty."""
        means = {name: value / self.steps for name, value in self.sums.items()}
        self.steps, self.sums = 0, {}
        return means


@dataclass
class Trainer:
    """One process's part in training a stage. Build it on every process alike, then call `run`."""

    stage: PretrainStage | DistillStage
    folder: StageFolder
    seed: int
    engine: Any
    task: Pretrain | Distill
    train: Inputs
    validation: Inputs | None
    tokenizer: Tokenizer
    heartbeat: Heartbeat
    tracker: Tracker | None
    step: int = 0
    window: Window = field(default_factory=Window)

    def run(self) -> Literal["done", "stopped"]:
        """Train to the stage's last step, or until a stop is asked for; either way end with a checkpoint."""
        waiting = time.perf_counter()
        for batches in self.train.steps(self.step, self.stage.steps):
            data_wait_s = time.perf_counter() - waiting
            stop = self._step(batches, data_wait_s)
            if self.step % self.stage.validate_every == 0 or self.step == self.stage.steps:
                self._validate()
            if stop or self.step % self.stage.checkpoint.every_steps == 0 or self.step == self.stage.steps:
                self.save()
            if stop and self.step < self.stage.steps:
                return "stopped"
            waiting = time.perf_counter()
        return "done"

    def _step(self, batches: list[Batch], data_wait_s: float) -> bool:
        """One update. True when the processes agreed to stop after it."""
        self.heartbeat.beat(self.step, "train")
        started = time.perf_counter()
        rate = learning_rate(self.stage.optimizer, self.step, self.stage.steps)
        parallel.set_learning_rate(self.engine, rate)
        totals = self.train.plan.totals(self.step)
        self.engine.train()
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            self._lane(batch, totals, sums)
            if index < len(batches) - 1:
                self.engine.step()
        agreed, stop = self._agree(sums, batches)
        self.engine.step()
        self._rebalance(agreed)
        self.step += 1
        step_s = time.perf_counter() - started + data_wait_s
        self._record(agreed, {"learning_rate": rate, "step_s": step_s, "data_wait": data_wait_s / step_s})
        return stop

    def _lane(self, batch: Batch, totals, sums: dict[str, Tensor]) -> None:
        micro_batch = self.train.micro_batch(batch)
        torch.manual_seed(derive_seed(self.seed, "dropout", batch.step, batch.lane))
        parts, output = self.task(self.engine, micro_batch, totals, self.step / self.stage.steps)
        loss = torch.stack(list(parts.values())).sum()
        # The engine averages over micro-batches and processes; lanes are both together.
        self.engine.backward(loss * self.train.plan.batches.lanes)
        measures = {name: part.detach() for name, part in parts.items()}
        measures["loss"] = loss.detach()
        for layer, routing in enumerate(output.encoder.routings):
            frames = routing.counts_E.sum()
            measures[f"experts/layer-{layer:02d}/counts"] = routing.counts_E
            measures[f"experts/layer-{layer:02d}/entropy"] = routing.entropy * frames
        for name, value in measures.items():
            sums[name] = sums[name] + value if name in sums else value

    def _agree(self, sums: dict[str, Tensor], batches: list[Batch]) -> tuple[dict[str, Any], bool]:
        """Sum this step's measures over all processes, in one collective; the loss is checked before any update."""
        device = self.train.device
        flags = {
            "samples": torch.tensor(sum(int(batch.samples_B.sum()) for batch in batches), device=device),
            "quarantined": torch.tensor(sum(len(batch.quarantined) for batch in batches), device=device),
            "stop": torch.tensor(self.folder.stop_file.exists(), device=device),
        }
        measures = {**sums, **flags}
        vector = torch.cat([value.flatten().double() for value in measures.values()])
        dist.all_reduce(vector)
        values = iter(vector.tolist())
        agreed = {
            name: [next(values) for _ in range(value.numel())] if value.ndim else next(values)
            for name, value in measures.items()
        }
        if not math.isfinite(agreed["loss"]):
            mine = [key for batch in batches for key in batch.keys] if self._not_finite(sums) else []
            raise DistributedError(
                f"The loss of step {self.step} of stage {self.stage.name} is {agreed['loss']}; the update was not "
                f"applied. Utterances of this process that made it so: {mine or 'none, another process has them'}. "
                "Listen to them, or lower optimizer.peak_learning_rate."
            )
        return agreed, agreed["stop"] > 0

    def _not_finite(self, sums: dict[str, Tensor]) -> bool:
        return not bool(torch.isfinite(sums["loss"]))

    def _rebalance(self, agreed: dict[str, Any]) -> None:
        for layer, router in enumerate(self._routers()):
            counts = torch.tensor(agreed[f"experts/layer-{layer:02d}/counts"], device=self.train.device)
            router.rebalance(counts)

    def _routers(self) -> list[Router]:
        return [layer.router for layer in self.engine.module.encoder.layers if layer.router is not None]

    def _record(self, agreed: dict[str, Any], own: dict[str, float]) -> None:
        measures = {name: value for name, value in agreed.items() if not isinstance(value, list) and name != "stop"}
        for name, counts in agreed.items():
            if isinstance(counts, list):
                layer, total = name.removesuffix("/counts"), max(sum(counts), 1)
                measures |= {f"{layer}/load/{expert}": count / total for expert, count in enumerate(counts)}
                measures[f"{layer}/entropy"] /= total
        norm = parallel.gradient_norm(self.engine)
        self.window.add({**measures, **own, "grad_norm": norm})
        if self.step % self.stage.log_every == 0 or self.step == self.stage.steps:
            row = self._row(self.window.close())
            if self.tracker:
                self.tracker.log(row)

    def _row(self, means: dict[str, float]) -> dict[str, Any]:
        row: dict[str, Any] = {"step": self.step, "epoch": self.train.plan.position(self.step - 1)[0]}
        for name, value in means.items():
            layer, separator, _ = name.partition("/load/")
            if separator:
                row.setdefault(f"{layer}/load", []).append(value)
            else:
                row[name] = value
        audio_s = row.pop("samples") / self.train.plan.sample_rate_hz
        row["audio_s_per_s"] = audio_s / row["step_s"]
        row["time"] = time.time()
        return row

    @torch.no_grad()
    def _validate(self) -> None:
        """Loss and greedy error rate on the validation split; every process runs its lanes of every batch."""
        if self.validation is None:
            return
        started = time.perf_counter()
        self.engine.eval()
        plan = self.validation.plan
        sums = torch.zeros(3, dtype=torch.float64)
        num_steps = plan.steps_per_epoch(0)
        for batches in self.validation.steps(0, num_steps):
            self.heartbeat.beat(self.step, "validate")
            for batch in batches:
                totals = plan.totals(batch.step)
                parts, output = self.task(self.engine, self.validation.micro_batch(batch), totals, 1.0)
                loss = sum(float(part) for part in parts.values())
                sums += torch.tensor([loss / num_steps, *self._edits(batch, output)], dtype=torch.float64)
        dist.all_reduce(sums)
        loss, edits, characters = sums.tolist()
        row = {"step": self.step, "validation/loss": loss, "validation/cer": edits / max(characters, 1)}
        row |= {"validation_s": time.perf_counter() - started, "time": time.time()}
        if self.tracker:
            self.tracker.log(row)

    def _edits(self, batch: Batch, output) -> tuple[int, int]:
        """Character edits between the greedy transcripts and the references, and the references' length."""
        if not batch.keys:
            return 0, 0
        hypotheses = [
            self.tokenizer.decode(hypothesis.tokens)
            for hypothesis in greedy(output.ctc_BSV, output.encoder.lengths_B)
        ]
        counts = jiwer.process_characters(batch.texts, hypotheses)
        edits = counts.substitutions + counts.deletions + counts.insertions
        return edits, counts.hits + counts.substitutions + counts.deletions

    def save(self) -> None:
        """Write a checkpoint of this step; one that cannot be written is logged, and training goes on."""
        self.heartbeat.beat(self.step, "save")
        started = time.perf_counter()
        module = self.engine.module
        saved = checkpoint.save(
            self.folder,
            self.step,
            parallel.fragments(self.engine),
            {**parallel.shapes(module), **{name: list(b.shape) for name, b in _buffers(module)}},
            dict(_buffers(module)),
            {"window": {"steps": self.window.steps, "sums": self.window.sums}},
            self.stage.checkpoint.keep_last,
        )
        logger.info("step %d: checkpoint %s in %.2f s", self.step, "saved" if saved else "failed", time.perf_counter() - started)

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: weights, moments, routers' biases, step, and the open row of metrics."""
        for replica in parallel.replicas(self.engine):
            saved.fill(replica)
        for fragment in parallel.fragments(self.engine):
            saved.fill(fragment)
        for name, buffer in _buffers(self.engine.module):
            buffer.copy_(saved.whole(checkpoint.BUFFER, name))
        parallel.set_optimizer_step(self.engine, saved.step)
        self.step = saved.step
        self.window = Window(**saved.trainer["window"])
        logger.info("resumed from %s: weights, moments, step %d", saved.folder, saved.step)


def _buffers(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are part of a model's state, such as the routers' biases."""
    state = module.state_dict()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in state)
