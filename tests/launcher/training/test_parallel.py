"""A step on several processes is the step of one: gradients and their norm, with experts spread or not."""

import json
from functools import cache
from pathlib import Path

import expert_options
import gradients
import processes
import pytest
import torch

from launcher.recipe import find_deepspeed_config, read_deepspeed_config


@cache
def reference() -> dict[str, torch.Tensor]:
    return gradients.reference()


def assert_equal_gradients(
    found: dict[str, tuple[int, torch.Tensor]], reference: dict[str, torch.Tensor], norm: float
) -> None:
    assert found.keys() == reference.keys()
    for name, (start, gradient) in found.items():
        expected = reference[name].flatten()[start : start + gradient.numel()]
        difference = (gradient.flatten() - expected).norm()
        # Some gradients vanish by their mathematics (a key's bias, which softmax does not see) and are only rounding.
        allowed = 1e-5 * (expected.norm() + 1e-3 * norm)
        assert difference <= allowed, f"{name}: {difference:.1e} of {expected.norm():.1e}"


@pytest.mark.parametrize(
    ("world", "expert_parallel", "deepspeed"),
    [
        (1, 1, "zero2"),
        (2, 2, "zero2"),
        (2, 1, "zero2"),
        (2, 2, "zero1"),
        (4, 2, "zero2"),
        (2, 2, "zero3"),
        (2, 1, "zero3"),
        pytest.param(4, 2, "zero3", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_one_process(tmp_path: Path, world, expert_parallel, deepspeed):
    script = Path(gradients.__file__)
    processes.run([str(script), str(tmp_path), str(expert_parallel), deepspeed], world, tmp_path / "log")
    norm = torch.cat([gradient.flatten() for gradient in reference().values()]).norm().item()
    seen: dict[str, set[int]] = {}
    clipped = 0.0
    for rank in range(world):
        result = torch.load(tmp_path / f"rank-{rank}.pt")
        assert_equal_gradients(result["gradients"], reference(), norm)
        assert result["norm"] == pytest.approx(norm, rel=1e-5)
        clipped += result["clipped"]
        for name, (start, _) in result["gradients"].items():
            seen.setdefault(name, set()).add(start)
    assert clipped**0.5 == pytest.approx(gradients.CLIP_NORM, rel=1e-4)
    spread = {name for name, starts in seen.items() if len(starts) == expert_parallel > 1}
    experts = {name for name in reference() if ".experts." in name}
    assert spread == (experts if expert_parallel > 1 else set())


# No parameter fits the bucket, and ZeRO 3 gathers a module's weights for its use alone, shared blocks at every use.
TIGHT = {
    "reduce_bucket_size": 100,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_buckets_smaller_than_a_parameter_change_no_gradient(tmp_path: Path, stage):
    values = read_deepspeed_config(find_deepspeed_config(f"zero{stage}"))
    own = {key: size for key, size in TIGHT.items() if stage == 3 or not key.startswith("stage3")}
    values["zero_optimization"] |= own
    file = tmp_path / "tight.json"
    file.write_text(json.dumps(values))
    processes.run([gradients.__file__, str(tmp_path), "2", str(file)], 2, tmp_path / "log")
    norm = torch.cat([gradient.flatten() for gradient in reference().values()]).norm().item()
    for rank in range(2):
        assert_equal_gradients(torch.load(tmp_path / f"rank-{rank}.pt")["gradients"], reference(), norm)


@pytest.fixture
def plain():
    """Gives the small student back as it was."""
    kept = gradients.CONFIG, gradients.OBJECTIVE
    yield
    gradients.CONFIG, gradients.OBJECTIVE = kept


@pytest.mark.parametrize(
    ("scope", "deepspeed"),
    [
        ("conditioned", "zero2"),
        pytest.param("group", "zero2", marks=pytest.mark.slow),
        pytest.param("conditioned", "zero3", marks=pytest.mark.slow),
        pytest.param("group", "zero3", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_one_process_with_every_option_of_the_experts(tmp_path: Path, plain, scope, deepspeed):
    expert_options.configure(scope)
    recognizer, task = gradients.build()
    _, output = task(recognizer, gradients.micro_batch(0), gradients.totals(), 0.0)
    assert all(not routing.kept_NK.all() for routing in output.encoder.routings)
    expected = gradients.reference()
    processes.run([expert_options.__file__, str(tmp_path), scope, deepspeed], 2, tmp_path / "log")
    norm = torch.cat([gradient.flatten() for gradient in expected.values()]).norm().item()
    starts: dict[str, set[int]] = {}
    for rank in range(2):
        result = torch.load(tmp_path / f"rank-{rank}.pt")
        assert_equal_gradients(result["gradients"], expected, norm)
        assert result["norm"] == pytest.approx(norm, rel=1e-5)
        for name, (start, _) in result["gradients"].items():
            starts.setdefault(name, set()).add(start)
    spread = {name for name, found in starts.items() if len(found) == 2}
    assert spread == {name for name in expected if ".mixture.experts." in name}
    assert {name.split(".")[3] for name in spread} == {"feedforward1", "feedforward2"}
