"""What a step costs: the objective's parts, and the distance from a teacher."""

import gradients
import pytest
import torch

from launcher.recipe import DistillConfig, OptimizerConfig
from launcher.training.distillation import Distill, last_layers_of_groups
from launcher.training.schedule import learning_rate
from launcher.training.tasks import Pretrain, balance_sum
from model.encoder import EncoderConfig
from model.objectives import ObjectiveConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.router import ExpertsConfig, Router, RouterConfig

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


def test_each_term_follows_its_own_schedule():
    teacher, _ = teacher_and_task()
    schedules = {"hidden": {"schedule": {"warmup": 0.4}}, "ctc": {"schedule": {"until": 0.5, "decay": 0.5}}}
    task = Distill(
        Pretrain(gradients.OBJECTIVE, DENSE.encoder), DistillConfig.model_validate(schedules), teacher, DENSE.encoder
    )
    plain = Distill(Pretrain(gradients.OBJECTIVE, DENSE.encoder), DistillConfig(), teacher, DENSE.encoder)
    pupil = student().train()
    always, _ = plain(pupil, gradients.micro_batch(0), gradients.totals(), 0.1)
    for progress, hidden, ctc in ((0.0, None, 1.0), (0.1, 0.25, 0.8), (0.4, 1.0, 0.2), (0.6, 1.0, None)):
        parts, _ = task(pupil, gradients.micro_batch(0), gradients.totals(), progress)
        for name, factor in (("distill/hidden", hidden), ("distill/ctc", ctc), ("distill/decoder", 1.0)):
            assert (name in parts) == (factor is not None)
            if factor is not None:
                torch.testing.assert_close(parts[name], factor * always[name])


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


def test_each_weight_of_the_experts_adds_its_part_in_proportion():
    recognizer, _ = gradients.build()

    def parts(**weights: float) -> dict[str, float]:
        objective = ObjectiveConfig(**weights)
        found, _ = Pretrain(objective, gradients.CONFIG.encoder)(
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
    routings = [router._choose(row.repeat(10, 1).log(), row.repeat(10, 1)) for row in rows]
    for scope, expected in (("layer", 2 + 2 + 2), ("group", 1 + 1 + 2)):
        experts = ExpertsConfig.model_validate({"count": 2, "balance_scope": scope})
        encoder = EncoderConfig(layers=3, groups=1, private_tail=1, experts=experts)
        assert balance_sum(routings, encoder, experts).item() == pytest.approx(expected)


def test_a_balance_over_groups_keeps_the_places_of_experts_apart():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    router = Router(4, 2, RouterConfig())
    routings = [router._choose(row.repeat(10, 1).log(), row.repeat(10, 1)) for row in rows]
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
        weighed = Pretrain(gradients.OBJECTIVE.model_copy(update={"reverse_weight": share}), gradients.CONFIG.encoder)
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
    halved = Pretrain(gradients.OBJECTIVE.model_copy(update={"transducer_weight": 0.5}), gradients.CONFIG.encoder)
    other, _ = halved(recognizer, gradients.micro_batch(0), gradients.totals(), 0.0)
    assert parts["loss/transducer"].item() > 0
    for name, part in parts.items():
        torch.testing.assert_close(other[name], part * (0.5 if name == "loss/transducer" else 1.0))


def test_hidden_states_are_compared_where_groups_end():
    assert last_layers_of_groups(EncoderConfig(layers=12, groups=2)) == (5, 11)
    assert last_layers_of_groups(EncoderConfig(layers=4, groups=2, sharing="cyclic")) == (2, 3)
    assert last_layers_of_groups(EncoderConfig(layers=6, groups=2, private_head=1, private_tail=1)) == (0, 2, 4, 5)


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
