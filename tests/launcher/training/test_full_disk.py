"""A disk that is full: the previous checkpoint stays the newest intact one, and training goes on."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import pytest
import torch
import torch.distributed as dist
from saves import state
from small_runs import STAGE

from launcher.recipe import CheckpointConfig
from launcher.run_folder import StageFolder, read_json
from launcher.tracking import read_metrics
from launcher.training.checkpoint import Saver, newest_intact, saving
from launcher.training.checkpoint.retention import SPACE_MARGIN_BYTES

pytestmark = pytest.mark.fault


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


def test_a_disk_that_fills_while_a_save_is_written(mount, tmp_path, monkeypatch, caplog):
    mount(tmp_path, 4 << 20)
    # Another program takes the space after it was found to be there.
    monkeypatch.setattr(saving, "has_room", lambda *arguments: True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        stage = StageFolder(tmp_path / "stage")
        saver = Saver(stage, CheckpointConfig(), torch.device("cpu"))
        size = (1 << 20) // 8  # 1 MB with its moment
        assert saver.start(state(1, size=size))
        assert saver.finish()
        (tmp_path / "other").write_bytes(bytes(5 << 19))
        assert saver.start(state(2, size=size))
        assert not saver.finish()
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


def test_a_training_on_a_full_disk_trains_on_and_goes_on_from_its_checkpoint_once_there_is_room(mount, make_run):
    run = make_run("full", (f"stages.{STAGE}.steps=8", f"stages.{STAGE}.checkpoint.every_steps=2"))
    stage = run.stage(STAGE)
    arguments, log = ["-m", "launcher.worker", str(run.path), STAGE], run.path / "log"
    mount(stage.checkpoints, SPACE_MARGIN_BYTES + 700_000)
    started = processes.start(arguments, 2, log)
    assert [process.wait(90) for process in started] == [4, 4], log.read_text()
    newest = newest_intact(stage)
    assert newest is not None
    assert newest.step == 2
    rows = list(read_metrics(stage.metrics_file))
    assert max(row["step"] for row in rows if "loss" in row) == 8
    assert [row["step"] for row in rows if "save_stall_s" in row] == [2, 4, 6, 8]
    words = stage.rank_log(0).read_text()
    assert words.count("is not written") == 3
    assert "Make room there and run the same command again" in words
    mount(stage.checkpoints, 16 << 20)
    processes.run(arguments, 2, log)
    assert read_json(stage.done_file) == {"status": "done", "step": 8}
    assert "resumed from" in stage.rank_log(0).read_text()
