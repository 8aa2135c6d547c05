"""Experts that are no longer used are reported once, and again only after they had recovered."""

import json

import processes
import pytest
from paths import HELPERS
from small_runs import STAGE

from launcher.training.health.routing_collapse import ROWS, CollapseDetector

EVEN = [0.25, 0.25, 0.25, 0.25]
ALONE = [0.97, 0.01, 0.01, 0.01]
IDLE = [0.5, 0.5, 0.0, 0.0]


def row(**layers: list[float]) -> dict:
    return {"step": 1, "loss": 2.0, **{f"experts/{name}/load": load for name, load in layers.items()}}


def look(detector: CollapseDetector, load: list[float], rows: int) -> list[dict]:
    return [change for _ in range(rows) for change in detector.check(row(layer=load, other=EVEN))]


@pytest.mark.parametrize(("load", "reason"), [(ALONE, "expert 0 takes 97%"), (IDLE, "experts 2, 3 take less than 5%")])
def test_a_collapsed_layer_is_reported_once(load, reason):
    detector = CollapseDetector()
    assert look(detector, load, ROWS - 1) == []
    (change,) = look(detector, load, 3 * ROWS)
    assert (change["event"], change["layer"]) == ("routing_collapsed", "layer")
    assert reason in change["reason"]


def test_experts_that_are_favoured_or_idle_for_a_few_rows_are_no_collapse():
    detector = CollapseDetector()
    for _ in range(10):
        assert look(detector, EVEN, ROWS) + look(detector, ALONE, ROWS // 3) == []
    assert look(detector, [0.6, 0.2, 0.1, 0.1], 3 * ROWS) == []


def test_a_layer_that_recovered_and_collapses_again_is_reported_again():
    detector = CollapseDetector()
    changes = [change["event"] for load in (IDLE, EVEN, IDLE) for change in look(detector, load, 2 * ROWS)]
    assert changes == ["routing_collapsed", "routing_recovered", "routing_collapsed"]


def test_layers_that_share_experts_may_each_have_their_own():
    users = {"one": "block", "other": "block"}
    detector = CollapseDetector(users=users)
    for _ in range(2 * ROWS):
        assert detector.check(row(one=[1.0, 0.0], other=[0.0, 1.0])) == []
    changes = []
    for _ in range(2 * ROWS):
        changes += detector.check(row(one=[1.0, 0.0], other=[1.0, 0.0]))
    assert [(change["event"], change["layer"]) for change in changes] == [("routing_collapsed", "block")]


def test_a_layer_at_the_limit_does_not_alternate():
    detector = CollapseDetector()
    almost, beyond = [0.89, 0.07, 0.02, 0.02], [0.93, 0.03, 0.02, 0.02]
    changes = [change for _ in range(20) for load in (beyond, almost) for change in look(detector, load, ROWS)]
    assert [change["event"] for change in changes] == ["routing_collapsed"]


def test_a_resumed_training_does_not_report_what_was_reported_before():
    rows = [row(layer=IDLE, other=EVEN)] * (2 * ROWS)
    assert CollapseDetector(rows).check(rows[0]) == []
    assert look(CollapseDetector(rows), EVEN, 2 * ROWS)[0]["event"] == "routing_recovered"


def test_a_training_whose_routers_collapse_says_so_once_in_its_events_and_to_its_mirrors(make_run):
    steps = ROWS + 6
    topology = ("cluster.processes=1", "cluster.expert_parallel=1", "tracking.tensorboard=true")
    length = (f"stages.{STAGE}.steps={steps}", f"stages.{STAGE}.validate_every={steps}", f"stages.{STAGE}.log_every=1")
    run = make_run("collapse", (*topology, *length))
    poison = str(HELPERS / "poison.py")
    processes.run([poison, json.dumps({2: "routing"}), str(run.path), STAGE], 1, run.path / "log")
    found = [event for event in run.events() if event["event"].startswith("routing_")]
    # Its two layers share one block.
    assert [(event["event"], event["layer"]) for event in found] == [("routing_collapsed", "block-00")]
    assert all(ROWS <= event["step"] < steps for event in found)
    assert all("expert 0 takes" in event["reason"] for event in found)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.stage(STAGE).tensorboard)).Reload()
    alerts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("alerts/text_summary")]
    assert ["block-00" in alert for alert in alerts] == [True]
    assert [event.step for event in events.Images("router/load")] == [steps]
