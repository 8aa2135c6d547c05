"""Disks that are full and files that are damaged: the newest intact checkpoint is used, and training goes on."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import Victim, assert_same_weights
from saves import state

from launcher.recipe import CheckpointConfig
from launcher.run_folder import StageFolder
from launcher.tracking import read_metrics
from launcher.training.checkpoint import Saver, newest_intact, saving
from launcher.training.checkpoint.retention import SPACE_MARGIN_BYTES

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]


@pytest.fixture
def mount() -> Iterator[Callable[[Path, int], None]]:
    """Gives a folder a small disk of its own, or the one it has another size."""
    mounted: list[Path] = []

    def mount_at(folder: Path, num_bytes: int) -> None:
        options = f"size={num_bytes},remount" if folder in mounted else f"size={num_bytes}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a tmpfs cannot be mounted here: {error}")
        mounted.append(folder)

    yield mount_at
    for folder in set(mounted):
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("missing_share", [1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.02, 0.004])
def test_a_disk_that_fills_at_any_write_of_a_save(mount, tmp_path, monkeypatch, caplog, record, missing_share):
    """Another program takes the space after it was found to be there, all but a share of what the save needs."""
    mount(tmp_path, 8 << 20)
    monkeypatch.setattr(saving, "has_room", lambda *arguments: True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        stage = StageFolder(tmp_path / "stage")
        saver = Saver(stage, CheckpointConfig(), torch.device("cpu"))
        size = (1 << 20) // 8  # 1 MB with its moment
        free_bytes = shutil.disk_usage(tmp_path).free
        assert saver.start(state(1, size=size))
        assert saver.finish()
        need_bytes = free_bytes - shutil.disk_usage(tmp_path).free
        room_bytes = int((1 - missing_share) * need_bytes)
        (tmp_path / "other").write_bytes(bytes(shutil.disk_usage(tmp_path).free - room_bytes))
        at = time.monotonic()
        assert saver.start(state(2, size=size))
        assert not saver.finish()
        noticed_s = time.monotonic() - at
        assert "checkpoint of step 2 was not written" in caplog.text
        newest = newest_intact(stage)
        assert newest is not None
        assert newest.step == 1
        assert sorted(entry.name for entry in stage.checkpoints.iterdir()) == ["latest", "step-00000001"]
        (tmp_path / "other").unlink()
        assert saver.start(state(3, size=size))
        assert saver.finish()
        assert stage.checkpoint_steps() == [1, 3]
    finally:
        dist.destroy_process_group()
    record("a disk that fills during a save", noticed_s, 0, True)


def test_a_training_on_a_full_disk_trains_on_and_goes_on_from_its_checkpoint_once_there_is_room(
    mount, make_victim, undisturbed, record
):
    victim = make_victim()
    stage = victim.stage
    victim.start()
    assert victim.wait(lambda: bool(victim.events("processes_started")))
    mount(stage.checkpoints, SPACE_MARGIN_BYTES + 700_000)
    victim.finish(expected=4)
    (newest,) = stage.checkpoint_steps()
    rows = list(read_metrics(stage.metrics_file))
    last = max(row["step"] for row in rows if "loss" in row)
    assert "is not written" in stage.rank_log(0).read_text()
    assert "Make room there and run the same command again" in stage.rank_log(0).read_text()
    mount(stage.checkpoints, 16 << 20)
    victim.start()
    victim.finish()
    assert_same_weights(victim, undisturbed)
    record("a disk without room for a second checkpoint", None, last - newest, True)


@pytest.fixture(scope="session")
def interrupted(make_victim) -> Victim:
    victim = make_victim()
    victim.interrupt(step=6)
    return victim


def checkpoint_files() -> list[str]:
    return ["manifest.json", *(f"rank-{rank:05d}.safetensors" for rank in range(2))]


@pytest.mark.parametrize("name", checkpoint_files())
@pytest.mark.parametrize("damage", ["a flipped byte", "a file cut short", "a missing file"])
def test_a_damaged_file_of_a_checkpoint(make_victim, interrupted, undisturbed, record, name, damage):
    victim = make_victim()
    shutil.copytree(interrupted.run.path, victim.run.path)
    newest = max(victim.stage.checkpoint_steps())
    file = victim.stage.checkpoint(newest) / name
    assert {path.name for path in file.parent.iterdir()} >= set(checkpoint_files())
    content = bytearray(file.read_bytes())
    if damage == "a missing file":
        file.unlink()
    elif damage == "a file cut short":
        file.write_bytes(content[: len(content) * 2 // 3])
    else:
        content[len(content) * 2 // 3] ^= 4
        file.write_bytes(content)
    before = sorted(victim.stage.checkpoint_steps())[-2]
    victim.start()
    victim.finish()
    log = victim.stage.rank_log(0).read_text()
    assert f"{newest:08d}" in log.split("resumed from")[0], log
    assert name.removesuffix(".json") in log  # of a manifest it says what is wrong with it
    assert_same_weights(victim, undisturbed)
    record(f"{damage} in the newest checkpoint", None, newest - before, True)
