"""A process that is slow and healthy is never ended: each section is starved, by a clock that its parts move on.

Every part takes most of the longest silence that its section is allowed, so that any two of them without a sign of life
between would be too many. The watchdog is asked after each.
"""

import dataclasses
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data import loader as loader_module
from data.errors import DataError
from data.loader import Loader, WaveformBatch
from data.remote.settings import StorageConfig
from data.sampling.sampler import BatchSpec
from data.shards.reader import Example
from launcher.inference import evaluation
from launcher.inference import search as search_module
from launcher.processes import heartbeat as heartbeat_module
from launcher.processes.heartbeat import Heartbeat
from launcher.processes.stop_request import StopRequest
from launcher.processes.watchdog import Deadlines, Watchdog
from launcher.recipe.distillation import UnitsDistillConfig
from launcher.recipe.search import GreedyConfig, PrefixBeamConfig
from launcher.run_folder import RunFolder
from launcher.training import setup, trainer, validation
from launcher.training.checkpoint.reading import Checkpoint
from launcher.training.distillation import cluster_targets
from launcher.training.distillation import setup as distillation_setup
from launcher.training.inputs import Inputs
from launcher.training.trainer import Trainer
from model.search import prefix_beam

DEADLINES = Deadlines()
SHARE = 0.7


def fake(**parts: Any) -> Any:
    """Something with these attributes, in the place of what would take a training to make."""
    return SimpleNamespace(**parts)


class Supervised:
    """This process as a rank, and the watchdog that looks at it."""

    def __init__(self, stage, section: str):
        self.now = 1000.0
        self.parts = 0
        self.stage = stage
        self.section = section
        self.heartbeat = Heartbeat(stage, 0)
        self.watchdog = Watchdog(stage, 1, DEADLINES)

    def part(self, *arguments, **options) -> None:
        """Take most of a deadline, and be looked at."""
        self.parts += 1
        self.now += SHARE * DEADLINES.silence_s(self.section)
        failure = self.watchdog.check()
        assert failure is None, failure.reason
        (heartbeat,) = self.stage.read_heartbeats()
        assert heartbeat["section"] == self.section

    def giving(self, value):
        """Return a function that takes a part's time and gives a value."""

        def slow(*arguments, **options):
            self.part()
            return value

        return slow


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    def begin(section: str) -> Supervised:
        supervised = Supervised(RunFolder(tmp_path).stage("student"), section)
        monkeypatch.setattr(heartbeat_module.time, "monotonic", lambda: supervised.now)
        supervised.watchdog = Watchdog(supervised.stage, 1, DEADLINES)
        return supervised

    return begin


def waveform_batch(step: int, lane: int) -> WaveformBatch:
    return WaveformBatch(
        step=step,
        lane=lane,
        keys=["a"],
        waveforms_BS=torch.zeros(1, 8),
        samples_B=torch.tensor([8]),
        tokens_BU=torch.zeros(1, 1, dtype=torch.int64),
        token_lengths_B=torch.tensor([1]),
        texts=["a"],
        quarantined=[],
    )


class Batches:
    """Inputs whose loader gives micro-batches of two lanes at once."""

    def __init__(self):
        self.sampler = fake(steps_per_epoch=3, batches=fake(lanes=2))
        self.device = torch.device("cpu")
        self.loader = fake()

    def steps(self, start, stop):
        for step in range(start, stop):
            yield [waveform_batch(step, lane) for lane in range(2)]

    def totals(self, step):
        return None

    def sum_totals(self, steps):
        return None

    def micro_batch(self, batch):
        return batch


def starve_start(supervised, monkeypatch):
    slow = supervised.giving
    context = fake(
        batches=fake(lanes_of=lambda rank, world: (0, 1)),
        augment=None,
        has_split=lambda split: True,
        expert_parallel=1,
        stage=fake(optimizer=None, freeze=(), average=None),
        deepspeed_file=None,
        recipe=fake(cluster=fake(precision="fp32")),
        folder=supervised.stage,
    )
    monkeypatch.setattr(setup.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(setup.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(setup, "open_inputs", slow(Batches()))
    monkeypatch.setattr(setup, "_build_model_and_loss", slow((nn.Linear(1, 1), None, None)))
    monkeypatch.setattr(setup, "_training_flops_per_audio_s", lambda *arguments: 1.0)
    monkeypatch.setattr(setup, "spread_experts", slow(None))
    monkeypatch.setattr(setup.parallel, "build_engine", slow(None))
    monkeypatch.setattr(setup, "agreed_checkpoint", slow(None))
    monkeypatch.setattr(setup, "_open_tracker", slow(None))
    monkeypatch.setattr(setup, "TrainingLog", slow(None))
    monkeypatch.setattr(setup.parallel, "can_discard_gradients", lambda engine: True)
    monkeypatch.setattr(setup, "MemoryLimit", lambda *arguments, **parts: None)
    monkeypatch.setattr(setup, "Trainer", lambda **parts: parts)
    supervised.heartbeat.beat(0, "start")
    setup.build_trainer(context, supervised.heartbeat, torch.device("cpu"), StopRequest())


def starve_restore(supervised, monkeypatch):
    """The files of a large checkpoint are compared with their digests one by one."""
    checkpoint = object.__new__(Checkpoint)
    checkpoint.folder = supervised.stage.checkpoint(3)
    checkpoint.folder.mkdir(parents=True)
    files = []
    for rank in range(4):
        (checkpoint.folder / f"rank-{rank}").touch()
        files.append({"name": f"rank-{rank}", "bytes": 0, "sha256": "same"})
    monkeypatch.setattr("launcher.training.checkpoint.reading.file_sha256", supervised.giving("same"))
    supervised.heartbeat.beat(3, "restore")
    checkpoint._verify(files, supervised.heartbeat.tick)


class OneUtterancePerLane:
    def micro_batch(self, step: int, lane: int) -> BatchSpec:
        return BatchSpec(step, 0, lane, np.array([lane]), np.ones(1, np.float32), np.array([8]))


class SlowFuture(Future):
    """A read that is done after some looks at it."""

    looks = 0

    def done(self) -> bool:
        self.looks += 1
        return self.looks > 6


def slow_loader(monkeypatch, wait, on_wait, patience_s: float) -> Loader:
    waveform = np.zeros(8, np.float32)
    example = Example(key="a", waveform=waveform, text="a", speaker="", language="")
    reader = fake(read=lambda utterance: example, shard=lambda utterance: "train/shard-000003.tar")
    sampler: Any = OneUtterancePerLane()
    loader = Loader(sampler, reader, None, (0,), 0, patience_s=patience_s, on_wait=on_wait)

    def submit(executor, function, *arguments):
        future = SlowFuture()
        future.set_result(function(*arguments))
        return future

    monkeypatch.setattr(loader_module.Inline, "submit", submit)
    monkeypatch.setattr(loader_module.futures, "wait", wait)
    return loader


def starve_data(supervised, monkeypatch):
    training = fake(heartbeat=supervised.heartbeat, step=5)
    loader = slow_loader(monkeypatch, supervised.part, lambda: Trainer._report_wait(training), patience_s=1e6)
    supervised.heartbeat.beat(5, "data")
    assert len(list(loader.steps(5, 7))) == 2


def starve_step(supervised, monkeypatch):
    heartbeat = supervised.heartbeat
    encoder = fake(routings=[], moments=[])
    training = fake(
        heartbeat=heartbeat,
        step=5,
        inputs=Batches(),
        engine=fake(train=lambda: None, step=lambda: None, backward=supervised.part),
        stage=fake(
            optimizer=None,
            steps=100,
            log_every=1000,
            log_layers=False,
            model=fake(encoder=fake(routing_names=[])),
        ),
        context=fake(seed=1),
        stage_loss=supervised.giving(({"ctc": torch.ones(())}, fake(encoder=encoder))),
        validator=fake(step_metrics=lambda output, totals: {}),
        agree=supervised.giving(fake(scalars={"stop": 0})),
        nonfinite=fake(update_applied=lambda: None),
        accumulator=fake(add=lambda *arguments, **values: None, steps=0),
        _update_buffers=lambda reduced: None,
        _row_due=lambda step: False,
        average=None,
        memory=fake(num_parts=lambda batch: 1),
    )
    training._run_lanes = lambda *arguments: Trainer._run_lanes(training, *arguments)
    training.forward_backward = lambda *arguments: Trainer.forward_backward(training, *arguments)
    training._run_part = lambda *arguments: Trainer._run_part(training, *arguments)
    monkeypatch.setattr(trainer.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(trainer, "learning_rate", lambda *arguments: 0.1)
    monkeypatch.setattr(trainer, "routing_metrics", lambda *arguments: {})
    monkeypatch.setattr(trainer, "norm_metrics", lambda *arguments: {})
    for name in ("set_learning_rate", "gradient_norm"):
        monkeypatch.setattr(trainer.parallel, name, lambda *arguments: 0.0)
    monkeypatch.setattr(trainer.parallel, "update", supervised.giving(True))
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: supervised.now)
    (batches,) = training.inputs.steps(5, 6)
    Trainer.train_step(training, batches, 0.0)


def starve_validation(supervised, monkeypatch):
    monkeypatch.setattr(validation.dist, "all_reduce", supervised.part)
    validator = fake(num_sums=1, sums=supervised.giving([1.0]), metrics=lambda sums: {"validation/cer": sums[0]})
    stage_loss = supervised.giving(({"ctc": torch.ones(())}, None))
    engine = fake(eval=lambda: None)
    inputs: Any = Batches()
    validation.validate(engine, stage_loss, inputs, validator, supervised.heartbeat, step=8)


def starve_save(supervised, monkeypatch):
    training = fake(
        heartbeat=supervised.heartbeat,
        step=8,
        engine=None,
        accumulator=None,
        nonfinite=None,
        average=None,
        keep=None,
        inputs=fake(loader=fake(tokenizer=None)),
        saver=fake(start=supervised.giving(True), finish=supervised.giving(True)),
        log=fake(row=lambda *arguments, **values: None),
    )
    monkeypatch.setattr(trainer, "capture_state", lambda *arguments: None)
    Trainer.save(training, None, last=True)


def units_stage_loss(**units):
    config = fake(units=UnitsDistillConfig(weight=1.0, count=2, **units))
    terms = fake(name="wise", terms={"units"}, units_layer=0, teacher=None, centroids_CD=None)
    return fake(config=config, teachers=[terms], autocast=False)


@dataclasses.dataclass
class FewInputs(Inputs):
    def steps(self, start, stop):
        return Batches().steps(start, stop)

    def micro_batch(self, batch) -> Any:
        return batch


def few_inputs() -> FewInputs:
    features: Any = None
    sampler: Any = fake(batches=fake(lanes=2))
    reader: Any = None
    loader = Loader(sampler, reader, None, (0, 1), 0)
    return FewInputs(sampler, loader, features, None, 1, torch.device("cpu"))


def teacher_output(batch: WaveformBatch) -> Any:
    generator = torch.Generator().manual_seed(10 * batch.step + batch.lane)
    states_BSD = torch.randn(1, 5, 3, generator=generator)
    return fake(layers=[states_BSD], lengths_B=torch.tensor([5]))


def starve_units(supervised, monkeypatch):
    def run_teacher(teacher, batch, autocast):
        supervised.part()
        return teacher_output(batch)

    nearest_units = cluster_targets.nearest_units

    def slow_nearest_units(states, centroids_CD):
        supervised.part()
        return nearest_units(states, centroids_CD)

    monkeypatch.setattr(distillation_setup.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(distillation_setup, "broadcast_tensor", lambda tensor: tensor)
    monkeypatch.setattr(distillation_setup, "run_teacher", run_teacher)
    monkeypatch.setattr(cluster_targets, "nearest_units", slow_nearest_units)
    supervised.heartbeat.beat(0, "start")
    distillation_setup.make_cluster_targets(
        units_stage_loss(steps=3), supervised.stage, few_inputs(), 1, supervised.heartbeat
    )


class SlowModel:
    """A finished model that loads, searches and answers slowly."""

    device = torch.device("cpu")
    features = fake(config=fake(sample_rate_hz=8))
    recognizer = None
    search = fake(config=PrefixBeamConfig(kind="prefix_beam"))

    def __init__(self, supervised):
        self._supervised = supervised
        self._on_progress = supervised.heartbeat.tick

    def report_to(self, on_progress):
        self._on_progress = on_progress

    def recognise(self, waveforms):
        self._supervised.part()
        self._on_progress()
        self._supervised.part()
        return ["a"] * len(waveforms)


def starve_evaluation(supervised, monkeypatch):
    monkeypatch.setattr(evaluation.FinishedModel, "load", supervised.giving(SlowModel(supervised)))
    index = fake(text_length=np.ones(4))
    example = Example(key="a", waveform=np.zeros(8, np.float32), text="a", speaker="", language="")
    reader = fake(index=index, read=supervised.giving(example), connections=0)
    monkeypatch.setattr(evaluation, "read_index", lambda folder, max_damaged: index)
    monkeypatch.setattr(evaluation, "ShardReader", lambda index, storage: reader)
    monkeypatch.setattr(evaluation, "_batches", lambda reader, sample_rate_hz: [[0, 1], [2, 3]])
    operations = fake(encoder=1.0, forward=1.0)
    monkeypatch.setattr(evaluation, "operations_per_second", lambda *arguments: operations)
    monkeypatch.setattr(evaluation, "count_parameters", lambda model: fake(as_dict=dict))
    context = fake(
        recipe=fake(
            cluster=fake(storage=StorageConfig()),
            present_folders=lambda run, split: {"": supervised.stage.path},
        ),
        stage=fake(device="cpu", models=["student", "teacher"], split="test", search=GreedyConfig()),
        run=fake(stage=lambda name: supervised.stage),
        folder=supervised.stage,
        split_folder=lambda split: supervised.stage.path,
    )
    evaluation.evaluate(context, supervised.heartbeat)


def starve_decoding(supervised, monkeypatch):
    """One long recording, whose search takes many deadlines."""
    advance = search_module.PrefixBeamSearch.advance

    def slow_advance(search, logits_BSV, lengths_B):
        supervised.part()
        advance(search, logits_BSV, lengths_B)

    monkeypatch.setattr(search_module.PrefixBeamSearch, "advance", slow_advance)
    monkeypatch.setattr(search_module, "FRAMES_AT_ONCE", 3)
    search = object.__new__(search_module.Search)
    search.fusion = None
    search.on_progress = supervised.heartbeat.tick
    supervised.heartbeat.beat(0, "evaluate")
    config = PrefixBeamConfig(kind="prefix_beam", beam=2)
    generator = torch.Generator().manual_seed(3)
    logits_BSV = torch.randn(2, 20, 5, generator=generator)
    lengths_B = torch.tensor([20, 7])
    in_pieces = search._prefix_beam(logits_BSV, lengths_B, config, n_best=2)
    monkeypatch.setattr(search_module.PrefixBeamSearch, "advance", advance)
    assert in_pieces == prefix_beam(logits_BSV, lengths_B, 2, config.candidates, 2)


@pytest.mark.parametrize(
    ("section", "starve"),
    [
        ("start", starve_start),
        ("restore", starve_restore),
        ("data", starve_data),
        ("train", starve_step),
        ("validate", starve_validation),
        ("save", starve_save),
        ("units", starve_units),
        ("evaluate", starve_evaluation),
        ("evaluate", starve_decoding),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_slow_process_reports_often_enough_to_be_left_alone(supervise, monkeypatch, section, starve):
    supervised = supervise(section)
    starve(supervised, monkeypatch)
    # So long that one sign of life would not have been enough.
    assert supervised.parts >= 2


@pytest.mark.parametrize("section", ["start", "units", "restore", "data", "train", "validate", "save", "evaluate"])
def test_a_process_that_hangs_in_any_section_is_named_with_it(supervise, section):
    supervised = supervise(section)
    supervised.heartbeat.beat(4, section)
    assert supervised.watchdog.check() is None
    supervised.now += 1.1 * DEADLINES.silence_s(section)
    failure = supervised.watchdog.check()
    assert failure
    assert failure.rank == 0
    assert f"at step 4, in {section}" in failure.reason


def test_a_shard_that_never_answers_is_named_by_the_loader_before_the_watchdog_speaks(supervise, monkeypatch):
    supervised = supervise("data")
    monkeypatch.setattr(SlowFuture, "done", lambda future: False)
    training = fake(heartbeat=supervised.heartbeat, step=5)
    loader = slow_loader(monkeypatch, supervised.part, lambda: Trainer._report_wait(training), patience_s=600.0)
    supervised.heartbeat.beat(5, "data")
    with pytest.raises(DataError, match=r"train/shard-000003\.tar did not arrive within 600 s"):
        next(loader.steps(5, 6))
    assert supervised.parts * SHARE * DEADLINES.stall_s > 600.0
