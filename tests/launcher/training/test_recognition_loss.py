"""What a step costs: the objective's parts."""

import gradients
import pytest
import torch

from launcher.recipe import OptimizerConfig
from launcher.training.recognition_loss import RecognitionLoss, balance_sum
from launcher.training.schedule import learning_rate
from model.encoder import EncoderConfig
from model.losses import ObjectiveConfig
from model.moe.router import ExpertsConfig, Router, RouterConfig
from model.recognizer import Recognizer


def test_a_step_costs_the_same_however_its_lanes_are_dealt():
    recognizer, task = gradients.build()
    together = [task(recognizer, gradients.micro_batch(lane), gradients.totals(), 0.0)[0] for lane in range(4)]
    total = sum(part for parts in together for part in parts.values())
    one = {name: sum(parts[name] for parts in together) for name in together[0]}
    torch.testing.assert_close(total, sum(one.values()))
    empty_lane = together[3]
    assert all(part.item() == 0.0 for part in empty_lane.values())


def test_each_weight_of_the_experts_adds_its_part_in_proportion():
    recognizer, _ = gradients.build()

    def parts(**weights: float) -> dict[str, float]:
        objective = ObjectiveConfig(**weights)
        found, _ = RecognitionLoss(objective, gradients.CONFIG.encoder)(
            recognizer, gradients.micro_batch(0), gradients.totals(), 0.0
        )
        return {name: part.item() for name, part in found.items()}

    assert {"loss/z", "loss/sparsity"}.isdisjoint(parts())
    for weight, part in (("balance_weight", "balance"), ("z_weight", "z"), ("sparsity_weight", "sparsity")):
        once, twice = (parts(**{weight: value})[f"loss/{part}"] for value in (0.5, 1.0))
        assert once > 0.01
        assert twice == pytest.approx(2 * once, rel=1e-5)


def test_a_balance_over_groups_lets_layers_that_share_experts_differ():
    """Layer 0 uses expert 0 alone and layer 1 expert 1: E = 2 apart, 1 together; layer 2, alone, is 2 anyway."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    router = Router(4, 2, RouterConfig())
    routings = [router.choose(row.repeat(10, 1).log().t()) for row in rows]
    for scope, expected in (("layer", 2 + 2 + 2), ("group", 1 + 1 + 2)):
        experts = ExpertsConfig.model_validate({"count": 2, "balance_scope": scope})
        encoder = EncoderConfig(layers=3, groups=1, private_tail=1, experts=experts)
        assert balance_sum(routings, encoder, experts).item() == pytest.approx(expected)


def test_a_balance_over_groups_keeps_the_places_of_experts_apart():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    router = Router(4, 2, RouterConfig())
    routings = [router.choose(row.repeat(10, 1).log().t()) for row in rows]
    experts = ExpertsConfig.model_validate({"count": 2, "balance_scope": "group", "placement": "both"})
    encoder = EncoderConfig(layers=1, groups=1, experts=experts)
    assert balance_sum(routings, encoder, experts).item() == pytest.approx(2 + 2)


def test_a_second_decoder_learns_texts_backwards_for_its_share_of_the_attention_part():
    decoder = gradients.CONFIG.decoder.model_copy(update={"right_to_left_layers": 1})
    torch.manual_seed(3)
    recognizer = Recognizer(
        gradients.CONFIG.model_copy(update={"decoder": decoder}), gradients.MEL_BINS, gradients.VOCABULARY
    )
    plain, task = gradients.build()
    before, _ = task(plain, gradients.micro_batch(0), gradients.totals(), 0.0)
    parts = {}
    for share in (0.0, 0.25):
        weighed = RecognitionLoss(
            gradients.OBJECTIVE.model_copy(update={"reverse_weight": share}), gradients.CONFIG.encoder
        )
        parts[share], _ = weighed(recognizer, gradients.micro_batch(0), gradients.totals(), 0.0)
    assert "loss/reverse_attention" not in before
    torch.testing.assert_close(parts[0.0]["loss/attention"], before["loss/attention"])
    torch.testing.assert_close(parts[0.25]["loss/attention"], 0.75 * before["loss/attention"])
    parts[0.25]["loss/reverse_attention"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in recognizer.reverse_decoder.layers.parameters())
    assert all(parameter.grad is None for parameter in recognizer.decoder.parameters())


def test_the_transducers_weight_scales_its_loss_and_no_other():
    recognizer, task = gradients.build()
    parts, _ = task(recognizer, gradients.micro_batch(0), gradients.totals(), 0.0)
    halved = RecognitionLoss(
        gradients.OBJECTIVE.model_copy(update={"transducer_weight": 0.5}), gradients.CONFIG.encoder
    )
    other, _ = halved(recognizer, gradients.micro_batch(0), gradients.totals(), 0.0)
    assert parts["loss/transducer"].item() > 0
    for name, part in parts.items():
        torch.testing.assert_close(other[name], part * (0.5 if name == "loss/transducer" else 1.0))


@pytest.mark.parametrize("schedule", ["cosine", "tri_stage", "inverse_square_root"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_end(schedule):
    config = OptimizerConfig.model_validate(
        {"schedule": schedule, "peak_learning_rate": 1e-3, "warmup_steps": 100, "final_ratio": 0.02}
    )
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    end = {"cosine": 2e-5, "tri_stage": 2e-5, "inverse_square_root": 1e-3 * 0.1**0.5}[schedule]
    assert rates[-1] == pytest.approx(end, rel=0.02)
