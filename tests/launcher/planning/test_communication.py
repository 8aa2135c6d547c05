"""What is sent in a step, in bytes that can be counted by hand."""

import pytest

from launcher.planning.communication import Exchanged, Rates, Traffic, crosses_hosts, seconds, traffic
from launcher.planning.memory import ParameterSize

SIZES = [ParameterSize(8_000, True, True), ParameterSize(1_000, False, True)]


@pytest.mark.parametrize(
    ("expert_parallel", "zero_stage", "accumulation", "expected"),
    [
        # All 9,000 numbers of 4 bytes in an all-reduce over four processes: 2 x 3 / 4 of them.
        (1, 0, 2, Traffic(54_000, 0, 0, 0)),
        (1, 1, 2, Traffic(54_000, 0, 27_000, 0)),
        (1, 2, 2, Traffic(108_000, 0, 27_000, 0)),
        # Reduced to owners, and gathered for two passes.
        (1, 3, 2, Traffic(54_000, 0, 108_000, 0)),
        # A process holds half of the experts, as one other does; an all-to-all keeps half of the frames.
        (2, 1, 2, Traffic(6_000, 16_000, 3_000 + 8_000, 19_200)),
        (2, 2, 2, Traffic(12_000, 32_000, 3_000 + 8_000, 19_200)),
        # Every process has experts of its own: nobody shares their gradients.
        (4, 1, 2, Traffic(6_000, 0, 3_000, 28_800)),
    ],
)
def test_a_process_sends_what_its_topology_asks_for(expert_parallel, zero_stage, accumulation, expected):
    # Dispatch and combine, forward and backward: 4 x 100 frames x 3 uses x 8 numbers x 4 bytes = 38,400.
    exchanged = Exchanged(frames=100, uses=3, width=8, value_bytes=4)
    assert traffic(SIZES, 4, expert_parallel, zero_stage, accumulation, exchanged) == expected


def test_one_process_sends_nothing():
    exchanged = Exchanged(frames=100, uses=3, width=8, value_bytes=4)
    sent = traffic(SIZES, processes=1, expert_parallel=1, zero_stage=3, accumulation=4, exchanged=exchanged)
    assert sent.total == 0


def test_layers_that_run_again_send_their_frames_again():
    once = Exchanged(frames=100, uses=3, width=8, value_bytes=4)
    again = Exchanged(frames=100, uses=3, width=8, value_bytes=4, run_again=True)
    assert again.sent_bytes(2) == 1.5 * once.sent_bytes(2)


@pytest.mark.parametrize(
    ("expert_parallel", "hosts", "crosses"),
    [(2, (4, 4), False), (4, (4, 4), False), (8, (4, 4), True), (2, (3, 3), True), (1, (3, 5), False)],
)
def test_sets_of_experts_cross_hosts_when_they_do_not_divide_them(expert_parallel, hosts, crosses):
    assert crosses_hosts(expert_parallel, hosts) is crosses


def test_frames_that_stay_on_a_host_travel_at_its_rate_and_gradients_share_the_line_out():
    sent = Traffic(gradients=100, expert_gradients=0, weights=0, frames=1_000)
    rates = Rates(operations_per_s=1.0, within_host_bytes_per_s=1_000.0, between_hosts_bytes_per_s=100.0)
    assert seconds(sent, 2, (4,), rates) == pytest.approx(1.1)
    assert seconds(sent, 2, (4, 4), rates) == pytest.approx(100 / 25 + 1)
    assert seconds(sent, 8, (4, 4), rates) == pytest.approx(1_100 / 25)
