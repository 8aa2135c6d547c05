"""A training that is killed and started again is the training that was never disturbed."""

import os
import signal
import time

import processes
import pytest
from conftest import write_recipe
from safetensors.torch import load_file
from small_runs import STAGE

from launcher.run_folder import RunFolder, read_json
from launcher.tracking import read_metrics

# What a clock measured, or how the machine was doing.
TIMES = {"time", "step_s", "data_wait", "audio_s_per_s", "flops_per_s", "validation_s", "save_stall_s"}


def train(run: RunFolder, world: int = 2) -> None:
    processes.run(["-m", "launcher.worker", str(run.path), STAGE], world, run.path / "log")


def metrics(run: RunFolder) -> list[dict]:
    rows = read_metrics(run.stage(STAGE).metrics_file)
    measured = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    return [row for row in measured if row.keys() != {"step"}]


def weights(run: RunFolder) -> dict:
    return load_file(run.stage(STAGE).model / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(make_run) -> RunFolder:
    run = make_run("undisturbed")
    train(run)
    return run


def start_until(run: RunFolder, reached, fresh: bool = False) -> list:
    """Start the processes and return once `reached(newest row of metrics)` holds, while they still train."""
    started = processes.start(["-m", "launcher.worker", str(run.path), STAGE], 2, run.path / "log", fresh)
    until = time.monotonic() + 90
    while not any(reached(row) for row in read_metrics(run.stage(STAGE).metrics_file)):
        assert time.monotonic() < until, (run.path / "log").read_text()
        assert all(process.poll() is None for process in started), (run.path / "log").read_text()
        time.sleep(0.01)
    return started


def test_a_run_writes_its_metrics_its_checkpoints_and_a_model(undisturbed):
    rows = metrics(undisturbed)
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 9, 12, 15, 16]
    assert [row["step"] for row in rows if "validation/cer" in row] == [8, 16]
    last = [row for row in rows if "loss" in row][-1]
    assert {"epoch", "learning_rate", "grad_norm", "loss/ctc", "loss/attention", "loss/balance"} <= last.keys()
    assert sum(last["experts/layer-01/load"]) == pytest.approx(1.0)
    assert undisturbed.stage(STAGE).checkpoint_steps() == [12, 16]
    assert read_json(undisturbed.stage(STAGE).done_file) == {"status": "done", "step": 16}


def test_a_killed_run_goes_on_as_if_nothing_had_happened(undisturbed, make_run):
    run = make_run("killed")
    for process in start_until(run, lambda row: row["step"] >= 9):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert run.stage(STAGE).checkpoint_steps()
    train(run)
    assert metrics(run) == metrics(undisturbed)
    for name, values in weights(undisturbed).items():
        assert values.equal(weights(run)[name]), name


def touch_stop_file(run: RunFolder, started: list) -> None:
    run.stage(STAGE).stop_file.touch()


def signal_one_process_until_it_leaves(run: RunFolder, started: list) -> None:
    """The second and later ones come while the checkpoint is being saved."""
    while started[1].poll() is None:
        started[1].send_signal(signal.SIGTERM)
        time.sleep(0.02)


@pytest.mark.parametrize("stop", [touch_stop_file, signal_one_process_until_it_leaves])
def test_a_stopped_run_saves_where_it_is_and_loses_no_step(undisturbed, make_run, stop):
    run = make_run("stopped")
    # Processes that are signalled are those that a launcher would start.
    fresh = stop is signal_one_process_until_it_leaves
    started = start_until(run, lambda row: row["step"] >= 3, fresh)
    stop(run, started)
    assert [process.wait(60) for process in started] == [0, 0]
    done = read_json(run.stage(STAGE).done_file)
    assert done["status"] == "stopped"
    assert run.stage(STAGE).checkpoint_steps()[-1] == done["step"]
    run.stage(STAGE).stop_file.unlink(missing_ok=True)
    train(run)
    assert metrics(run) == metrics(undisturbed)
    for name, values in weights(undisturbed).items():
        assert values.equal(weights(run)[name]), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_stopped_after_every_single_step_is_the_same_run(undisturbed, make_run):
    run = make_run("stuttering")
    run.stage(STAGE).path.mkdir(parents=True)
    run.stage(STAGE).stop_file.touch()
    for step in range(1, 17):
        train(run)
        assert run.stage(STAGE).checkpoint_steps()[-1] == step
    assert metrics(run) == metrics(undisturbed)
    for name, values in weights(undisturbed).items():
        assert values.equal(weights(run)[name]), name


def test_a_run_may_change_its_number_of_processes_on_the_way(undisturbed, make_run):
    run = make_run("moved")
    started = start_until(run, lambda row: row["step"] >= 3)
    run.stage(STAGE).stop_file.touch()
    assert [process.wait(60) for process in started] == [0, 0]
    run.stage(STAGE).stop_file.unlink()
    write_recipe(run, ("cluster.processes=1", "cluster.expert_parallel=1"))
    train(run, world=1)
    for row, expected in zip(metrics(run), metrics(undisturbed), strict=True):
        assert row["step"] == expected["step"]
        assert row.keys() == expected.keys()
        for name in expected.keys() & {"loss", "grad_norm", "validation/loss"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-4)
