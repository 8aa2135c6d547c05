"""An out-of-memory in training: the utterances are named, and micro-batches of that size are split from then on.

One process (ZeRO 0 to 2) discards the gradients of the step and computes it anew, with the micro-batch in parts.

Several processes cannot: when one of them runs out of memory, the others are in a collective (the gradients', under
expert parallelism the all-to-all of a layer) that it will not enter, or not as often as they do. So that process leaves
a record and ends with its error; the supervisor ends the others and starts the stage again from its newest checkpoint.
Every process then reads the records, and splits by a rule that needs no message: the sampler tells the sizes of all
lanes, and all processes take as many parts as the largest of the micro-batches that they run at the same time needs. A
process whose own one is smaller runs smaller parts, or empty ones: each enters the same collectives.

The records stay in the stage's folder, so a stage that is resumed splits what it split before.
"""

import gc
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from data.files import parse_json, read_lines
from data.loader import WaveformBatch
from data.sampling.sampler import BatchesConfig, BatchSpec
from launcher.errors import ConfigError
from launcher.recipe import AnyTrainingStage
from launcher.stages.context import StageContext
from launcher.training.collectives import broadcast_json

logger = logging.getLogger(__name__)

# What runs out of memory says: torch's allocators for the CPU, cuBLAS and cuDNN raise a plain RuntimeError.
MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# Of the size that did not fit, what may be tried again: how much fits differs a little from step to step.
MARGIN = 0.9
MAX_RECORD_BYTES = 2**20
# Utterances that a message names.
NAMED = 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of this machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def free_unused() -> None:
    """Give back what an error left: call it when nothing refers to the error any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_device(device: torch.device) -> str:
    """A device and how much memory it has; records of another one say nothing about it."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"


def cost(batches: BatchesConfig, num_utterances: int, samples: int, sample_rate_hz: int) -> float:
    """What so many utterances of at most so many samples take of the budget of a micro-batch, in seconds."""
    seconds = samples / sample_rate_hz
    return num_utterances * seconds * (1 + seconds / batches.attention_s)


class Sampler(Protocol):
    """What is asked of the sampler of a run."""

    batches: BatchesConfig
    sample_rate_hz: int
    steps_per_epoch: int

    def micro_batch(self, step: int, lane: int) -> BatchSpec: ...


@dataclass(frozen=True)
class Shortage:
    """A micro-batch, or the largest part of one, that did not fit."""

    step: int
    lane: int
    utterances: list[str]
    num_utterances: int
    samples: int
    device: str


class MemoryLimit:
    """Into how many parts micro-batches go, from what did not fit before. Collective where it is made."""

    def __init__(self, context: StageContext[AnyTrainingStage], sampler: Sampler, device: torch.device, can_redo: bool):
        """`can_redo`: this process may compute a step anew, see above."""
        self.context = context
        self.sampler = sampler
        self.device = describe_device(device)
        self.can_redo = can_redo
        self.folder = context.folder.path / "memory"
        # The first process decides: files of a shared disk may not be seen everywhere at once.
        shortages = []
        if dist.get_rank() == 0:
            shortages = [asdict(shortage) for shortage in self._read()]
        self.shortages = [Shortage(**shortage) for shortage in broadcast_json(shortages)]

    def num_parts(self, batch: WaveformBatch) -> int:
        """Into how many parts a micro-batch goes: as many as the largest of those that run beside it needs."""
        if not self.shortages:
            return 1
        world_size = dist.get_world_size()
        first_lane = batch.lane - batch.lane % world_size
        num_parts = 1
        for lane in range(first_lane, first_lane + world_size):
            samples = self.sampler.micro_batch(batch.step, lane).samples
            if len(samples):
                num_parts = max(num_parts, self._parts_needed(len(samples), int(samples.max())))
        return num_parts

    def counts(self, batches: Sequence[WaveformBatch]) -> dict[str, int]:
        """What a step adds to the metrics: micro-batches that went in parts. Nothing until memory ran out: all
        processes know of that, and have the same metrics."""
        if not self.shortages:
            return {}
        return {"split_micro_batches": sum(self.num_parts(batch) > 1 for batch in batches)}

    def row(self) -> dict[str, int]:
        """What a row of metrics has of it: how often memory ran out in the stage; nothing where it never did."""
        if not self.shortages:
            return {}
        return {"out_of_memory": len(self.shortages)}

    def take(self, batch: WaveformBatch, error: BaseException) -> None:
        """Record a micro-batch that did not fit, and return where the step may be computed anew with it in parts.

        Raises the error where other processes take part, and ConfigError for an utterance that does not fit alone.
        """
        num_parts = self.num_parts(batch)
        num_rows = -(-len(batch.keys) // num_parts)
        if not batch.keys:
            raise error
        samples = int(batch.samples_B.max())
        seconds = samples / self.sampler.sample_rate_hz
        names = ", ".join(batch.keys[:NAMED])
        if len(batch.keys) > NAMED:
            names += f" and {len(batch.keys) - NAMED} more"
        reason = str(error).partition("\n")[0][:300]
        if num_rows <= 1:
            raise ConfigError(
                f"Stage {self.context.name} ran out of memory at step {batch.step} with one utterance at a time (of "
                f"up to {seconds:.1f} s: {names}): {reason}. Lower batches.max_utterance_s below {seconds:.1f}, or "
                "train a smaller model, and run the same command again."
            ) from error

        shortage = Shortage(batch.step, batch.lane, batch.keys, num_rows, samples, self.device)
        self._write(shortage)
        self.shortages.append(shortage)
        self.context.run.append_event(
            "out_of_memory",
            stage=self.context.name,
            step=batch.step,
            lane=batch.lane,
            utterances=batch.keys,
            seconds=seconds,
            parts=self.num_parts(batch),
        )
        logger.warning(
            "step %d: out of memory with %d utterances of up to %.1f s (%s): %s. Micro-batches of this size are "
            "split from now on; a lower batches.seconds spares that.",
            batch.step,
            num_rows,
            seconds,
            names,
            reason,
        )
        if not self.can_redo:
            raise error

    def _parts_needed(self, num_utterances: int, samples: int) -> int:
        num_parts = 1
        while num_parts < num_utterances and self._is_too_large(-(-num_utterances // num_parts), samples):
            num_parts *= 2
        return min(num_parts, num_utterances)

    def _is_too_large(self, num_utterances: int, samples: int) -> bool:
        batches = self.sampler.batches
        rate_hz = self.sampler.sample_rate_hz
        size = cost(batches, num_utterances, samples, rate_hz)
        for shortage in self.shortages:
            if size >= MARGIN * cost(batches, shortage.num_utterances, shortage.samples, rate_hz):
                return True
        return False

    def _write(self, shortage: Shortage) -> None:
        # A file for each process: on a shared disk they would write into each other's lines.
        self.folder.mkdir(parents=True, exist_ok=True)
        with _file_of(self.folder, dist.get_rank()).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(shortage)) + "\n")

    def _read(self) -> list[Shortage]:
        shortages = []
        for path in sorted(self.folder.glob("out-of-memory-*.jsonl")):
            for line in read_lines(path, MAX_RECORD_BYTES):
                try:
                    shortage = Shortage(**parse_json(line))
                    cost(self.sampler.batches, shortage.num_utterances, shortage.samples, 1)
                except (ValueError, TypeError):
                    # The end of a line that a kill cut off: what does not fit will say so again.
                    logger.warning("%s has a line that cannot be read, which is passed over", path)
                    continue
                if shortage.device == self.device:
                    shortages.append(shortage)
        return shortages


def _file_of(folder: Path, rank: int) -> Path:
    return folder / f"out-of-memory-{rank:02d}.jsonl"
