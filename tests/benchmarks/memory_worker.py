"""One process of the trainings that memory.py measures: `memory_worker.py OUT CASE`, CASE as JSON of `Case`.

Leaves in OUT/rank-RANK.json, in bytes: `tensors`, the most that distinct storages of tensors held at once during steps,
`backward` and `update` the same by part of a step, `framework`, the
resident set before, and `resident`, how far it grew at most.
"""

import gc
import json
import sys
import weakref
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.sampling.sampler import Totals
from launcher.recipe import OptimizerConfig, find_deepspeed_config
from launcher.training import parallel
from launcher.training.expert_parallel import spread_experts
from launcher.training.feature_batch import FeatureBatch
from launcher.training.recognition_loss import RecognitionLoss
from model.costs.activation_memory import MicroBatchSize
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.layers.subsampling import output_length
from model.losses import ObjectiveConfig
from model.moe.router import ExpertsConfig
from model.recognizer import Recognizer, RecognizerConfig

# The engine's traces and the optimizer's moments are there from the second step on.
STEPS = 3
MEL_BINS, VOCABULARY = 80, 500


def _model(width: int, groups: int, layers: int, experts: int, checkpointing: bool = False) -> RecognizerConfig:
    return RecognizerConfig(
        encoder=EncoderConfig(
            layers=layers,
            groups=groups,
            width=width,
            heads=4,
            feedforward_width=4 * width,
            experts=ExpertsConfig(count=experts) if experts else None,
            activation_checkpointing=checkpointing,
        ),
        decoder=DecoderConfig(layers=1, heads=4, feedforward_width=4 * width),
    )


MODELS = {
    "tiny": _model(64, 1, 2, 4),
    "small": _model(192, 1, 2, 4),
    "dense": _model(512, 4, 4, 0),
    "experts": _model(512, 2, 4, 8),
    "experts, layers run again": _model(512, 2, 8, 8, checkpointing=True),
}


@dataclass(frozen=True)
class Case:
    """One training: a model by its name, the ZeRO stage, processes, how experts are spread, micro-batches per step."""

    name: str
    zero: int
    processes: int = 1
    expert_parallel: int = 1
    accumulation: int = 1
    precision: str = "fp32"
    deepspeed: str | None = None  # a file of its own

    @property
    def model(self) -> RecognizerConfig:
        return MODELS[self.name]

    @property
    def size(self) -> MicroBatchSize:
        return MicroBatchSize(2, 200 if self.name in ("tiny", "small") else 800, 20)

    @property
    def deepspeed_file(self) -> Path:
        return find_deepspeed_config(self.deepspeed or f"zero{self.zero}")

    @property
    def lanes(self) -> int:
        return self.processes * self.accumulation

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Case":
        return cls(**json.loads(text))


class TensorBytes(TorchDispatchMode):
    """Follows the bytes of every storage that an operation hands out, until the storage is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self._add(leaf.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, size_bytes: int) -> None:
        self.now -= size_bytes

    def restart(self) -> int:
        """The peak since the last restart."""
        peak, self.peak = self.peak, self.now
        return peak


def micro_batch(case: Case) -> FeatureBatch:
    size = case.size
    features = torch.randn(size.utterances, size.frames, MEL_BINS)
    tokens = torch.randint(4, VOCABULARY, (size.utterances, size.tokens))
    count = torch.ones(size.utterances, dtype=torch.int64)
    return FeatureBatch(features, count * size.frames, tokens, count * size.tokens)


def totals(case: Case) -> Totals:
    utterances = case.lanes * case.size.utterances
    frames = output_length(case.size.frames, case.model.encoder.subsampling.factor)
    return Totals(utterances, utterances * case.size.tokens, utterances * frames)


def train_step(engine: parallel.Engine, task: RecognitionLoss, case: Case, tracked: TensorBytes) -> dict[str, int]:
    """One update; the peaks of its two parts."""
    tracked.restart()
    for _ in range(case.accumulation - 1):
        _lane(engine, task, case)
        engine.step()
    _lane(engine, task, case)
    backward = tracked.restart()
    parallel.update(engine)
    return {"backward": backward, "update": tracked.restart()}


def _lane(engine: parallel.Engine, task: RecognitionLoss, case: Case) -> None:
    parts, _ = task(engine, micro_batch(case), totals(case), 0.0)
    engine.backward(torch.stack(list(parts.values())).sum() * case.lanes)


def resident_bytes(most: bool = False) -> int:
    """Of this process, now or at most until now."""
    if not most:
        return psutil.Process().memory_info().rss
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) << 10


def train(case: Case, tracked: TensorBytes) -> dict[str, int]:
    """The peaks over all steps, and what is held between them."""
    torch.manual_seed(1)
    recognizer = Recognizer(case.model, MEL_BINS, VOCABULARY)
    spread_experts(recognizer, case.expert_parallel, dist.get_rank())
    engine = parallel.build_engine(
        recognizer, OptimizerConfig(), case.deepspeed_file, case.accumulation, case.precision
    )
    task = RecognitionLoss(ObjectiveConfig(), case.model.encoder)
    steps = [train_step(engine, task, case, tracked) for _ in range(STEPS)]
    engine.destroy()
    found = {part: max(step[part] for step in steps) for part in ("backward", "update")}
    return {"tensors": max(found.values()), **found}


def main(out: Path, case: Case) -> None:
    torch.set_num_threads(1)
    parallel.start_processes(120)
    # What libraries load and allocate at the first step is no part of a model's memory.
    train(replace(case, name="tiny"), TensorBytes())
    gc.collect()
    before = resident_bytes()
    with TensorBytes() as tracked:
        found = train(case, tracked)
    found["framework"] = before
    found["resident"] = resident_bytes(most=True) - before
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Case.parse(sys.argv[2]))
