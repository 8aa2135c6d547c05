"""What a plan says of memory against what engines keep, to the byte."""

import json
from pathlib import Path

import engines
import gradients
import processes
import pytest

from launcher.memory import Memory, ParameterSize, memory_per_process, parameter_sizes
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


def memory(processes: int, expert_parallel: int, **zero) -> Memory:
    return memory_per_process(SIZES, processes, expert_parallel, {"contiguous_gradients": True, **zero})


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
    assert [m.gradients for m in kept] == [whole, whole, owned, owned]
    assert [m.weights for m in kept] == [whole, whole, whole, owned + 4 * 1_000]
    assert [m.master for m in kept] == [0, owned, owned, 0]


def test_the_buffers_of_the_backward_pass_are_as_large_as_the_configuration_makes_them():
    assert memory(2, 1, stage=2).communication == 4 * 500_000_000
    assert memory(2, 1, stage=2, reduce_bucket_size=1e6).communication == 4 * 10**6
    assert memory(2, 1, stage=2, reduce_bucket_size=1e6, overlap_comm=True).communication == 8 * 10**6
    assert memory(2, 1, stage=3, reduce_bucket_size=1e6, overlap_comm=True).communication == 4 * 10**6
    assert memory(2, 1, stage=1, contiguous_gradients=False).communication == 0
    assert memory(2, 1, stage=0).communication == 4 * 5_001_000
    assert memory(1, 1, stage=0).communication == 0
