"""Metrics, thinned while they are read."""

import itertools
import json

import pytest
from run_folders import training_row, write_rows

from launcher.board import curves
from launcher.board.curves import MAX_CURVES, MAX_POINTS, StageCurves, curve_values
from launcher.monitoring import line_tail
from launcher.run_files import parse_metrics_row


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def stage(path, tmp_path):
    return StageCurves(path, tmp_path)


def read(stage):
    while stage.refresh()[1]:
        pass


def test_a_long_run_keeps_evenly_chosen_rows_its_last_one_and_all_validations(path, stage, monkeypatch):
    monkeypatch.setattr(line_tail, "BLOCK_BYTES", 100_000)
    parsed = []
    monkeypatch.setattr(curves, "parse_metrics_row", lambda line: parsed.append(1) or parse_metrics_row(line))
    rows = []
    for step in range(1, 10_001):
        rows.append(training_row(step))
        if step % 1000 == 0:
            rows.append({"step": step, "validation/cer": 1 / step, "validation_s": 2.0, "time": 1.0})
    write_rows(path, rows)
    read(stage)
    steps = list(stage.training.steps)
    assert MAX_POINTS / 2 <= len(steps) <= MAX_POINTS
    assert {after - before for before, after in itertools.pairwise(steps)} == {16}
    assert stage.last_row["step"] == 10_000
    assert list(stage.validation.steps) == list(range(1000, 10_001, 1000))
    assert stage.validation_s == 20.0
    # Most rows are never parsed.
    assert len(parsed) < 4_000


def test_curves_are_those_of_the_rows(path, stage):
    write_rows(path, [training_row(10, loss=3.0), training_row(20, loss=None, loss_of_a_head=1.5)])
    write_rows(path, [{"step": 30, "loss": None, "time": 1.0}])
    read(stage)
    shown = curve_values(stage.training)
    assert shown["steps"] == [10, 20, 30]
    assert shown["curves"]["loss_of_a_head"] == [None, 1.5, None]
    assert shown["curves"]["loss"][0] == 3.0
    assert shown["curves"]["loss"][2] is None
    assert "time" not in shown["curves"]


def test_rows_that_a_resumed_stage_cut_off_are_gone(path, stage):
    write_rows(path, [training_row(step) for step in range(10, 101, 10)])
    read(stage)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    write_rows(path, [training_row(step, loss=9.0) for step in range(50, 121, 10)])
    read(stage)
    assert list(stage.training.steps) == list(range(10, 121, 10))
    assert curve_values(stage.training)["curves"]["loss"][4:] == [9.0] * 8


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "{",
        '{"step": -1, "loss": 1}',
        '{"step": 1e400}',
        '{"step": "7", "loss": 1}',
        '{"step": 7, "loss": [1]}',
        '{"step": 7, "loss": 1e308, "grad_norm": -1e308}',
        '{"step": 7, "experts/x/load": [1, "a"]}',
        '{"step": 7, "experts/x/load": [0, 0]}',
        '{"step": 7, "experts/x/load": {"a": 1}}',
        '{"step": 7, "experts/x/load": 3}',
        '{"step": 7, "validation/cer": "good", "validation_s": 1}',
        '{"step": 9223372036854775807, "loss": 1}',
        json.dumps({"step": 7, **{f"metric {number}": number for number in range(5000)}}),
        json.dumps({"step": 7, "x" * 10_000: 1.0}),
        json.dumps({"step": 7, "experts/x/load": [1.0] * 100_000}),
        json.dumps({"step": 7, **{f"experts/{number}/load": [1.0] for number in range(5000)}}),
        "[" * 100_000,
    ],
    ids=range(19),
)
def test_a_row_of_somebody_else_does_no_harm(path, stage, line):
    path.write_text(f"{line}\n")
    write_rows(path, [training_row(10)])
    read(stage)
    shown = curve_values(stage.training)
    assert shown["steps"][-1] == 10
    assert len(shown["curves"]) <= MAX_CURVES
    json.dumps([shown, stage.mean_loads(), curve_values(stage.largest_loads)], allow_nan=False)


def test_the_load_of_experts_is_a_mean_over_the_last_rows_with_even_shares_as_one(path, stage):
    loads = {"experts/layer-00/load": [1.0, 3.0], "experts/layer-01/load": [0.25, 0.25, 0.25, 0.25]}
    write_rows(path, [training_row(10, **loads)])
    loads["experts/layer-00/load"] = [3.0, 1.0]
    write_rows(path, [training_row(20, **loads)])
    read(stage)
    assert stage.mean_loads() == {"layer-00": [1.0, 1.0], "layer-01": [1.0] * 4}
    assert curve_values(stage.largest_loads)["curves"]["layer-00"] == [1.5, 1.5]
