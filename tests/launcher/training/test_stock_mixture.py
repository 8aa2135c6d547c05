"""Routing and experts are those of DeepSpeed's own mixture of experts where that drops no frames.

Both choose by the softmax of the same logits in fp32, weigh one choice by its probability and two by their shares of
both. DeepSpeed's balance loss is `first_choice`, which for one choice is `switch`. What it has and we have not: noise
on the second choice, a random order of dropping, and buffers padded to the fullest expert.
"""

import processes
import pytest
import torch
from paths import HELPERS


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("stock")
    processes.run([str(HELPERS / "stock_mixture.py"), str(folder)], 1, folder / "log")
    return torch.load(folder / "compared.pt")


@pytest.mark.parametrize("per_frame", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_a_mixture_equals_deepspeeds_own(compared, per_frame, residual):
    found = compared[per_frame, residual]
    assert int(found["counts"][0].sum()) == 60 * per_frame
    for name, (ours, theirs) in found.items():
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-5, check_dtype=False, msg=lambda text, name=name: f"{name}: {text}"
        )
