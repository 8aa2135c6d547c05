"""Recipes that repeat their stages under several seeds, or extend another recipe."""

import pytest

from launcher.errors import ConfigError
from launcher.planning.machine import machine_of
from launcher.planning.table import plan_table
from launcher.recipe import dump as dump_recipe
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.pipeline import Pipeline, build_pipeline

SEEDS = "seeds=[1, 5]"


@pytest.fixture
def write(tmp_path):
    """Write a recipe and return its path."""

    def recipe(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return recipe


def test_seeds_repeat_every_training_stage_and_teachers_keep_to_their_seed():
    recipe = load_recipe("mini", [SEEDS])
    trainings = ["teacher-1", "teacher-5", "student-1", "student-5"]
    assert [stage.name for stage in recipe.stages] == [*trainings, "evaluation", "with-language-model"]
    assert recipe.stage("evaluation").models == ("teacher-1", "teacher-5", "student-1", "student-5")
    student = recipe.training_stage("student-5")
    assert (student.teacher, student.repeats, recipe.seed_of(student)) == ("teacher-5", "student", 5)
    assert recipe.seed == 1


def test_teachers_in_a_list_and_starts_keep_to_their_seed_too():
    teachers = (
        "stages.student.teachers=[{model: teacher, terms: [ctc, decoder]}, {model: some/folder, terms: [hidden]}]"
    )
    recipe = load_recipe("mini", [SEEDS, "stages.student.teacher=null", teachers])
    first, second = recipe.training_stage("student-5").named_teachers
    assert first.model == "teacher-5"
    assert second.model.endswith("some/folder")
    stage = "{name: again, kind: pretrain, initialize_from: teacher, steps: 3, model: {encoder: {layers: 6}}}"
    listed = "{name: teacher, kind: pretrain, steps: 3, model: {encoder: {layers: 6}}}"
    recipe = load_recipe("mini", [SEEDS, f"stages=[{listed}, {stage}]"])
    assert recipe.training_stage("again-1").initialize_from == "teacher-1"


def test_a_setting_of_a_repeated_stage_reaches_all_its_repetitions():
    recipe = load_recipe("mini", [SEEDS, "stages.teacher.steps=7"])
    assert {recipe.training_stage(name).steps for name in ("teacher-1", "teacher-5")} == {7}


def test_a_recipe_with_seeds_is_written_out_and_loads_again_to_the_same_one(write):
    recipe = load_recipe("mini", [SEEDS])
    assert load_recipe(write(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize("seeds", ["3", "[]", "[1, 1]", "[-1]", "[one]", "[true]"])
def test_seeds_that_are_none_are_refused(seeds):
    with pytest.raises(ConfigError, match="seeds is"):
        load_recipe("mini", [f"seeds={seeds}"])


@pytest.mark.parametrize("override", ["stages.evaluation.models=[{a: 1}]", "stages.student.teacher={a: 1}"])
def test_what_is_no_name_of_a_stage_is_refused_under_seeds_as_without(override):
    path = override.partition("=")[0].replace("student", "student-1")
    with pytest.raises(ConfigError, match=rf"{path}.* is \{{'a': 1\}} \(dict\)"):
        load_recipe("mini", [SEEDS, override])


def test_a_seed_is_part_of_what_a_stage_is_and_its_name_and_remarks_are_not():
    def settings(*overrides):
        return {node.name: node.settings.values for node in build_pipeline(load_recipe("mini", overrides))}

    repeated = settings(SEEDS, "stages.teacher.about=big")
    teacher = settings()["teacher"]
    assert repeated["teacher-1"] == teacher
    assert repeated["teacher-5"] == {**teacher, "seed": 5}


def test_repetitions_are_stages_of_their_own_and_are_planned_once(tmp_path):
    recipe = load_recipe("mini", [SEEDS])
    run = RunFolder(tmp_path)
    names = [node.name for node, _ in Pipeline(recipe, run).statuses()]
    assert {"teacher-1", "teacher-5", "student-1", "student-5"} <= set(names)
    table = plan_table(recipe, run, [2], machine_of(recipe.cluster, [2]))
    assert list(table["stages"]) == ["teacher-1", "student-1"]
    assert all(".teacher-" not in setting for setting in table["proposal"]["settings"])


def test_merged_keys_and_aliases_are_copies(write):
    path = write(
        """
name: merged
corpus: {name: aelita}
batches: {lanes: 1, seconds: 5}
stages:
  - &one {name: one, kind: pretrain, steps: 5, model: &model {encoder: {layers: 2}}}
  - {<<: *one, name: two}
"""
    )
    recipe = load_recipe(path, ["stages.two.model.encoder.layers=3"])
    assert recipe.training_stage("one").model.encoder.layers == 2
    assert recipe.training_stage("two").model.encoder.layers == 3
    assert recipe.training_stage("two").steps == 5


def test_a_stage_that_copies_another_follows_it_and_differs_in_its_own_keys_alone(write):
    keys = "{copy: student, steps: 9, model: {encoder: {dropout: 0.2}}}"
    models = "evaluation: {models: [student, second]}, with-language-model: null"
    recipe = load_recipe(write(f"extends: mini\nname: two\nstages: {{second: {keys}, {models}}}\n"))
    assert [stage.name for stage in recipe.stages] == ["teacher", "student", "second", "evaluation"]
    student = recipe.training_stage("student")
    second = recipe.training_stage("second")
    assert second.steps == 9
    encoder = student.model.encoder.model_copy(update={"dropout": 0.2})
    model = student.model.model_copy(update={"encoder": encoder})
    assert second == student.model_copy(update={"name": "second", "steps": 9, "model": model})
    # The one that is copied is as it was.
    assert student == load_recipe("mini").training_stage("student")


def test_a_recipe_extends_another_section_by_section_and_stage_by_stage(write):
    path = write("extends: mini\nname: longer\nbatches: {lanes: 3, seconds: 4}\nstages: {student: {steps: 9}}\n")
    recipe = load_recipe(path, ["cluster.processes=1", "cluster.expert_parallel=1"])
    mini = load_recipe("mini")
    assert (recipe.name, recipe.batches.lanes) == ("longer", 3)
    assert recipe.training_stage("student") == mini.training_stage("student").model_copy(update={"steps": 9})
    assert recipe.training_stage("teacher") == mini.training_stage("teacher")
    without = write(
        "extends: mini\nstages: {student: null, evaluation: {models: [teacher]}, with-language-model: null}\n"
    )
    assert [stage.name for stage in load_recipe(without).stages] == ["teacher", "evaluation"]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("extends: minni\n", "did you mean 'mini'"),
        ("extends: mini\nstages: {teachr: {steps: 3}}\n", "did you mean 'teacher'"),
        ("extends: mini\nstages: {teacher: null}\n", "teacher of stage student is 'teacher', which is not an earlier"),
        ("extends: mini\nstages: {teacher: 3}\n", "give keys of one of its stages"),
        ("extends: mini\nstages: {second: {copy: studnet}}\n", "changes stage 'second' of mini"),
    ],
)
def test_an_extension_of_what_is_not_there_is_refused_with_the_nearest(write, text, fragment):
    with pytest.raises(ConfigError, match=fragment):
        load_recipe(write(text))
