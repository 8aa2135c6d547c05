"""Which runs of a sweep are hopeless."""

import pytest
from run_folders import training_row, write_rows

from launcher.sweep.stopping import ValidationCurve, judge


def curve(folder, values, every=10, measure="validation/cer"):
    """A stage that was validated every so many steps."""
    path = folder / "metrics.jsonl"
    for number, value in enumerate(values, start=1):
        write_rows(path, [training_row(every * number), {"step": every * number, measure: value, "time": 1.0}])
    read = ValidationCurve(path, folder)
    read.refresh()
    return read


@pytest.fixture
def curves(tmp_path):
    values = {"a": [0.9, 0.5, 0.3], "b": [0.9, 0.6, 0.4], "c": [0.8, 0.7, 0.5], "bad": [0.9, 0.9], "new": []}
    made = {}
    for name, of_run in values.items():
        (tmp_path / name).mkdir()
        made[name] = curve(tmp_path / name, of_run)
    return made


def test_a_run_worse_than_the_median_of_the_others_at_its_step_is_stopped(curves):
    verdict = judge("bad", "student", 60, curves, from_share=0.3)
    assert (verdict.step, verdict.value, verdict.median) == (20, 0.9, 0.6)
    assert "0.9 at step 20" in verdict.describe()


def test_what_others_reach_later_is_not_held_against_a_run(curves, tmp_path):
    (tmp_path / "slow").mkdir()
    curves["slow"] = curve(tmp_path / "slow", [0.9, 0.55])
    assert judge("slow", "student", 60, curves, from_share=0.3) is None


@pytest.mark.parametrize("name", ["a", "b", "new"])
def test_good_runs_and_those_without_validations_go_on(curves, name):
    assert judge(name, "student", 60, curves, from_share=0.1) is None


def test_no_run_is_stopped_before_its_share_of_the_steps(curves):
    assert judge("bad", "student", 100, curves, from_share=0.3) is None


def test_no_run_is_stopped_by_fewer_than_three_others(curves):
    del curves["a"]
    assert judge("bad", "student", 60, curves, from_share=0.3) is None


def test_equal_runs_all_go_on(tmp_path):
    made = {}
    for name in "abcde":
        (tmp_path / name).mkdir()
        made[name] = curve(tmp_path / name, [0.5, 0.5])
    assert all(judge(name, "x", 20, made, 0.1) is None for name in made)


def test_without_an_error_rate_the_loss_of_the_validation_counts(tmp_path):
    read = curve(tmp_path, [3.0, 2.0, 4.0], measure="validation/loss")
    assert read.best == [3.0, 2.0, 2.0]
    assert read.best_until(10) == 3.0
    assert read.best_until(40) is None


def test_validations_that_a_resumed_stage_cut_off_do_not_count(tmp_path):
    read = curve(tmp_path, [0.5, 0.4, 0.1])
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    write_rows(path, [training_row(20), {"step": 20, "validation/cer": 0.45, "time": 1.0}])
    read.refresh()
    assert (read.steps, read.best) == ([10, 20], [0.5, 0.45])
