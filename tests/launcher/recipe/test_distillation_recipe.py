"""What a recipe may say about distillation, and what the schedules make of it."""

from pathlib import Path

import pytest
from splits import summary_of

from launcher.errors import ConfigError
from launcher.recipe import DistillConfig, dump, load_recipe
from launcher.recipe import distillation as distillation_schema
from launcher.recipe.distillation import WeightSchedule
from launcher.run_folder import RunFolder, read_json, write_json
from launcher.stages.fingerprint import hash_value
from launcher.stages.pipeline import Pipeline, StageNode, build_pipeline


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
    computed = {progress: WeightSchedule(**schedule).factor(progress, until=0.8) for progress in factors}
    assert computed == pytest.approx(factors)


def test_a_term_that_does_not_count_now_has_no_factor():
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
    teachers.append("initialize_from_teacher=false")
    bridged = "distill.hidden={layers: [3], projection: true, resample: true}"
    recipe = load_recipe("mini", [f"stages.student.{change}" for change in (*other, *teachers, bridged)])
    assert recipe.training_stage("student").distill.hidden.projection
    for key, message in (
        ("projection", "encoder.width is 64"),
        ("resample", "factor is 8 and its teacher's is 4"),
    ):
        without = bridged.replace(f"{key}: true", f"{key}: false")
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


def teachers_with(keys: str) -> list[str]:
    """Overrides that give the student of `mini` two teachers, the first one with some keys."""
    teachers = f"[{{model: teacher, {keys}}}, {{model: some/model, terms: [decoder]}}]"
    return ["stages.student.teacher=null", f"stages.student.teachers={teachers}"]


def test_the_former_name_of_a_teachers_input_is_still_read_and_a_line_says_so(tmp_path, caplog):
    distillation_schema._warn_of_former_key.cache_clear()
    former = load_recipe("mini", teachers_with("hears: clean"))
    load_recipe("mini", teachers_with("hears: waveform"))
    assert [record.getMessage() for record in caplog.records] == [
        "The key hears of a teacher is now called input; it is read as that."
    ]
    assert former == load_recipe("mini", teachers_with("input: clean"))
    assert "hears" not in dump(former)


def test_a_teacher_with_both_names_of_its_input_is_refused():
    message = refusal(*teachers_with("hears: clean, input: clean"))
    assert "hears is the former name of input, and both are given; keep input" in message
    assert "stages.student.teachers" in message


@pytest.fixture
def student_of(tmp_path):
    """Return a function from a teacher's keys to the pipeline and the student of a run whose inputs are there."""
    run = RunFolder(tmp_path / "run")
    write_json(tmp_path / "shards" / "train" / "shards.json", summary_of("0"))
    write_json(tmp_path / "teacher" / "model.safetensors", "weights of the teacher")
    for name in ("tokenizer.model", "tokenizer.json", "features.json"):
        write_json(run.tokenizer / name, {})

    def student(keys: str) -> tuple[Pipeline, StageNode]:
        teachers = f"stages.student.teachers=[{{model: {tmp_path}/teacher, {keys}}}]"
        corpus = f"corpus={{shards: {tmp_path}/shards}}"
        pipeline = Pipeline(load_recipe("mini", [corpus, "stages.student.teacher=null", teachers]), run)
        return pipeline, next(node for node in pipeline.nodes if node.name == "student")

    return student


@pytest.mark.parametrize("keys", ["input: clean", "weight: 1"])
def test_a_finished_stage_whose_record_has_the_former_name_of_input_does_not_run_again(student_of, keys):
    """done(record with hears) == done(record with input), for an input that is given and for the default."""
    pipeline, node = student_of(keys)
    pipeline.started(node, pipeline.status_of(node))
    write_json(pipeline.run.stage("student").model / "model.safetensors", "weights of the student")
    pipeline.ended(node, "done")
    assert pipeline.status_of(node).done

    # The record as a version wrote it that knew the former name alone.
    state = read_json(pipeline.run.state_file)
    record = state["stages"]["student"]
    (teacher,) = record["settings"]["teachers"]
    teacher["hears"] = teacher.pop("input")
    record["fingerprint"] = hash_value({key: record[key] for key in ("settings", "inputs")})
    write_json(pipeline.run.state_file, state)

    pipeline, node = student_of(keys)
    assert pipeline.status_of(node).done
    pipeline, node = student_of("input: waveform")
    assert pipeline.status_of(node).reason.startswith("changed: teachers")
