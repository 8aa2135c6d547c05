"""What a plan says of a process's memory is what a real training takes."""

import json

import pytest
from memory import measure
from memory_worker import Case

from launcher.recipe import find_deepspeed_config, read_deepspeed_config


@pytest.mark.parametrize(
    "case",
    [
        Case("small", 0, accumulation=2),
        Case("small", 2, processes=2, expert_parallel=2, accumulation=2),
        Case("small", 3, processes=2, accumulation=2),
    ],
    ids=["zero 0", "zero 2, experts spread", "zero 3"],
)
def test_a_training_holds_within_a_tenth_of_what_the_plan_says(tmp_path, case):
    """|prediction - most bytes of distinct storages at once| <= 0.1 of these."""
    values = read_deepspeed_config(find_deepspeed_config(f"zero{case.zero}"))
    if case.zero:
        values["zero_optimization"]["reduce_bucket_size"] = 10**6  # the model, not the bucket, is to be compared
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps(values))
    found = measure(Case(**{**vars(case), "deepspeed": str(file)}))
    assert found.predicted == pytest.approx(found.tensors, rel=0.1)
