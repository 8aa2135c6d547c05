"""What a step takes on many nodes, in numbers that can be counted by hand."""

import json

import pytest

from launcher.cli import main as chorus
from launcher.errors import ConfigError
from launcher.planning.communication import Exchanged
from launcher.planning.interconnect import EFFICIENCY, INTERCONNECTS, Interconnect, read_interconnect
from launcher.planning.memory import ParameterSize
from launcher.planning.scaling import (
    Nodes,
    StepShapes,
    exchange_seconds,
    expert_parallel_sizes,
    exposed_seconds,
    ring_seconds,
    scale_step,
)

# 1,000 bytes per s within a node, 100 of a node.
LINK = Interconnect(1000.0, 100.0, 0.0, 0.0)
LATE = Interconnect(1000.0, 100.0, 0.25, 0.5)


def test_a_ring_passes_a_line_once_however_many_cards_a_node_has():
    assert ring_seconds(600, 1, 1, Nodes(1, 8), LINK) == 0.6
    assert ring_seconds(600, 1, 1, Nodes(2, 1), LINK) == ring_seconds(600, 1, 1, Nodes(2, 8), LINK) == 6.0
    # Rings of experts that each card has its own of share the line.
    assert ring_seconds(600, 4, 1, Nodes(2, 4), LINK) == 24.0
    assert ring_seconds(0, 1, 0, Nodes(2, 8), LATE) == 0.0


def test_each_message_takes_the_latency_of_its_way():
    # 3 hops each way within a node of four cards, two levels each way between four nodes.
    assert ring_seconds(1000, 1, 2, Nodes(4, 4), LATE) - ring_seconds(1000, 1, 2, Nodes(4, 4), LINK) == 2 * (
        2 * 3 * 0.25 + 2 * 2 * 0.5
    )


@pytest.mark.parametrize(
    ("expert_parallel", "place", "expected"),
    [
        (1, Nodes(2, 4), 0.0),
        # All of it stays within the node.
        (4, Nodes(2, 4), 0.3),
        # 4 of 7 parts leave the node, from each of four cards.
        (8, Nodes(2, 4), 4 * 300 * 4 / 7 / 100),
        # One card a node: all of it leaves.
        (4, Nodes(4, 1), 3.0),
    ],
)
def test_frames_leave_a_node_once_for_each_of_its_cards(expert_parallel, place, expected):
    assert exchange_seconds(300, 1, expert_parallel, place, LINK) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("block_of_layer", "gradients_s", "exposed_s"),
    [
        # The last of four is ready when the backward pass ends, and takes a quarter of the time.
        ([0, 1, 2, 3], 2.0, 0.5),
        # Two blocks in turns are both ready at the end, but for one layer of the upper.
        ([0, 1, 0, 1], 2.0, 1.0),
        # One block for all: nothing is hidden.
        ([0, 0, 0, 0], 2.0, 2.0),
        # Two that follow each other: the upper one is sent beside the lower half.
        ([0, 0, 1, 1], 2.0, 1.0),
        # More to send than there is time.
        ([0, 0, 1, 1], 20.0, 18.0),
    ],
)
def test_a_shared_block_is_sent_when_its_lowest_layer_is_done(block_of_layer, gradients_s, exposed_s):
    assert exposed_seconds(block_of_layer, 4.0, gradients_s) == pytest.approx(exposed_s)


def shapes(**changes) -> StepShapes:
    values = {
        "parameters": [ParameterSize(8_000, True, True), ParameterSize(1_000, False, True)],
        "block_of_layer": [0, 0],
        "exchanged": Exchanged(frames=100, uses=2, width=8, value_bytes=4),
        "experts": 8,
        "expert_uses": 2,
        "compute_s": 100.0,
        "kept_bytes": 10**6,
        "activation_bytes": 0,
    }
    return StepShapes(**values | changes)


def test_a_step_sends_each_shared_gradient_once_and_experts_among_those_that_hold_them():
    place = Nodes(2, 2)
    whole = scale_step(shapes(), place, LINK, {"stage": 0}, 1)
    # An all-reduce of 36,000 bytes over four cards.
    assert whole.within_bytes == whole.between_bytes == 54_000
    assert whole.communication_s == 540.0
    # One block: nothing travels before the backward pass is over.
    assert whole.exposed_s == 540.0
    assert whole.efficiency == pytest.approx(100 / 640)

    spread = scale_step(shapes(), place, LINK, {"stage": 1, "reduce_bucket_size": 100}, 2)
    # 4,000 bytes of all else, all-reduced and gathered over four; 16,000 of experts over two; half of 25,600 of frames.
    common, experts, frames = 6_000 + 3_000, 16_000 + 8_000, 12_800
    assert spread.within_bytes == common + experts + frames
    # Both cards' experts pass the line, and no frame.
    assert spread.between_bytes == common + 2 * experts
    assert spread.communication_s == pytest.approx((common + 2 * experts) / 100 + frames / 1000)


def test_memory_falls_with_the_cards_that_share_it_and_frames_cross_nodes_only_where_experts_do():
    link = INTERCONNECTS["nvlink4-ndr"]
    steps = [scale_step(shapes(), Nodes(nodes, 8), link, {"stage": 3}, 1) for nodes in (1, 8, 64)]
    memory = [step.memory_bytes for step in steps]
    assert memory == sorted(memory, reverse=True)
    within = scale_step(shapes(), Nodes(2, 4), LINK, {"stage": 0}, 4)
    across = scale_step(shapes(), Nodes(2, 4), LINK, {"stage": 0}, 8)
    # Experts that all cards hold different ones of have no gradients to send, only frames.
    assert across.between_bytes == pytest.approx(2 * 4_000 * 7 / 8 + 4 * 25_600 * 7 / 8 * 4 / 7)
    assert within.between_bytes == pytest.approx(2 * 4_000 * 7 / 8 + 4 * 2 * 8_000 / 2)


def test_experts_are_spread_within_a_node_or_as_far_as_they_go():
    assert expert_parallel_sizes(0, Nodes(8, 8)) == [1]
    assert expert_parallel_sizes(4, Nodes(8, 8)) == [1, 4]
    assert expert_parallel_sizes(64, Nodes(8, 8)) == [1, 8, 64]
    assert expert_parallel_sizes(12, Nodes(3, 2)) == [1, 2, 6]


def test_a_connection_is_a_name_or_two_measured_rates():
    assert INTERCONNECTS["nvlink4-ndr"].between_bytes_per_s == EFFICIENCY * 400e9
    given = read_interconnect("360:320.5")
    assert (given.within_bytes_per_s, given.between_bytes_per_s) == (360e9, 320.5e9)


@pytest.mark.parametrize("text", ["", "infiniband", "360", "360:", "0:1", "-1:5", "nan:1", "inf:1", "1:2:3", "1e9:1"])
def test_any_other_connection_is_refused_with_the_known_names(text):
    with pytest.raises(ConfigError, match=r"--interconnect is .*nvlink4-ndr.*360:320"):
        read_interconnect(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "many"], "--nodes is 'many'"),
        (["--nodes", "0"], "--nodes is '0'"),
        (["--nodes", "1,,2"], "--nodes is '1,,2'"),
        (["--nodes", "2", "--gpus-per-node", "0"], "--gpus-per-node 0"),
        (["--gpus-per-node", "8"], "belong to --nodes"),
        (["--interconnect", "nvlink4-ndr"], "belong to --nodes"),
        (["--nodes", "2", "--interconnect", "string"], "--interconnect is 'string'"),
    ],
)
def test_what_names_no_nodes_is_refused_before_anything_is_planned(options, message, tmp_path, capsys):
    assert chorus(["plan", "mini", "--run-dir", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_plan_shows_a_step_on_many_cards_for_each_stage(tmp_path, capsys):
    command = ["plan", "mini", "--run-dir", str(tmp_path / "run"), "--nodes", "1,64", "--interconnect", "pcie4-25gbit"]
    assert chorus([*command, "--json"]) == 0
    stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    rows = stages["student"]["scaling"]
    assert {(row["nodes"], row["cards"]) for row in rows} == {(1, 8), (64, 8)}
    assert {row["expert_parallel"] for row in rows} == {1, 4}
    assert {row["zero_stage"] for row in rows} == {0, 1, 2, 3}
    # A student of shared blocks sends less than its teacher.
    teacher = stages["teacher"]["scaling"][0]
    assert rows[0]["within_bytes"] < teacher["within_bytes"]
    assert "scaling" not in stages["evaluation"]

    assert chorus(command) == 0
    output = capsys.readouterr().out
    assert "student on many cards, with a micro-batch on each" in output
    assert "64 x 8" in output
    assert "A shared block's gradient is sent once" in output
