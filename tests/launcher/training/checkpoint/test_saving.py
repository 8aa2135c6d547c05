"""Saves: beside training, only with room, all processes or none, and which checkpoints stay afterwards."""

import logging
import shutil
import threading
from collections import namedtuple

import processes
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from paths import HELPERS
from saves import SIZE, cannot_write, state

from launcher.recipe import CheckpointConfig
from launcher.recipe.retention import retained
from launcher.run_folder import StageFolder
from launcher.training.checkpoint import Saver, newest_intact, saving

Usage = namedtuple("Usage", "total used free")
settings = st.builds(
    CheckpointConfig,
    keep_last=st.integers(1, 4),
    keep_best=st.integers(1, 4),
    keep_every=st.none() | st.integers(1, 30),
)
error_rates = st.dictionaries(st.integers(1, 100), st.none() | st.floats(0, 2), min_size=1)


@pytest.fixture(scope="module", autouse=True)
def alone():
    """This process is a process group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def stage(tmp_path) -> StageFolder:
    return StageFolder(tmp_path / "stage")


def open_saver(stage: StageFolder, **config) -> Saver:
    return Saver(stage, CheckpointConfig(**config), torch.device("cpu"))


def save(saver: Saver, step: int, validation_cer: float | None = None) -> bool:
    return saver.start(state(step, validation_cer=validation_cer)) and saver.finish()


def make_step(saver: Saver) -> None:
    """What a step of a training does for a save under way."""
    progress = saver.progress()
    saver.settle(progress["save/writing"], progress["save/failed"])


@pytest.fixture
def disk(monkeypatch) -> threading.Event:
    """A disk that takes nothing until the event is set."""
    ready, write = threading.Event(), saving.save_tensors

    def slow(tensors, path) -> None:
        assert ready.wait(20)
        write(tensors, path)

    monkeypatch.setattr(saving, "save_tensors", slow)
    return ready


def test_a_save_holds_what_was_when_it_began(stage, disk):
    saver, before = open_saver(stage), state(7)
    before.trainer["window"] = {"sums": {"loss": 1.0}}
    saver.start(before)
    before.parts[0].values.fill_(0.0)
    before.parts[0].state["exp_avg"].fill_(0.0)
    before.buffers["bias"].fill_(0.0)
    before.trainer["window"]["sums"]["loss"] = 2.0
    disk.set()
    assert saver.finish()
    saved = newest_intact(stage)
    assert saved is not None
    assert saved.whole("weight", "weight").tolist() == [7.0] * SIZE
    assert saved.whole("exp_avg", "weight").tolist() == [-7.0] * SIZE
    assert saved.whole("buffer", "bias").tolist() == [1.0] * 2
    assert saved.trainer == {"window": {"sums": {"loss": 1.0}}}


def test_training_makes_steps_while_a_save_is_written_and_a_later_step_puts_it_in_place(stage, disk):
    saver = open_saver(stage)
    saver.start(state(1))
    for _ in range(3):
        make_step(saver)
    assert stage.checkpoint_steps() == []
    disk.set()
    while not stage.checkpoint_steps():
        make_step(saver)
    assert saver.finish()
    assert (stage.checkpoints / "latest").read_text() == "step-00000001\n"


def test_a_second_save_waits_for_the_first(stage, disk):
    saver = open_saver(stage)
    saver.start(state(1))
    threading.Timer(0.2, disk.set).start()
    saver.start(state(2))
    assert stage.checkpoint_steps() == [1]
    assert saver.finish()
    assert stage.checkpoint_steps() == [1, 2]


def test_a_save_that_fails_leaves_the_checkpoint_before_it_and_the_next_one_succeeds(stage, monkeypatch, caplog):
    saver = open_saver(stage)
    assert save(saver, 1)
    with monkeypatch.context() as full:
        full.setattr(saving, "save_tensors", cannot_write)
        assert not save(saver, 2)
    assert "checkpoint of step 2 was not written: [Errno 28] No space left" in caplog.text
    assert sorted(entry.name for entry in stage.checkpoints.iterdir()) == ["latest", "step-00000001"]
    assert save(saver, 3)
    assert stage.checkpoint_steps() == [1, 3]


def test_a_save_that_one_process_cannot_write_is_put_in_place_by_none(stage, tmp_path):
    script = HELPERS / "saves.py"
    processes.run([str(script), str(stage.path)], 2, tmp_path / "log")
    assert sorted(entry.name for entry in stage.checkpoints.iterdir()) == ["latest", "step-00000001"]
    saved = newest_intact(stage)
    assert saved is not None
    assert saved.whole("weight", "weight").tolist() == [1.0] * SIZE


def test_a_checkpoint_without_the_part_of_a_rank_is_none_whatever_a_listing_shows(stage, monkeypatch, caplog):
    saver = open_saver(stage)
    assert save(saver, 1)
    with monkeypatch.context() as two_ranks:
        two_ranks.setattr(dist, "get_world_size", lambda *group: 2)  # the second one's part does not show up
        assert not save(saver, 2)
    assert "checkpoint of step 2 was not written" in caplog.text
    assert "rank-00001.json" in caplog.text
    assert sorted(entry.name for entry in stage.checkpoints.iterdir()) == ["latest", "step-00000001"]


def test_the_part_of_no_rank_is_no_part_of_a_checkpoint(stage, monkeypatch):
    def write_beside(folder, rank, *arguments):
        (folder / "rank-00005.json").write_text('{"file": {"name": "rank-00005.safetensors"}, "pieces": []}')
        return write_part(folder, rank, *arguments)

    write_part = saving._write_part
    monkeypatch.setattr(saving, "_write_part", write_beside)
    assert save(open_saver(stage), 1)
    assert newest_intact(stage) is not None


def test_without_room_a_save_is_not_attempted_and_the_log_says_how_much_is_missing(stage, monkeypatch, caplog):
    saver, written = open_saver(stage), saving.save_tensors
    assert save(saver, 1)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9 - 1_000_000, 1_000_000))
        full.setattr(saving, "save_tensors", lambda *arguments: pytest.fail("a save was attempted"))
        assert not save(saver, 2)
    assert saving.save_tensors is written
    assert "1.00 MB are free" in caplog.text
    assert "needs 1.05 MB" in caplog.text
    assert str(stage.checkpoints) in caplog.text
    assert save(saver, 3)
    assert stage.checkpoint_steps() == [1, 3]


def test_what_a_killed_save_left_behind_is_cleared_by_the_next(stage):
    (stage.checkpoints / ".step-00000001.tmp").mkdir(parents=True)
    (stage.checkpoints / ".step-00000001.tmp" / "rank-00007.json").write_text("{}")
    assert save(open_saver(stage), 2)
    assert sorted(entry.name for entry in stage.checkpoints.iterdir()) == ["latest", "step-00000002"]


@given(error_rates, settings, st.data())
def test_the_newest_and_the_best_checkpoint_are_never_removed(validation_cer, config, data):
    newest = data.draw(st.sampled_from(sorted(validation_cer)))
    kept = retained(validation_cer, newest, config)
    assert newest in kept
    scores = {step: cer for step, cer in validation_cer.items() if step <= newest and cer is not None}
    if scores:
        assert min(scores.values()) in {scores.get(step) for step in kept}


@given(error_rates, settings)
def test_a_checkpoint_stays_exactly_when_a_setting_keeps_it(validation_cer, config):
    steps = sorted(validation_cer)
    kept = retained(validation_cer, steps[-1], config)
    for step, cer in validation_cer.items():
        num_newer = sum(other > step for other in steps)
        better = [
            other
            for other, other_cer in validation_cer.items()
            if cer is not None and other_cer is not None and (other_cer, -other) < (cer, -step)
        ]
        reasons = (
            num_newer < config.keep_last,
            cer is not None and len(better) < config.keep_best,
            config.keep_every is not None and step % config.keep_every == 0,
        )
        assert (step in kept) == any(reasons)


def test_the_last_the_best_and_every_so_manieth_checkpoint_stay_on_the_disk(stage):
    saver = open_saver(stage, keep_last=2, keep_best=1, keep_every=50)
    rates = {10: None, 20: 0.5, 30: 0.3, 40: 0.4, 50: 0.6, 60: None, 70: 0.4, 80: 0.4}
    for step, validation_cer in rates.items():
        assert save(saver, step, validation_cer)
    assert stage.checkpoint_steps() == [30, 50, 70, 80]


def test_a_damaged_checkpoint_of_a_later_step_does_not_push_out_the_one_just_written(stage, caplog):
    saver = open_saver(stage, keep_last=1)
    assert save(saver, 9)
    (stage.checkpoint(9) / "rank-00000.safetensors").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert newest_intact(stage) is None
    assert save(saver, 5)
    newest = newest_intact(stage)
    assert newest is not None
    assert newest.step == 5
    assert save(saver, 9)
    assert stage.checkpoint_steps() == [9]
