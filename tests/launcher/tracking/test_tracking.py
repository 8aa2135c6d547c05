"""Training must neither wait for nor die of its tracker, and metrics.jsonl must tell the truth."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trackers import _no_settings_from_outside, open_tracker  # noqa: F401  a fixture for all tests here

from launcher.tracking import (
    MetricsLog,
    TrackingConfig,
    WandbConfig,
    background_writer,
    choose_mode,
    metrics_log,
    read_last_rows,
    read_metrics,
    wandb_backend,
)

DISABLED = TrackingConfig(wandb=WandbConfig(mode="disabled"))
OFFLINE = TrackingConfig(wandb=WandbConfig(mode="offline"))
ONLINE = TrackingConfig(wandb=WandbConfig(mode="online"))


def training_row(step: int) -> dict:
    row = {"step": step, "epoch": 0, "loss": 3.5, "learning_rate": 1e-3, "grad_norm": 0.7, "time": 1.8e9}
    for layer in range(12):
        row[f"experts/layer-{layer:02d}/load"] = [0.25, 0.3, 0.2, 0.25]
        row[f"experts/layer-{layer:02d}/entropy"] = 1.36
    return row


def wandb_log(stage: Path) -> list[str]:
    return (stage / "logs" / "wandb.log").read_text().splitlines()


def helper_processes() -> list[str]:
    children = psutil.Process().children(recursive=True)
    return [child.name() for child in children if child.name().startswith("wandb")]


class FakeWandb(SimpleNamespace):
    """Stands in for the wandb module; each hook takes the place of one call into the library."""

    def __init__(self, init=None, log=None, finish=None):
        self.rows: list[dict] = []
        self.runs: list[dict] = []
        run = SimpleNamespace(
            define_metric=lambda *_, **__: None,
            log=log or self.rows.append,
            finish=finish or (lambda: None),
        )

        def opened(**arguments):
            self.runs.append(arguments)
            return run

        super().__init__(
            Settings=lambda **settings: settings,
            setup=lambda **_: None,
            init=init or opened,
            teardown=lambda: None,
        )


def fail(*_, **__):
    raise RuntimeError("the W&B library broke")


def test_each_row_is_on_disk_when_log_returns(tmp_path):
    tracker = open_tracker(tmp_path, DISABLED)
    tracker.log({"step": 1, "loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    tracker.log({"step": 2, "loss": np.float32(0.5), "load": np.array([0.25, 0.75])})
    assert list(read_metrics(tmp_path / "metrics.jsonl"))[1] == {"step": 2, "loss": 0.5, "load": [0.25, 0.75]}
    tracker.close(1)


def test_a_number_that_is_not_finite_becomes_null_so_that_every_line_stays_json(tmp_path):
    tracker = open_tracker(tmp_path, DISABLED)
    tracker.log({"step": 1, "loss": float("nan"), "load": [float("inf"), 1.0], "seen": np.float32("nan")})
    tracker.close(1)
    line = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"step": 1, "loss": None, "load": [None, 1.0], "seen": None}


@given(
    steps=st.lists(st.integers(1, 60), max_size=30).map(sorted),
    resume_step=st.integers(0, 60),
    torn_bytes=st.integers(0, 12),
)
def test_a_resumed_stage_keeps_the_rows_up_to_its_checkpoint_and_no_others(steps, resume_step, torn_bytes):
    """rows after = [row for row in whole rows before if row.step <= resume_step]"""
    folder = Path(tempfile.mkdtemp())
    path = folder / "metrics.jsonl"
    whole = b"".join(b'{"step": %d, "loss": 1.5}\n' % step for step in steps)
    path.write_bytes(whole + b'{"step": 61, "loss": 1.5}\n'[:torn_bytes])
    tracker = open_tracker(folder, DISABLED, resume_step)
    tracker.log({"step": resume_step + 1, "loss": 0.5})
    tracker.close(1)
    remaining = [row["step"] for row in read_metrics(path)]
    assert remaining == [step for step in steps if step <= resume_step] + [resume_step + 1]
    assert path.read_bytes().count(b"\n") == len(remaining)
    shutil.rmtree(folder)


def test_a_kill_while_the_file_is_cut_back_leaves_the_old_rows_or_those_that_stay(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RuntimeError):
        open_tracker(tmp_path, DISABLED, resume_step=1)
    assert [row["step"] for row in read_metrics(path)] in ([1, 2], [1])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_rows_and_one_warning_but_no_step(tmp_path, caplog):
    tracker = open_tracker(tmp_path, DISABLED)
    tracker._metrics._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    for step in range(3):
        tracker.log({"step": step})
    tracker.close(1)
    assert tracker.lost_rows == 3
    assert len(caplog.records) == 1
    assert "metrics.jsonl" in caplog.text


def test_a_row_of_which_the_disk_took_a_part_does_not_spoil_the_next(tmp_path):
    tracker = open_tracker(tmp_path, DISABLED)
    tracker.log({"step": 1})
    real = tracker._metrics._file
    short = SimpleNamespace(fileno=real.fileno, write=lambda line: real.write(line[:5]), close=real.close)
    tracker._metrics._file = short
    tracker.log({"step": 2})
    tracker._metrics._file = real
    tracker.log({"step": 3})
    tracker.close(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 3}\n'


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": ""}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("online", {}, "online"),
        ("disabled", {"WANDB_API_KEY": "k"}, "disabled"),
        ("auto", {"WANDB_MODE": "nonsense", "WANDB_API_KEY": "k"}, "offline"),
    ],
)
def test_the_mode_follows_the_environment_before_the_recipe(configured, environment, mode, tmp_path):
    chosen, reason = choose_mode(configured, {"HOME": str(tmp_path), **environment})
    assert chosen == mode
    assert reason


def test_a_login_in_netrc_counts_for_its_own_server_only(tmp_path):
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    home = {"HOME": str(tmp_path)}
    assert choose_mode("auto", home)[0] == "offline"
    assert choose_mode("auto", {**home, "WANDB_BASE_URL": "https://wandb.example.org"})[0] == "online"


def test_a_disabled_mirror_never_imports_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = open_tracker(tmp_path, DISABLED)
    tracker.log({"step": 1})
    tracker.close(1)
    assert not (tmp_path / "logs").exists()


def test_rows_reach_wandb_under_the_run_as_group_and_the_stage_as_name(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = open_tracker(tmp_path / "teacher", OFFLINE)
    tracker.log({"step": 1, "loss": 2.0, "experts/layer-00/load": [0.25, 0.75]})
    tracker.close(5)
    assert fake.rows == [{"step": 1, "loss": 2.0, "experts/layer-00/load/00": 0.25, "experts/layer-00/load/01": 0.75}]
    assert (fake.runs[0]["group"], fake.runs[0]["name"]) == ("mini", "teacher")
    assert fake.runs[0]["config"] == {"seed": 1}


def test_the_runs_of_a_sweep_are_one_group_in_wandb(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_RUN_GROUP", "mini-sweep")
    tracker = open_tracker(tmp_path / "teacher", OFFLINE)
    tracker.log({"step": 1, "loss": 2.0})
    tracker.close(5)
    assert fake.runs[0]["group"] == "mini-sweep"


@pytest.mark.alone
def test_a_call_to_log_takes_less_than_a_millisecond(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    tracker = open_tracker(tmp_path, OFFLINE)
    row = training_row(1)
    start_s = time.perf_counter()
    for _ in range(2000):
        tracker.log(row)
    mean_s = (time.perf_counter() - start_s) / 2000
    tracker.close(10)
    assert mean_s < 1e-3


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_hanging_wandb_costs_no_step_and_close_keeps_its_deadline(tmp_path, monkeypatch, place):
    released = threading.Event()
    fake = FakeWandb(**{place: lambda *_, **__: released.wait(30)})
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(background_writer, "QUEUE_RECORDS", 100)
    tracker = open_tracker(tmp_path, OFFLINE)
    start_s = time.perf_counter()
    for step in range(1, 501):
        tracker.log(training_row(step))
    assert time.perf_counter() - start_s < 2
    start_s = time.perf_counter()
    tracker.close(1.0)
    assert time.perf_counter() - start_s < 1.5
    released.set()
    assert sum(1 for _ in read_metrics(tmp_path / "metrics.jsonl")) == 500
    assert any("did not finish" in line for line in wandb_log(tmp_path))
    if place != "finish":
        assert tracker.num_dropped >= 399


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_raising_wandb_is_named_once_in_its_log_and_costs_no_step(tmp_path, monkeypatch, place):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(**{place: fail}))
    tracker = open_tracker(tmp_path, OFFLINE)
    for step in range(1, 101):
        tracker.log({"step": step})
    tracker.close(5)
    tracker.close(5)
    assert sum(1 for _ in read_metrics(tmp_path / "metrics.jsonl")) == 100
    assert sum("the W&B library broke" in line for line in wandb_log(tmp_path)) == 1


def test_a_missing_wandb_is_named_in_its_log_and_costs_no_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = open_tracker(tmp_path, ONLINE)
    tracker.log({"step": 1})
    tracker.close(5)
    assert any("ModuleNotFoundError" in line for line in wandb_log(tmp_path))
    assert tracker.num_dropped == 1


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_the_last_rows_are_those_at_the_end_of_all_rows(tmp_path, monkeypatch, block_bytes):
    """read_last_rows(n) == [row for row in read_metrics() if "loss" in row][-n:], however it is cut"""
    monkeypatch.setattr(metrics_log, "TAIL_BLOCK_BYTES", block_bytes)
    file = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1.0 / step} for step in range(1, 9)]
    rows.insert(5, {"step": 5, "validation/loss": 2.0})
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 9, "lo')
    losses = [row for row in read_metrics(file) if "loss" in row]
    for number in (1, 3, 8, 100):
        assert read_last_rows(file, number) == losses[-number:]
    assert read_last_rows(tmp_path / "none", 3) == []


def test_resuming_a_long_stage_reads_the_end_of_its_metrics_only(tmp_path, monkeypatch):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {step}, "loss": 1.5}}\n' for step in range(1, 200_001)))
    parse = metrics_log.parse_metrics_row
    decoded = []
    monkeypatch.setattr(metrics_log, "parse_metrics_row", lambda line: decoded.append(line) or parse(line))
    MetricsLog(file, resume_step=199_950).close()
    rows = read_last_rows(file, 100)
    assert (rows[0]["step"], rows[-1]["step"]) == (199_851, 199_950)
    assert len(decoded) < 200


def test_a_resumed_stage_continues_one_offline_run_and_leaves_no_process_behind(tmp_path, capfd):
    hooks = sys.exit, sys.excepthook
    for resume_step in (0, 20):
        tracker = open_tracker(tmp_path, TrackingConfig(), resume_step)
        for step in range(resume_step + 1, resume_step + 31):
            tracker.log(training_row(step))
        tracker.close(20)
        assert tracker.num_dropped == 0
        assert helper_processes() == []
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    runs = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(runs) == 2
    for run in runs:
        assert b"experts/layer-11/entropy" in (run / f"run-{run_id}.wandb").read_bytes()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 51))
    assert capfd.readouterr() == ("", "")
    assert (sys.exit, sys.excepthook) == hooks


def test_an_online_run_whose_server_refuses_goes_on_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_backend, "INIT_TIMEOUT_S", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    tracker = open_tracker(tmp_path, TrackingConfig())
    tracker.log(training_row(1))
    tracker.close(20)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert any("offline" in line and "chorus sync" in line for line in wandb_log(tmp_path))
    assert tracker.num_dropped == 0
    assert helper_processes() == []


HANGING_SERVER_SCRIPT = """
import sys, time
from pathlib import Path
from launcher.tracking import Tracker, TrackingConfig
tracker = Tracker(Path(sys.argv[1]), TrackingConfig(), run_name="r", recipe={}, resume_step=0)
tracker.log({"step": 1, "loss": 1.0})
time.sleep(2)
if sys.argv[2] == "raise":
    raise ValueError("training failed")
tracker.close(2)
"""


@pytest.mark.parametrize(("ending", "exit_code"), [("close", 0), ("raise", 1)])
def test_a_process_whose_server_never_answers_still_exits_at_once(tmp_path, ending, exit_code):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        start_s = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-c", HANGING_SERVER_SCRIPT, str(tmp_path), ending],
            env={**os.environ, "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": address},
            timeout=60,
            capture_output=True,
            text=True,
            check=False,
        )
        elapsed_s = time.monotonic() - start_s
    assert process.returncode == exit_code
    assert elapsed_s < 12, "2 s of training, at most 3 s to close, the rest to start Python"
    assert "atexit" not in process.stderr
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
