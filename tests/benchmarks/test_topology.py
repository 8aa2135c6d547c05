"""The loss curve, the gradients and the weights of a training do not depend on where it runs."""

import pytest
from topology import REFERENCE, Topology, all_topologies, difference, refusal, train


def assert_same_run(folder, topologies: list[Topology], steps: int) -> None:
    results = train(folder, topologies, steps, "fp32")
    for topology in topologies:
        found = difference(results[topology], results[REFERENCE])
        assert found.loss <= 1e-5, topology
        assert found.gradient <= 1e-5, topology
        # AdamW turns the rounding of gradients near zero into steps of full size.
        assert found.weights <= 1e-4, topology


def test_ten_steps_are_the_same_on_two_processes(tmp_path):
    assert_same_run(tmp_path, [Topology(2, 2, 2), Topology(2, 2, 3)], steps=10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_steps_are_the_same_on_every_topology(tmp_path):
    assert_same_run(tmp_path, [topology for topology in all_topologies() if refusal(topology) is None], steps=50)


def test_only_zero_0_with_spread_experts_is_refused():
    refused = [topology for topology in all_topologies() if refusal(topology) is not None]
    assert refused == [Topology(2, 2, 0), Topology(4, 2, 0), Topology(4, 4, 0)]
