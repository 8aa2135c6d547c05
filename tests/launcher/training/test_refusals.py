"""What Chorus refuses because DeepSpeed computes it wrongly is still computed wrongly.

Each test goes past the refusal. One that fails says that the installed DeepSpeed mended it, and that the refusal in
launcher/recipe/deepspeed_config.py can go.
"""

import json
from pathlib import Path

import automatic
import gradients
import processes
import pytest
import reentrant
import torch


def take_step(tmp_path: Path, zero: dict, script: Path = Path(gradients.__file__)) -> list[dict]:
    """One step of two processes that share one set of experts; what each of them found."""
    configuration = tmp_path / "deepspeed.json"
    configuration.write_text(json.dumps({"zero_optimization": zero}))
    processes.run([str(script), str(tmp_path), "2", str(configuration)], 2, tmp_path / "log")
    return [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]


def wrong_gradients(results: list[dict], reference: dict[str, torch.Tensor]) -> dict[str, float]:
    """The relative error of each parameter's gradient that is off by more than a hundredth."""
    norm = torch.cat([gradient.flatten() for gradient in reference.values()]).norm()
    errors: dict[str, float] = {}
    for result in results:
        for name, (start, gradient) in result["gradients"].items():
            expected = reference[name].flatten()[start : start + gradient.numel()]
            error = (gradient.flatten() - expected).norm() / (expected.norm() + 1e-3 * norm)
            errors[name] = max(errors.get(name, 0.0), error.item())
    return {name: error for name, error in errors.items() if error > 0.01}


def test_zero_1_without_contiguous_gradients_mixes_different_experts(tmp_path):
    results = take_step(tmp_path, {"stage": 1, "contiguous_gradients": False})
    reference = gradients.reference()
    assert wrong_gradients(results, reference).keys() == {name for name in reference if ".experts." in name}


@pytest.mark.slow
def test_zero_0_with_spread_experts_clips_to_another_norm(tmp_path):
    results = take_step(tmp_path, {"stage": 0})
    reference = gradients.reference()
    assert not wrong_gradients(results, reference)
    clipped = sum(result["clipped"] for result in results) ** 0.5
    # Where the clipping is right, it is right to 1e-4.
    assert clipped != pytest.approx(gradients.CLIP_NORM, rel=1e-3)


@pytest.fixture
def checkpointed():
    kept = gradients.CONFIG, gradients.OBJECTIVE
    reentrant.configure()
    yield
    gradients.CONFIG, gradients.OBJECTIVE = kept


@pytest.mark.slow
def test_zero_2_with_reentrant_checkpointing_of_shared_blocks_aborts(tmp_path):
    with pytest.raises(AssertionError, match="has already been reduced"):
        take_step(tmp_path, {"stage": 2}, Path(reentrant.__file__))


@pytest.mark.slow
def test_zero_3_with_reentrant_checkpointing_of_shared_blocks_gives_wrong_gradients(tmp_path, checkpointed):
    results = take_step(tmp_path, {"stage": 3}, Path(reentrant.__file__))
    assert wrong_gradients(results, gradients.reference())


@pytest.mark.slow
def test_automatic_expert_parallelism_gives_every_layer_its_own_copy_of_shared_experts(tmp_path):
    processes.run([automatic.__file__, str(tmp_path)], 2, tmp_path / "log")
    for rank in range(2):
        assert torch.load(tmp_path / f"rank-{rank}.pt") == {"before": True, "after": False}
