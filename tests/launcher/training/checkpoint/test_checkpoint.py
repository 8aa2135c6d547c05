"""Checkpoints: whole or absent, damaged ones found, and old ones readable for ever."""

import hashlib
import json
import shutil
from pathlib import Path

import processes
import pytest
import torch
from paths import FIXTURES, HELPERS

from launcher.errors import CheckpointError
from launcher.run_folder import StageFolder
from launcher.training.checkpoint import Checkpoint, newest_intact
from launcher.training.checkpoint.layout import FORMAT, manifest_digest

FROZEN = FIXTURES / "checkpoints"
SCRIPT = HELPERS / "states.py"


def everything(checkpoint: Checkpoint) -> dict[tuple[str, str], torch.Tensor]:
    return {(kind, name): checkpoint.whole(kind, name) for name in checkpoint.shapes for kind in checkpoint.kinds(name)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Three steps on two processes with the experts spread, under ZeRO 2."""
    folder = tmp_path_factory.mktemp("trained")
    processes.run([str(SCRIPT), str(folder), "3", "2", "zero2"], 2, folder / "log")
    return folder


def damaged_copy(trained: Path, tmp_path: Path) -> StageFolder:
    """A stage whose checkpoint of step 3 is followed by one of step 4, which the caller damages."""
    folder = tmp_path / "stage"
    shutil.copytree(trained, folder)
    stage = StageFolder(folder)
    shutil.copytree(stage.checkpoint(3), stage.checkpoint(4))
    manifest = stage.checkpoint(4) / "manifest.json"
    content = json.loads(manifest.read_text()) | {"step": 4}
    content.pop("sha256")
    manifest.write_text(json.dumps({"sha256": manifest_digest(content), **content}))
    newest = newest_intact(stage)
    assert newest is not None
    assert newest.step == 4
    return stage


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, Path.unlink])
@pytest.mark.parametrize("part", ["rank-00000.safetensors", "rank-00001.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(trained, tmp_path, caplog, damage, part):
    stage = damaged_copy(trained, tmp_path)
    damage(stage.checkpoint(4) / part)
    found = newest_intact(stage)
    assert found is not None
    assert found.step == 3
    assert "step-00000004" in caplog.text


def test_a_stage_without_an_intact_checkpoint_has_none(trained, tmp_path):
    stage = damaged_copy(trained, tmp_path)
    for step in (3, 4):
        cut_short(stage.checkpoint(step) / "rank-00001.safetensors")
    assert newest_intact(stage) is None


def test_what_a_killed_save_leaves_behind_is_no_checkpoint(trained, tmp_path):
    folder = tmp_path / "stage"
    shutil.copytree(trained, folder)
    stage = StageFolder(folder)
    stage.checkpoint(3).rename(stage.checkpoints / ".step-00000003.tmp")
    assert newest_intact(stage) is None


def test_a_checkpoint_of_another_model_is_refused(trained):
    saved = Checkpoint(StageFolder(trained).checkpoint(3))
    saved.shapes["encoder.blocks.9.attention.output.bias"] = [16]
    with pytest.raises(CheckpointError, match="another model"):
        saved.whole("weight", "encoder.blocks.9.attention.output.bias")


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_frozen_checkpoint_of_every_format_stays_loadable(number):
    folder = FROZEN / f"format-{number}"
    (saved,) = [Checkpoint(path) for path in folder.glob("step-*")]
    hashes = json.loads((folder / "sha256.json").read_text())
    values = everything(saved)
    assert {f"{kind}/{name}" for kind, name in values} == hashes.keys()
    for (kind, name), tensor in values.items():
        assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest() == hashes[f"{kind}/{name}"], (kind, name)


def test_a_frozen_checkpoint_says_where_its_run_goes_on():
    saved = Checkpoint(FROZEN / "format-1" / "step-00000003")
    assert saved.step == 3
    assert saved.trainer == {"window": {"steps": 1, "sums": {"loss": 4.522793769836426}}}
