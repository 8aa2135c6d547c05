"""What a plan says of memory against what engines keep, to the byte."""

import json
from pathlib import Path

import engines
import gradients
import processes
import pytest

from launcher.planning.memory import Memory, ParameterSize, memory_per_process, parameter_sizes
from launcher.recipe import find_deepspeed_config, read_deepspeed_config

GATHER_ALL = {"stage": 3, "contiguous_gradients": True, "stage3_param_persistence_threshold": 0}


@pytest.mark.parametrize(("world", "expert_parallel"), [(1, 1), (2, 1), (2, 2)])
def test_an_engine_keeps_what_the_plan_says(tmp_path: Path, world, expert_parallel):
    # Without ZeRO spread experts are refused, see launcher/recipe/deepspeed_config.py.
    levels = [level for level in range(4) if level or expert_parallel == 1]
    lets_go = tmp_path / "lets-go.json"
    lets_go.write_text(json.dumps({"zero_optimization": GATHER_ALL}))
    names = [*(f"zero{level}" for level in levels), str(lets_go)]
    processes.run([engines.__file__, str(tmp_path), str(expert_parallel), *names], world, tmp_path / "log")
    sizes = parameter_sizes(gradients.build()[0])
    for name in names:
        zero = read_deepspeed_config(find_deepspeed_config(name))["zero_optimization"]
        memory = memory_per_process(sizes, world, expert_parallel, zero)
        expected = {"weights": memory.weights, "master": memory.master, "moments": memory.moments}
        for rank in range(world):
            assert json.loads((tmp_path / f"rank-{rank}.json").read_text())[name] == expected, (name, rank)


SIZES = [
    ParameterSize(4_000_000, True, True),
    ParameterSize(1_000_000, False, True),
    ParameterSize(1_000, False, False),
]


def memory(processes: int, expert_parallel: int, accumulation: int = 1, **zero) -> Memory:
    return memory_per_process(SIZES, processes, expert_parallel, {"contiguous_gradients": True, **zero}, accumulation)


def test_spread_experts_are_cut_over_the_processes_that_hold_the_same_ones():
    together, spread = memory(4, 1, stage=2), memory(4, 2, stage=2)
    assert together.weights == 4 * 5_001_000
    assert spread.weights == 4 * 3_001_000
    assert together.moments == spread.moments == 2 * 4 * 5_001_000 // 4
    assert memory(4, 4, stage=2).master == 4 * (1_000_000 + 1_001_000 // 4)


def test_each_zero_stage_cuts_one_more_thing():
    whole, owned = 4 * 5_001_000, 5_001_000
    kept = [memory(4, 1, stage=stage) for stage in range(4)]
    assert [m.moments for m in kept] == [2 * whole, 2 * owned, 2 * owned, 2 * owned]
    # In the first micro-batch of ZeRO 1 and 2 gradients go from the bucket into the partition at once.
    assert [m.gradients for m in kept] == [whole, 0, 0, owned]
    assert [m.message for m in kept] == [0, owned + whole, owned + whole, 4 * 5_000_000]
    again = [memory(4, 1, stage=stage, accumulation=2) for stage in range(4)]
    assert [m.gradients for m in again] == [whole, whole, owned, owned]
    # Both matrices of all experts, as they come and their sum.
    assert {m.incoming for m in again} == {2 * 2 * 4 * 4_000_000}
    assert {m.incoming for m in kept} == {0}
    assert [m.weights for m in kept] == [whole, whole, whole, owned + 4 * 1_000]
    assert [m.master for m in kept] == [0, owned, owned, owned]


def test_the_buffers_of_the_backward_pass_are_as_large_as_the_configuration_makes_them():
    assert memory(2, 1, stage=2).communication == 4 * 500_000_000
    assert memory(2, 1, stage=2, reduce_bucket_size=1e6).communication == 4 * 10**6
    assert memory(2, 1, stage=2, reduce_bucket_size=1e6, overlap_comm=True).communication == 8 * 10**6
    assert memory(2, 1, stage=3, reduce_bucket_size=1e6, overlap_comm=True).communication == 4 * 10**6
    assert memory(2, 1, stage=1, contiguous_gradients=False).communication == 0


def test_without_zero_the_update_holds_gradients_and_a_copy_or_what_adamw_needs_for_the_largest_parameter():
    even = [ParameterSize(10, False, True)] * 8
    assert memory_per_process(even, 2, 1, {"stage": 0}).update == 4 * (80 + 80)
    assert memory_per_process(even, 1, 1, {"stage": 0}).update == 4 * (80 + 2 * 10)


def test_what_zero_3_gathers_is_limited_as_the_configuration_says():
    assert memory(2, 1, stage=3).gathered == 4 * 5_000_000
    limits = {"stage3_max_live_parameters": 3e6, "stage3_prefetch_bucket_size": 1e6}
    limited = memory(2, 1, stage=3, **limits)
    assert (limited.gathered, limited.message) == (4 * 3_000_000, 4 * 1_000_000)
    assert memory(1, 1, stage=3).gathered == 0


def test_the_peak_is_in_the_backward_pass_or_in_the_update():
    kept = memory(2, 1, stage=2, reduce_bucket_size=2_500_500)
    between = kept.weights + kept.master + kept.moments
    assert kept.peak(0) == between + kept.update
    large = 10 * kept.update
    assert kept.peak(large) == between + kept.communication + max(large, kept.message + large // 2)
