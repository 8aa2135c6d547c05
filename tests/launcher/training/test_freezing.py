"""Frozen parts of a model stay as they started, whatever cuts and spreads it; all else learns."""

import json
from functools import cache

import gradients
import processes
import pytest
import torch
from paths import HELPERS

from launcher.recipe.freezing import frozen_names
from launcher.run_folder import StageFolder
from launcher.training.checkpoint import Checkpoint
from launcher.training.freezing import freeze

# Dense parts, experts, a router, and a part over the encoder.
PATTERNS = ("encoder.subsampling", "encoder.blocks.0.*", "*.router.*", "decoder.embedding.*")


@cache
def start() -> dict[str, torch.Tensor]:
    return {name: values.detach().clone() for name, values in gradients.build()[0].named_parameters()}


def frozen_of(patterns) -> set[str]:
    recognizer, _ = gradients.build()
    freeze(recognizer, frozen_names(patterns, dict(recognizer.named_parameters())))
    return {name for name, parameter in recognizer.named_parameters() if not parameter.requires_grad}


def test_a_part_is_frozen_by_its_name_or_a_pattern_and_its_experts_are_counted_whole():
    recognizer, _ = gradients.build()
    named = frozen_names(["encoder.blocks.1", "decoder.*"], dict(recognizer.named_parameters()))
    frozen = freeze(recognizer, named)
    names = {name for name, parameter in recognizer.named_parameters() if not parameter.requires_grad}
    assert names == {name for name in start() if name.startswith(("encoder.blocks.1.", "decoder."))}
    assert frozen.values == sum(start()[name].numel() for name in names)
    assert frozen.all_values == sum(values.numel() for values in start().values())
    assert f"{len(names)} of {len(start())} parameters" in frozen.describe()


@pytest.mark.parametrize(
    ("world", "expert_parallel", "deepspeed"),
    [
        (2, 1, "zero0"),
        (2, 2, "zero2"),
        (2, 2, "zero3"),
        pytest.param(1, 1, "zero0", marks=pytest.mark.slow),
        pytest.param(2, 2, "zero1", marks=pytest.mark.slow),
        pytest.param(2, 1, "zero2", marks=pytest.mark.slow),
        pytest.param(2, 1, "zero3", marks=pytest.mark.slow),
    ],
)
def test_frozen_parts_stay_to_the_bit_and_a_resumed_training_goes_on(tmp_path, world, expert_parallel, deepspeed):
    arguments = [str(HELPERS / "frozen.py"), str(tmp_path), str(expert_parallel), deepspeed, *PATTERNS]
    processes.run(arguments, world, tmp_path / "log")
    result = json.loads((tmp_path / "result.json").read_text())
    names = frozen_of(PATTERNS)
    saved = Checkpoint(StageFolder(tmp_path).checkpoint(2))
    for name, values in start().items():
        assert torch.equal(saved.whole("weight", name), values) == (name in names), name
        moments = set(saved.kinds(name)) - {"weight"}
        assert moments == (set() if name in names else {"exp_avg", "exp_avg_sq"}), name
    assert result["values"] == sum(start()[name].numel() for name in names)
    assert result["repeated"] == pytest.approx(result["losses"][2], rel=1e-6)


def test_a_group_of_which_all_is_frozen_needs_no_optimizer(tmp_path):
    """What decays, or what does not, may be frozen as a whole."""
    matrices = sorted({name for name, values in start().items() if values.ndim > 1 and values.shape[-2] > 1})
    arguments = [str(HELPERS / "frozen.py"), str(tmp_path), "1", "zero2", *matrices]
    processes.run(arguments, 1, tmp_path / "log")
    saved = Checkpoint(StageFolder(tmp_path).checkpoint(2))
    assert all(torch.equal(saved.whole("weight", name), start()[name]) for name in matrices)
