"""What a row says about the experts."""

import pytest
import torch

from launcher.training.metrics import MetricAccumulator, ReducedMetrics, StepMetrics, add_metrics, routing_metrics
from model.moe.router import Router, RouterConfig

NAMES = ["layer-00-first", "layer-00-second"]


def close(lanes: list[StepMetrics]) -> dict:
    sums: StepMetrics = {}
    for measures in lanes:
        add_metrics(sums, measures)
    scalars = {name: value.item() for name, value in sums.items() if not value.ndim}
    accumulator = MetricAccumulator()
    accumulator.add(ReducedMetrics(scalars, {name: value.tolist() for name, value in sums.items() if value.ndim}, {}))
    return accumulator.close()


@pytest.mark.parametrize("factor", [None, 0.5])
def test_a_row_tells_load_entropy_and_under_a_capacity_the_dropped_share_of_every_router(factor):
    torch.manual_seed(0)
    routers = [Router(8, 4, RouterConfig(per_frame=2), factor) for _ in NAMES]
    lanes = [[router(torch.randn(frames, 8)) for router in routers] for frames in (30, 0, 50)]
    row = close([routing_metrics(routings, NAMES) for routings in lanes])
    kinds = ("load", "entropy", "dropped") if factor else ("load", "entropy")
    assert row.keys() == {f"experts/{name}/{kind}" for name in NAMES for kind in kinds}
    for place, name in enumerate(NAMES):
        routings = [lane[place] for lane in lanes]
        assert sum(row[f"experts/{name}/load"]) == pytest.approx(1.0)
        entropy = sum(routing.entropy.item() * len(routing.experts_NK) for routing in routings) / 80
        assert row[f"experts/{name}/entropy"] == pytest.approx(entropy, rel=1e-5)
        if factor:
            kept = sum(int(routing.kept_NK.sum()) for routing in routings)
            assert row[f"experts/{name}/dropped"] == pytest.approx(1 - kept / 160)
            assert 0.4 < row[f"experts/{name}/dropped"] < 0.6


def test_what_a_skipped_step_quarantined_is_counted_in_the_row_and_nothing_else_of_it_is():
    accumulator = MetricAccumulator()
    skipped = ReducedMetrics({"loss": float("nan"), "quarantined": 3.0}, {"experts/a/load": [1.0, 2.0]}, {})
    accumulator.add_skipped(skipped)
    accumulator.add(ReducedMetrics({"loss": 2.0, "quarantined": 1.0}, {}, {}))
    accumulator.add(ReducedMetrics({"loss": 4.0, "quarantined": 0.0}, {}, {}))
    accumulator.add_skipped(skipped)
    # Means per update of the row: 7 utterances over 2 updates.
    assert accumulator.close() == {"loss": 3.0, "quarantined": 3.5}
    assert accumulator.steps == 0
