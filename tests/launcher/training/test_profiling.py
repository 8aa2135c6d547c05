"""A profile of some steps, and garbage that is collected between steps only."""

import gc
import json

import pytest
import torch

from launcher.errors import ConfigError
from launcher.recipe import load_recipe
from launcher.training.profiling import COLLECT_EVERY_STEPS, GarbageCollection, StepProfiler


def run_steps(profiler: StepProfiler, steps: range) -> None:
    for step in steps:
        profiler.before_step(step)
        torch.full((2, 2), float(step)) @ torch.ones(2, 2)
        profiler.after_step(step + 1)
    profiler.finish()


@pytest.mark.parametrize(("steps", "num_products"), [(range(10), 3), (range(4, 10), 2), (range(4), 1)])
def test_the_steps_of_the_range_and_no_others_are_in_the_trace(tmp_path, steps, num_products):
    run_steps(StepProfiler(range(3, 6), tmp_path / "profile", rank=1), steps)
    events = json.loads((tmp_path / "profile" / "rank-01.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::matmul" for event in events) == num_products


@pytest.mark.parametrize("steps", [range(0), range(20, 30)])
def test_without_a_step_of_the_range_nothing_is_written(tmp_path, steps):
    run_steps(StepProfiler(steps, tmp_path / "profile", rank=0), range(10))
    assert not (tmp_path / "profile").exists()


def test_a_range_without_a_step_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match=r"profile_steps is \[5, 3\], which names no step"):
        load_recipe("mini", ["cluster.profile_steps=[5, 3]"])


def test_garbage_is_collected_after_the_same_steps_and_at_no_other_moment():
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    def num_cycles() -> int:
        return sum(isinstance(item, Cycle) for item in gc.get_objects())

    with GarbageCollection() as garbage_collection:
        assert not gc.isenabled()
        Cycle()
        garbage_collection.after_step(COLLECT_EVERY_STEPS - 1)
        assert num_cycles() == 1
        garbage_collection.after_step(COLLECT_EVERY_STEPS)
        assert num_cycles() == 0
    assert gc.isenabled()
