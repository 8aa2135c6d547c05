"""A loss or gradient that is not finite never reaches the weights, and the run goes on without it."""

import json

import processes
import pytest
from paths import HELPERS
from safetensors.torch import load_file
from small_runs import STAGE

from launcher.errors import DivergedError, exit_code
from launcher.run_folder import RunFolder, read_json
from launcher.tracking import read_metrics

SCRIPT = HELPERS / "poison.py"
SHORT = (f"stages.{STAGE}.steps=10", f"stages.{STAGE}.validate_every=10", f"stages.{STAGE}.log_every=1")


def train(run: RunFolder, faults: dict[int, str], world: int = 2, expected: int = 0) -> None:
    arguments = [str(SCRIPT), json.dumps(faults), str(run.path), STAGE]
    started = processes.start(arguments, world, run.path / "log")
    codes = [process.wait(120) for process in started]
    assert codes == [expected] * world, (run.path / "log").read_text() + run.stage(STAGE).rank_log(0).read_text()


def measured(run: RunFolder) -> list[dict]:
    names = ("step", "loss", "grad_norm", "skipped", "validation/loss")
    rows = read_metrics(run.stage(STAGE).metrics_file)
    return [{name: row[name] for name in names if name in row} for row in rows]


def assert_same_run(run: RunFolder, without: RunFolder) -> None:
    assert measured(run) == measured(without)
    weights, expected = (load_file(one.stage(STAGE).model / "model.safetensors") for one in (run, without))
    for name, values in expected.items():
        assert values.isfinite().all()
        assert values.equal(weights[name]), name


def events(run: RunFolder, name: str) -> list[dict]:
    return [event for event in run.events() if event["event"] == name]


@pytest.mark.parametrize(
    ("world", "expert_parallel", "deepspeed", "fault"),
    [
        (2, 2, "zero2", "features"),
        pytest.param(2, 2, "zero2", "gradient", marks=pytest.mark.slow),
        pytest.param(2, 2, "zero1", "gradient", marks=pytest.mark.slow),
        pytest.param(2, 2, "zero3", "features", marks=pytest.mark.slow),
        pytest.param(2, 2, "zero3", "gradient", marks=pytest.mark.slow),
        pytest.param(2, 1, "zero0", "gradient", marks=pytest.mark.slow),
    ],
)
def test_a_step_that_is_not_finite_is_left_out_as_if_its_batch_were_not_there(
    make_run, world, expert_parallel, deepspeed, fault
):
    topology = (f"cluster.expert_parallel={expert_parallel}", f"cluster.deepspeed={deepspeed}")
    run, without = make_run("bad", (*SHORT, *topology)), make_run("without", (*SHORT, *topology))
    train(run, {5: fault}, world)
    train(without, {5: "omitted"}, world)
    assert_same_run(run, without)
    (event,) = events(run, "update_skipped")
    assert event["step"] == 6
    assert event["utterances"]
    assert ("loss" in event["reason"]) == (fault == "features")


def test_after_too_many_bad_steps_the_weights_are_taken_back_and_the_steps_since_are_passed_over(make_run):
    settings = (*SHORT, f"stages.{STAGE}.recovery.max_skips=1")
    run, without = make_run("rollback", settings), make_run("without", settings)
    train(run, {5: "features", 6: "gradient"})
    train(without, {4: "omitted", 5: "omitted", 6: "omitted"})
    assert [event["to_step"] for event in events(run, "rolled_back")] == [4]
    assert_same_run_after(run, without, step=8)


def assert_same_run_after(run: RunFolder, without: RunFolder, step: int) -> None:
    """Rows up to there saw the steps that were taken back."""
    weights, expected = (load_file(one.stage(STAGE).model / "model.safetensors") for one in (run, without))
    for name, values in expected.items():
        assert values.equal(weights[name]), name
    assert [row for row in measured(run) if row["step"] > step] == [
        row for row in measured(without) if row["step"] > step
    ]


def test_bad_steps_without_end_end_the_stage_with_its_cause_and_finite_weights(make_run):
    changes = {"steps": 12, "validate_every": 12, "recovery.max_skips": 1, "checkpoint.every_steps": 2}
    run = make_run("diverged", tuple(f"stages.{STAGE}.{key}={value}" for key, value in changes.items()))
    train(run, dict.fromkeys(range(5, 12), "features"), expected=exit_code(DivergedError()))
    assert [event["to_step"] for event in events(run, "rolled_back")] == [4, 2]
    log = run.stage(STAGE).rank_log(0).read_text()
    assert "recovery.max_rollbacks is 2" in log
    train(run, {})  # with the cause mended, the same command goes on from the newest checkpoint
    assert read_json(run.stage(STAGE).done_file) == {"status": "done", "step": 12}
