"""What a step costs: the objective's parts, and the distance from a teacher."""

import gradients
import pytest
import torch

from launcher.recipe import DistillConfig, OptimizerConfig
from launcher.training.schedule import learning_rate
from launcher.training.tasks import Distill, Pretrain, last_layers_of_groups
from model.encoder import EncoderConfig
from model.recognizer import Recognizer, RecognizerConfig

DENSE = RecognizerConfig(
    encoder=gradients.CONFIG.encoder.model_copy(update={"experts": None, "groups": 4}),
    decoder=gradients.CONFIG.decoder,
)


def teacher_and_task(until: float = 1.0) -> tuple[Recognizer, Distill]:
    torch.manual_seed(0)
    teacher = Recognizer(DENSE, gradients.MEL_BINS, gradients.VOCABULARY).eval().requires_grad_(False)
    config = DistillConfig.model_validate({"hidden": {"cosine": 1.0}, "until": until})
    return teacher, Distill(Pretrain(gradients.OBJECTIVE, DENSE.encoder), config, teacher, DENSE.encoder)


def student(seed: int = 1) -> Recognizer:
    torch.manual_seed(seed)
    return Recognizer(DENSE, gradients.MEL_BINS, gradients.VOCABULARY)


def test_a_student_equal_to_its_teacher_is_at_no_distance():
    teacher, task = teacher_and_task()
    twin = student()
    twin.load_state_dict(teacher.state_dict())
    parts, _ = task(twin.train(), gradients.micro_batch(0), gradients.totals(), 0.0)
    for name in ("distill/hidden", "distill/ctc", "distill/decoder"):
        assert parts[name].item() == pytest.approx(0.0, abs=1e-5), name
    assert parts["distill/cosine"].item() > 0  # -log sigmoid(1) is its floor


def test_learning_from_the_teacher_alone_brings_the_student_nearer():
    _, task = teacher_and_task()
    pupil = student().train()
    optimizer = torch.optim.Adam(pupil.parameters(), lr=3e-3)
    first = last = {}
    for step in range(40):
        parts, _ = task(pupil, gradients.micro_batch(2), gradients.totals(), 0.0)
        distances = {name: part for name, part in parts.items() if name.startswith("distill/")}
        first = first or {name: part.item() for name, part in distances.items()}
        optimizer.zero_grad()
        torch.stack(list(distances.values())).sum().backward()
        optimizer.step()
        last = {name: part.item() for name, part in distances.items()}
        assert step == 0 or all(torch.isfinite(torch.tensor(list(last.values()))))
    for name in ("distill/hidden", "distill/ctc", "distill/decoder"):
        assert last[name] < 0.5 * first[name], name


def test_the_teacher_is_left_alone_and_stops_when_the_recipe_says():
    teacher, task = teacher_and_task(until=0.7)
    pupil = student().train()
    early, _ = task(pupil, gradients.micro_batch(0), gradients.totals(), 0.69)
    late, _ = task(pupil, gradients.micro_batch(0), gradients.totals(), 0.71)
    assert "distill/hidden" in early
    assert not any(name.startswith("distill/") for name in late)
    torch.stack(list(early.values())).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_validation_measures_recognition_alone():
    _, task = teacher_and_task()
    parts, _ = task(student().eval(), gradients.micro_batch(0), gradients.totals(), 0.0)
    assert set(parts) == {"loss/ctc", "loss/attention"}


def test_a_step_costs_the_same_however_its_lanes_are_dealt():
    recognizer, task = gradients.build()
    together = [task(recognizer, gradients.micro_batch(lane), gradients.totals(), 0.0)[0] for lane in range(4)]
    total = sum(part for parts in together for part in parts.values())
    one = {name: sum(parts[name] for parts in together) for name in together[0]}
    torch.testing.assert_close(total, sum(one.values()))
    empty_lane = together[3]
    assert all(part.item() == 0.0 for part in empty_lane.values())


def test_hidden_states_are_compared_where_groups_end():
    assert last_layers_of_groups(EncoderConfig(layers=12, groups=2)) == (5, 11)
    assert last_layers_of_groups(EncoderConfig(layers=4, groups=2, sharing="cyclic")) == (2, 3)


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
