"""What a recipe may say about distillation, and what the schedules make of it."""

import pytest

from launcher.errors import ConfigError
from launcher.recipe import DistillConfig, load_recipe
from launcher.recipe.distillation import WeightSchedule


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_recipe("mini", overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ({}, {0.0: 1, 0.5: 1, 0.79: 1, 0.8: 0, 1.0: 0}),
        ({"warmup": 0.2}, {0.0: 0, 0.05: 0.25, 0.1: 0.5, 0.2: 1, 0.7: 1, 0.8: 0}),
        ({"until": 0.5}, {0.0: 1, 0.49: 1, 0.5: 0}),
        ({"until": 1.0}, {0.9: 1, 1.0: 0}),
        ({"decay": 0.4}, {0.0: 1, 0.4: 1, 0.6: 0.5, 0.7: 0.25, 0.8: 0}),
        ({"warmup": 0.1, "until": 0.6, "decay": 0.5}, {0.0: 0, 0.05: 0.5, 0.1: 1, 0.35: 0.5, 0.6: 0}),
    ],
)
def test_a_weight_rises_stays_and_falls_as_its_schedule_says(schedule, factors):
    found = {progress: WeightSchedule(**schedule).factor(progress, until=0.8) for progress in factors}
    assert found == pytest.approx(factors)


def test_a_term_that_does_not_count_now_is_left_out():
    config = DistillConfig.model_validate(
        {"until": 0.7, "ctc": {"schedule": {"until": 0.3}}, "decoder": {"schedule": {"warmup": 0.2, "until": 1}}}
    )
    assert set(config.factors(0.0)) >= {"hidden", "ctc"}
    assert "decoder" not in config.factors(0.0)
    assert config.factors(0.1)["decoder"] == pytest.approx(0.5)
    assert "ctc" not in config.factors(0.3)
    assert set(config.factors(0.9)) == {"decoder"}


def test_a_schedule_longer_than_its_term_is_refused():
    message = refusal("stages.student.distill.ctc.schedule={warmup: 0.5, decay: 0.4, until: 0.8}")
    assert "ctc.schedule rises for 0.5 of the steps and falls for 0.4" in message
    assert "more than the 0.8" in message
