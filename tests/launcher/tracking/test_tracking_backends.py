"""What reaches Weights & Biases and TensorBoard, seen in the files that the real libraries write."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from trackers import _no_settings_from_outside, open_tracker  # noqa: F401  a fixture for all tests here
from wandb_records import artifacts, stage_records

from launcher.errors import ConfigError
from launcher.tracking import Artifact, Sound, Table, Tracker, TrackingConfig, WandbConfig, check_tracking

OFFLINE = TrackingConfig(wandb=WandbConfig(mode="offline"))
TENSORBOARD = TrackingConfig(wandb=WandbConfig(mode="disabled"), tensorboard=True)


def row(step: int) -> dict:
    return {"step": step, "loss": 3.0 / step, "experts/layer-00/load": [0.1, 0.9], "time": 1.8e9}


def sound() -> Sound:
    flac = io.BytesIO()
    soundfile.write(flac, np.zeros(1600, np.float32), 16000, format="FLAC")
    return Sound(flac.getvalue(), 16000)


def tell_everything(tracker: Tracker) -> None:
    tracker.artifacts(lambda: [Artifact("mini-tokenizer", "tokenizer", "ab12", {"pieces": 30})], used=True)
    for step in (1, 2, 3):
        tracker.log(row(step))
    tracker.log({"step": 3, "validation/loss": 2.0, "time": 1.8e9})
    tracker.event({"event": "loss_spike", "stage": "teacher", "step": 3, "loss": 9.0, "usual": 3.0})
    tracker.event({"event": "training_ended", "stage": "teacher", "step": 3})
    tracker.table(lambda: Table("examples/teacher", ("key", "audio", "reference"), [["a", sound(), "при|вет"]]))
    tracker.table(lambda: 1 / 0)
    tracker.summarize({"goodput/useful": 0.8})
    tracker.artifacts(lambda: [Artifact("mini-teacher-model", "model", "cd34", {"layers": 2})], used=False)
    tracker.log(row(4))
    tracker.close(30)


def test_wandb_records_rows_images_alerts_tables_and_lineage_without_a_server(tmp_path):
    stage = tmp_path / "teacher"
    tracker = open_tracker(stage, OFFLINE)
    tell_everything(tracker)
    assert tracker.num_dropped == 0
    assert artifacts(stage) == [("mini-tokenizer", "tokenizer", True), ("mini-teacher-model", "model", False)]
    records = stage_records(stage)
    assert [(r.alert.title, r.alert.level) for r in records if r.HasField("alert")] == [
        ("The loss of teacher jumped", "WARN")
    ]
    histories = [{item.nested_key[0] if item.nested_key else item.key for item in r.history.item} for r in records]
    logged = [name for names in histories for name in names]
    assert logged.count("loss") == 4
    # At the validation, and at the end for what came after it.
    assert logged.count("router/load") == logged.count("router/layer-00/load") == 2
    assert logged.count("examples/teacher") == 1
    images = list(stage.glob("wandb/offline-run-*/files/media/images/router/*.png"))
    assert len(images) >= 2
    log = (stage / "logs" / "wandb.log").read_text()
    assert log.count("ZeroDivisionError") == 1
    assert "off for the rest" not in log


def test_what_waits_to_be_sent_lies_in_the_run_folder_only(tmp_path):
    stage = tmp_path / "run" / "teacher"
    tracker = open_tracker(stage, OFFLINE)
    tell_everything(tracker)
    staged = [path.read_bytes() for path in (stage / "wandb" / "artifacts" / "staging").iterdir()]
    assert any(b"ab12" in content for content in staged)
    assert any(content.startswith(b"fLaC") for content in staged)
    assert not (tmp_path / ".local" / "share" / "wandb" / "artifacts").exists()
    assert "WANDB_DATA_DIR" not in os.environ, "the next stage of this process would stage into this one's folder"


def test_the_same_artifact_declared_by_another_stage_is_the_same_version(tmp_path):
    """digest(name, fingerprint, content) does not depend on the stage, nor on where things lie"""
    digests = []
    for number, stage in enumerate(("teacher", "student")):
        tracker = open_tracker(tmp_path / stage, OFFLINE)
        made = Artifact("mini-model", "model", "cd34", {"b": 1, "a": 2}, {"folder": f"/somewhere/{number}"})
        tracker.artifacts(lambda made=made: [made], used=bool(number))
        tracker.close(30)
        digests += [r.artifact.digest for r in stage_records(tmp_path / stage) if r.HasField("artifact")]
    assert len(digests) == 2
    assert digests[0] == digests[1] != ""


def read_events(stage: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(stage / "tensorboard")).Reload()


def test_tensorboard_shows_rows_images_alerts_and_tables(tmp_path):
    stage = tmp_path / "teacher"
    tracker = open_tracker(stage, TENSORBOARD)
    tell_everything(tracker)
    assert tracker.num_dropped == 0
    events = read_events(stage)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, pytest.approx(3.0 / step)) for step in (1, 2, 3, 4)
    ]
    assert [event.value for event in events.Scalars("experts/layer-00/load/01")] == [pytest.approx(0.9)] * 4
    assert [event.step for event in events.Images("router/load")] == [3, 4]
    (image,) = {(event.width, event.height) for event in events.Images("router/load")}
    assert image == (2 * 24, 24)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert "jumped" in texts["alerts/text_summary"]
    assert "при\\|вет" in texts["examples/teacher/text_summary"]
    assert "ab12" in texts["lineage/mini-tokenizer/text_summary"]


def test_a_resumed_stage_takes_back_the_points_of_steps_that_were_lost(tmp_path):
    for resume_step, loss in ((0, 1.0), (3, 2.0)):
        tracker = open_tracker(tmp_path, TENSORBOARD, resume_step)
        for step in range(resume_step + 1, resume_step + 6):
            tracker.log({"step": step, "loss": loss})
        tracker.close(30)
    points = [(event.step, event.value) for event in read_events(tmp_path).Scalars("loss")]
    assert points == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0), (7, 2.0), (8, 2.0)]


def test_a_missing_tensorboard_is_named_before_the_start_and_only_if_it_is_wanted(monkeypatch):
    check_tracking(TENSORBOARD)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    check_tracking(OFFLINE)
    with pytest.raises(ConfigError, match=r"chorus-asr\[tensorboard\]"):
        check_tracking(TENSORBOARD)


def test_a_run_that_wants_a_missing_tensorboard_ends_with_the_code_of_configuration(tmp_path, monkeypatch, capsys):
    from launcher.cli import main

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    options = ["--run-dir", str(tmp_path / "run"), "--set", "tracking.tensorboard=true"]
    assert main(["run", "mini", *options]) == 2
    assert "pip install 'chorus-asr[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stage_without_steps_keeps_no_metrics(tmp_path):
    tracker = Tracker(tmp_path, TENSORBOARD, run_name="mini", recipe={}, resume_step=None)
    tracker.summarize({"student/test/wer": 0.1})
    tracker.close(30)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert [event.value for event in read_events(tmp_path).Scalars("student/test/wer")] == [pytest.approx(0.1)]


def test_a_stuck_mirror_leaves_the_other_one_its_share_of_the_time(tmp_path, monkeypatch):
    import threading
    import time
    from types import SimpleNamespace

    released = threading.Event()
    stuck = SimpleNamespace(
        Settings=lambda **_: None, setup=lambda **_: None, init=lambda **_: released.wait(30), teardown=lambda: None
    )
    monkeypatch.setitem(sys.modules, "wandb", stuck)
    both = TrackingConfig(wandb=WandbConfig(mode="offline"), tensorboard=True)
    tracker = open_tracker(tmp_path, both)
    for step in (1, 2, 3):
        tracker.log(row(step))
    start_s = time.perf_counter()
    tracker.close(8.0)
    assert time.perf_counter() - start_s < 9
    released.set()
    assert len(read_events(tmp_path).Scalars("loss")) == 3
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3
