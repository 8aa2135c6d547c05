"""What a recipe may say about distillation, and what the schedules make of it."""

from pathlib import Path

import pytest

from launcher.errors import ConfigError
from launcher.recipe import DistillConfig, dump, load_recipe
from launcher.recipe.distillation import WeightSchedule
from launcher.stages.pipeline import StageNode, build_pipeline


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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.sequence={weight: 1, texts: 3}"], "the search greedy finds 1 at most"),
        (["distill.sequence={weight: 1, search: prefix_beam, texts: 9}"], "the search prefix_beam finds 8 at most"),
        (["distill.units={weight: 1, count: 50, frames: 40}"], "50 units cannot be made from 40 frames"),
        (["distill.units={weight: 1, layer: 6}"], "predicts units from layer 6 (distill.units.layer)"),
        (
            ["distill.units={weight: 1, teacher_layer: 6}"],
            "names layer 6 of its teacher in distill.units.teacher_layer",
        ),
        (["teachers=[{model: teacher}]"], "both teacher and teachers are given"),
        (["teacher=null"], "neither teacher nor teachers are given"),
        (["teacher=null", "teachers=[{model: techer}]"], "did you mean 'teacher'?"),
        (["teacher=null", "teachers=[{model: teacher}, {model: teacher}]"], "teachers has 2 named 'teacher'"),
        (["teacher=null", "teachers=[{model: teacher, terms: [units]}]"], "distill.units weighs nothing"),
        (
            ["teacher=null", "teachers=[{model: teacher, terms: [hidden, ctc]}]"],
            "no teacher has decoder among its terms",
        ),
        (["teacher=null", "teachers=[{model: teacher, layers: [5, 6]}]"], "name as many of both"),
        (["teacher=null", "teachers=[{model: teacher, layers: [6]}]"], "names layer 6 of its teacher in teachers"),
    ],
)
def test_what_cannot_be_learnt_is_refused(overrides, message):
    assert message in refusal(*(f"stages.student.{override}" for override in overrides))


def test_width_depth_and_frame_rate_are_bridged_where_the_recipe_says_so():
    other = ["model.encoder.width=64", "model.encoder.layers=4", "model.encoder.subsampling.factor=8"]
    teachers = ["teacher=null", "teachers=[{model: teacher, layers: [5]}]", "distill.ctc.weight=0"]
    bridged = "distill.hidden={layers: [3], projection: true, resample: true}"
    recipe = load_recipe("mini", [f"stages.student.{change}" for change in (*other, *teachers, bridged)])
    assert recipe.training_stage("student").distill.hidden.projection
    for left_out, message in (
        ("projection", "encoder.width is 64"),
        ("resample", "factor is 8 and its teacher's is 4"),
    ):
        without = bridged.replace(f"{left_out}: true", f"{left_out}: false")
        changes = [*other, *teachers, without]
        assert message in refusal(*(f"stages.student.{change}" for change in changes))


def test_a_list_of_teachers_is_dumped_with_absolute_folders_and_loads_again(tmp_path):
    teachers = (
        "stages.student.teachers=[{model: teacher, weight: 2}, {model: some/model, name: other, terms: [decoder]}]"
    )
    recipe = load_recipe("mini", ["stages.student.teacher=null", teachers])
    first, second = recipe.training_stage("student").named_teachers
    assert (first.name, second.name) == ("teacher", "other")
    assert Path(second.model).is_absolute()
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe


def test_a_stage_depends_on_what_its_teachers_are_and_teach_not_on_where_they_lie():
    def node(teachers: str) -> StageNode:
        recipe = load_recipe("mini", ["stages.student.teacher=null", f"stages.student.teachers={teachers}"])
        return next(node for node in build_pipeline(recipe) if node.name == "student")

    here, there = (node(f"[{{model: {place}/model}}, {{model: teacher}}]") for place in ("/here", "/there"))
    assert here.settings == there.settings
    assert here.inputs[-2:] == ("/here/model", "teacher")
    assert node("[{model: /here/model, weight: 2}, {model: teacher}]").settings != here.settings
