"""The worst micro-batch of each length, run once before the first step, so that what does not fit is known at once.

Each runs forward and backward as in training, and then the update, whose gradients are not numbers: such an update is
skipped by all processes alike, and changes neither weights nor moments. Whatever is random is seeded by step and lane,
so the training afterwards is to the bit the one without a trial. A stage that goes on where its trial was made (same
micro-batches, processes and device) makes none.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from data.loader import Loader, WaveformBatch
from data.sampling.sampler import BatchSpec
from launcher.errors import ConfigError
from launcher.processes.heartbeat import Heartbeat
from launcher.recipe import AnyTrainingStage
from launcher.run_folder import read_json, write_json
from launcher.stages.context import StageContext
from launcher.training import parallel
from launcher.training.collectives import broadcast_json
from launcher.training.fragments import owned_fragments
from launcher.training.inputs import Inputs
from launcher.training.memory.shortage import Sampler, cost, describe_device, free_unused, is_out_of_memory

logger = logging.getLogger(__name__)

# A bucket holds the micro-batches whose longest utterances differ by less than this factor.
BUCKET_FACTOR = 2.0
# Micro-batches that are looked at, evenly over the first epoch: of ten millions all would take minutes.
MAX_CANDIDATES = 4096
# Utterances that a message names.
NAMED = 4

RunMicroBatch = Callable[[WaveformBatch], None]
"""Forward and backward of a micro-batch, with gradients that are not numbers."""


def worst_micro_batches(sampler: Sampler) -> list[BatchSpec]:
    """Of each range of lengths the micro-batch of the first epoch that costs most, the cheapest first."""
    worst: dict[int, tuple[float, BatchSpec]] = {}
    num_micro_batches = sampler.steps_per_epoch * sampler.batches.lanes
    stride = max(1, num_micro_batches // MAX_CANDIDATES)
    for number in range(0, num_micro_batches, stride):
        step, lane = divmod(number, sampler.batches.lanes)
        batch = sampler.micro_batch(step, lane)
        if not len(batch.utterances):
            continue
        longest = int(batch.samples.max())
        bucket = math.floor(math.log(max(longest, 1), BUCKET_FACTOR))
        size = cost(sampler.batches, len(batch.utterances), longest, sampler.sample_rate_hz)
        if bucket not in worst or size > worst[bucket][0]:
            worst[bucket] = (size, batch)
    by_cost = sorted(worst.values(), key=lambda one: one[0])
    return [batch for _, batch in by_cost]


class Trial:
    """The trial of one stage. Every process makes it and calls it alike."""

    def __init__(
        self,
        context: StageContext[AnyTrainingStage],
        engine: parallel.Engine,
        inputs: Inputs,
        heartbeat: Heartbeat,
        run_micro_batch: RunMicroBatch,
    ):
        self.context = context
        self.engine = engine
        self.inputs = inputs
        self.heartbeat = heartbeat
        self.run_micro_batch = run_micro_batch
        self.record_file = context.folder.path / "memory" / "trial.json"

    def run(self, step: int) -> None:
        """Try what was not tried before. ConfigError, with the budget that would fit, where something does not."""
        if not self.context.recipe.cluster.try_memory or not self._is_due():
            return
        started = time.perf_counter()
        worst = worst_micro_batches(self.inputs.sampler)
        loader = self.inputs.loader
        fitting: list[BatchSpec] = []
        # Moments take their memory from the first update on, and are there now.
        for _ in owned_fragments(self.engine):
            pass
        self.engine.train()
        # Every update takes as many micro-batches as the process has lanes; the smallest one fills the last up.
        accumulation = self.engine.gradient_accumulation_steps()
        missing = -len(worst) % accumulation
        for number, spec in enumerate([*worst[:1] * missing, *worst], start=1):
            self.heartbeat.beat(step, "start")
            # Its own lane for all processes: each tries the same, and they enter the same collectives.
            reader = Loader(
                self.inputs.sampler,
                loader.reader,
                loader.tokenizer,
                lanes=(spec.lane,),
                workers=loader.workers,
                sidecars=loader.sidecars,
            )
            ((batch,),) = reader.steps(spec.step, spec.step + 1)
            problem = self._try(batch)
            if problem is not None:
                raise self._error(batch, problem, fitting)
            fitting.append(spec)
            if number % accumulation:
                self.engine.step()
            else:
                with _skipping_quietly():
                    applied = parallel.update(self.engine)
                assert not applied, "an update whose gradients are not numbers is skipped"

        seconds = time.perf_counter() - started
        if dist.get_rank() == 0:
            self.record_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.record_file, self._circumstances())
            self.context.run.append_event(
                "memory_tried", stage=self.context.name, step=step, micro_batches=len(worst), seconds=seconds
            )
        logger.info("the worst micro-batches of %d lengths fit into memory (tried in %.1f s)", len(worst), seconds)

    def _is_due(self) -> bool:
        """Whether nothing is known of these micro-batches here; the same on every process. Collective."""
        is_due = False
        if dist.get_rank() == 0:
            recorded: Any = None
            # Torn, by a kill: it is tried again.
            with suppress(OSError, ValueError):
                recorded = read_json(self.record_file)
            is_due = recorded != self._circumstances()
        return broadcast_json(is_due)

    def _circumstances(self) -> dict[str, Any]:
        """What decides whether micro-batches fit, beside the model: that of a stage's folder is always the same."""
        sampler = self.inputs.sampler
        return {
            "batches": sampler.batches.model_dump(mode="json"),
            "speeds": list(self.context.augment.speeds),
            "utterances": len(sampler.shard),
            "steps_per_epoch": sampler.steps_per_epoch,
            "processes": dist.get_world_size(),
            "expert_parallel": self.context.expert_parallel,
            "deepspeed": self.context.deepspeed_file.read_text(encoding="utf-8"),
            "precision": self.context.recipe.cluster.precision,
            "device": describe_device(self.inputs.device),
        }

    def _try(self, batch: WaveformBatch) -> str | None:
        """Run a micro-batch; what its out-of-memory says, None where it fits."""
        try:
            self.run_micro_batch(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return str(error).partition("\n")[0][:300]
        return None

    def _error(self, batch: WaveformBatch, problem: str, fitting: Sequence[BatchSpec]) -> ConfigError:
        sampler = self.inputs.sampler
        longest = int(batch.samples_B.max())
        longest_s = longest / sampler.sample_rate_hz
        names = ", ".join(batch.keys[:NAMED])
        if len(batch.keys) > NAMED:
            names += f" and {len(batch.keys) - NAMED} more"
        what = (
            f"Stage {self.context.name} has micro-batches that do not fit into the memory of "
            f"{describe_device(self.inputs.device)}: {len(batch.keys)} utterances of up to {longest_s:.1f} s ({names}) "
            f"were tried before the first step, and failed ({problem})."
        )

        fewer = self._rows_that_fit(batch)
        largest_s = 0.0
        for spec in fitting:
            samples = int(spec.samples.max())
            largest_s = max(largest_s, cost(sampler.batches, len(spec.samples), samples, sampler.sample_rate_hz))
        if fewer:
            # Upwards to a hundredth, so that the budget holds these rows.
            budget_s = math.ceil(100 * cost(sampler.batches, fewer, longest, sampler.sample_rate_hz)) / 100
            seen = f"{fewer} of them fit"
        elif fewer is None and largest_s:
            budget_s = math.ceil(100 * largest_s) / 100
            seen = f"what fitted costs up to {budget_s:g} s"
        elif fewer is None and len(batch.keys) > 1:
            budget_s = round(cost(sampler.batches, len(batch.keys), longest, sampler.sample_rate_hz) / 2, 2)
            seen = "half of it may fit"
        else:
            return ConfigError(
                f"{what} Not even one of them fits: set batches.max_utterance_s below {longest_s:.1f}, or train a "
                "smaller model."
            )
        return ConfigError(
            f"{what} Set batches.seconds to {budget_s:g} or less (it is {sampler.batches.seconds:g}): {seen}. With "
            "cluster.try_memory=false the stage trains without this trial, and splits what does not fit."
        )

    def _rows_that_fit(self, batch: WaveformBatch) -> int | None:
        """The most utterances of a micro-batch that fit, of halves; 0 for none, None where it cannot be tried.

        Among several processes nothing more can be: the others are still in the collectives of what failed.
        """
        if dist.get_world_size() > 1 or self.engine.zero_optimization_stage() > 2:
            return None
        num_rows = len(batch.keys) // 2
        while num_rows:
            parallel.discard_gradients(self.engine)
            free_unused()
            if self._try(_first_rows(batch, num_rows)) is None:
                return num_rows
            num_rows //= 2
        return 0


@contextmanager
def _skipping_quietly() -> Iterator[None]:
    """DeepSpeed warns of every update that is skipped, which here is the intention."""
    deepspeed_logger = logging.getLogger("DeepSpeed")
    level = deepspeed_logger.level
    deepspeed_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        deepspeed_logger.setLevel(level)


def _first_rows(batch: WaveformBatch, num_rows: int) -> WaveformBatch:
    """The first utterances of a micro-batch, of which the first is about the longest."""
    sidecars = {}
    for name, arrays in batch.sidecars.items():
        sidecars[name] = arrays[:num_rows]
    return WaveformBatch(
        step=batch.step,
        lane=batch.lane,
        keys=batch.keys[:num_rows],
        waveforms_BS=batch.waveforms_BS[:num_rows],
        samples_B=batch.samples_B[:num_rows],
        tokens_BU=batch.tokens_BU[:num_rows],
        token_lengths_B=batch.token_lengths_B[:num_rows],
        texts=batch.texts[:num_rows],
        quarantined=[],
        sidecars=sidecars,
    )
