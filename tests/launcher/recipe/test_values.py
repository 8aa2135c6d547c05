"""What the values of a recipe and of --set are read as: by YAML 1.2, and a number only where a number is given."""

import pytest
import yaml

from data.sampling.sampler import BatchesConfig
from launcher.cli import main as chorus
from launcher.errors import ConfigError
from launcher.recipe import dump, load_recipe, validate
from launcher.recipe.search import read_search
from launcher.recipe.yaml_io import apply_override, dump_values, parse_value

TEXTS_OF_YAML_1_1 = ["yes", "No", "ON", "off", "y", "1:30", "190:20:30.15", "1_000", "0b1010", "2024-01-01", "=", "."]
OTHER_TEXTS = ["1e3x", "0o8", "0x", "1.2.3", "+-1", "inf", "nan", "Inf", "True story", "<<<"]


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_recipe("mini", overrides)
    return str(error.value)


@pytest.mark.parametrize("text", [*TEXTS_OF_YAML_1_1, *OTHER_TEXTS])
def test_a_word_stays_a_word(text):
    assert parse_value(text, "it") == text
    assert load_recipe("mini", [f"stages.teacher.about={text}"]).training_stage("teacher").about == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-007", -7),
        ("+12", 12),
        ("0o17", 15),
        ("0xff", 255),
        ("1e3", 1000.0),
        ("1E-3", 0.001),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -float("inf")),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("'30'", "30"),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
    ],
)
def test_what_is_no_word_is_what_yaml_1_2_says(text, value):
    parsed = parse_value(text, "it")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["yes", "true", "1:30", "1_000", "0b11", "'30'", "inf", ".inf", ".nan", "1e400", "1.5"]
)
@pytest.mark.parametrize("key", ["stages.teacher.steps", "cluster.processes", "seed"])
def test_what_is_no_whole_number_is_refused_where_things_are_counted(key, text):
    assert f"{key} is " in refusal(f"{key}={text}")


@pytest.mark.parametrize("text", ["yes", "true", "1:30", "1_000.5", "'0.1'", "inf", "nan", ".inf", "-.INF", ".nan"])
@pytest.mark.parametrize(
    "key",
    [
        "stages.teacher.optimizer.peak_learning_rate",
        "stages.student.distill.ctc.weight",
        "stages.evaluation.search.length_bonus",
        "augment.time_ratio",
    ],
)
def test_what_is_no_finite_number_is_refused_where_things_are_measured(key, text):
    search = "stages.evaluation.search={kind: prefix_beam}"
    assert f"{key} is " in refusal(search, f"{key}={text}")


@pytest.mark.parametrize("text", ["[true, 1.0]", "[1.0, .inf]", "['1.0']"])
def test_numbers_in_a_list_are_held_to_the_same(text):
    assert "augment.speeds" in refusal(f"augment.speeds={text}")


@pytest.mark.parametrize("text", ["1e3", "1.0e3", "1000.0", "1000", "01000"])
def test_a_whole_number_may_be_written_with_an_exponent(text):
    assert load_recipe("mini", [f"stages.teacher.steps={text}"]).training_stage("teacher").steps == 1000


def test_several_values_that_are_no_numbers_are_named_in_one_paragraph():
    message = refusal(
        "seed=true", "stages.teacher.steps=true", "stages.teacher.optimizer.clip_norm=true", "batches.lanes=true"
    )
    assert "seed is True (bool): input should be a number. " in message
    assert "There is 1 more problem." in message
    assert "\n" not in message


def test_a_number_where_a_text_is_meant_is_refused_with_what_would_make_it_one():
    assert "about is 1000.0 (float): input should be a valid string; in quotes it is one" in refusal(
        "stages.teacher.about=1e3"
    )
    assert load_recipe("mini", ["stages.teacher.about='1e3'"]).training_stage("teacher").about == "1e3"


def test_searches_and_options_of_other_commands_are_held_to_the_same(tmp_path, capsys):
    values = {"kind": "prefix_beam"}
    apply_override(values, "beam=true")
    with pytest.raises(ConfigError, match=r"search\.beam is True \(bool\): input should be a number"):
        read_search(values, "The search of these options")
    with pytest.raises(ConfigError, match="seconds is nan"):
        validate(BatchesConfig, {"seconds": float("nan")}, "chorus shards stats")
    options = ["prepare", "aelita", "--out", str(tmp_path)]
    for value in ("yes", "1:30", ".inf", "true"):
        assert chorus([*options, "--span-s", value]) == 2
        assert "span_s is " in capsys.readouterr().err
    assert chorus([*options, "--span-s", "!!int x"]) == 2
    assert "The value of --span-s is not readable as YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["!!int x", "!!float x", "&a [*a]", "&a {b: *a}", "9" * 5000, "[" * 3000, "{a: 1, a: 2}", "'", "!!python/none x"],
)
def test_a_value_that_cannot_be_read_is_refused_in_a_paragraph(text):
    message = refusal(f"seed={text}")
    assert "is not readable as YAML" in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize("content", [b"name: \xff\xfe\n", "name: r\n".encode("utf-16"), b"name: \x00\n"])
def test_a_recipe_that_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"recipe\.yaml is not (UTF-8|readable)"):
        load_recipe(path)


@pytest.mark.parametrize(
    "text", [*TEXTS_OF_YAML_1_1, *OTHER_TEXTS, "1e3", "0o17", "010", "true", "~", ".inf", "<<", ""]
)
def test_a_text_is_written_so_that_every_reader_of_yaml_takes_it_for_a_text(text):
    written = dump_values({"about": text})
    assert yaml.safe_load(written) == {"about": text}
    assert parse_value(written, "it") == {"about": text}


def test_a_recipe_with_such_texts_loads_again_to_the_same_one(tmp_path):
    recipe = load_recipe("mini", ["name='1e3'", "stages.teacher.about='0o17'", "seed=1e3"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe


def test_a_stage_set_to_null_is_left_out_as_by_a_recipe_that_extends_another():
    recipe = load_recipe("mini", ["stages.evaluation=null", "stages.with-language-model=null"])
    assert [stage.name for stage in recipe.stages] == ["teacher", "student"]
    left_out = ("stages.student=null", "stages.with-language-model=null")
    recipe = load_recipe("mini", ["seeds=[1, 2]", *left_out, "stages.evaluation.models=[teacher]"])
    assert [stage.name for stage in recipe.stages] == ["teacher-1", "teacher-2", "evaluation"]
    assert "evaluates 'student', which is not an earlier training stage" in refusal("stages.student=null")
    assert "has no item named 'evalation'; did you mean 'evaluation'?" in refusal("stages.evalation=null")


def test_a_name_where_there_is_nothing_to_name_is_told_so():
    sentence = "'student', which is not an earlier training stage; there is none. A finished model"
    assert sentence in refusal("stages.teacher.initialize_from=student")


def test_keys_of_a_stage_are_replaced_together():
    recipe = load_recipe("mini", ["stages.teacher={steps: 3, log_every: 1}"])
    teacher = recipe.training_stage("teacher")
    assert (teacher.steps, teacher.log_every) == (3, 1)
    assert teacher.model == load_recipe("mini").training_stage("teacher").model
    assert "give keys of it" in refusal("stages.teacher=3")


def test_a_teacher_set_to_null_is_left_out():
    teachers = "stages.student.teachers=[{model: teacher, name: a}, {model: teacher, name: b}]"
    overrides = ["stages.student.teacher=null", teachers, "stages.student.teachers.b=null"]
    student = load_recipe("mini", overrides).training_stage("student")
    assert [teacher.name for teacher in student.teachers] == ["a"]
