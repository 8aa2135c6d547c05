"""What a stage cannot start from is refused before anything starts, by the recipe alone or with a model's folder."""

import json

import pytest
import yaml

from data.features import FeaturesConfig
from launcher.errors import ConfigError
from launcher.recipe import check_inputs, load_recipe
from model.recognizer import RecognizerConfig

DENSE = {"layers": 2, "width": 32, "heads": 2, "feedforward_width": 48}
EXPERTS = {**DENSE, "experts": {"count": 2}}


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe of two stages, the second of which starts from the first one or a folder."""

    def write(first=None, second=None, start=None, **keys):
        source = {"name": "source", "kind": "pretrain", "steps": 5, "model": {"encoder": first or DENSE}}
        stage = {"name": "target", "kind": "pretrain", "steps": 5, "model": {"encoder": second or DENSE}}
        stage |= {"initialize_from": str(start or "source"), **keys}
        values = {"name": "r", "corpus": {"name": "aelita"}, "batches": {}, "stages": [source, stage]}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_recipe(path)

    return write


@pytest.fixture
def folder(tmp_path):
    """Leave the descriptions of a finished model, without weights."""

    def write(encoder, features=None):
        path = tmp_path / "finished" / "model"
        path.mkdir(parents=True)
        config = RecognizerConfig.model_validate({"encoder": encoder})
        description = {
            "format": 1,
            "recognizer": config.model_dump(mode="json"),
            "mel_bins": 80,
            "vocabulary_size": 30,
            "block_of_layer": config.encoder.block_of_layer,
        }
        (path / "model.json").write_text(json.dumps(description))
        (path / "model.safetensors").touch()
        stored = FeaturesConfig.model_validate(features or {}).model_dump(mode="json")
        (path / "features.json").write_text(json.dumps({"config": stored, "mean": [0.0] * 80, "std": [1.0] * 80}))
        return path

    return write


# (what is started from, what is to start, and what is said of them)
MISFITS = [
    (EXPERTS, DENSE, "the starting encoder has experts itself"),
    (EXPERTS, {**EXPERTS, "experts": {"count": 4}}, "has experts itself"),
    (DENSE, {**DENSE, "layers": 4}, "its encoder.layers is 4 and the starting encoder's 2"),
    (DENSE, {**DENSE, "width": 64}, "its encoder.width is 64"),
    (DENSE, {**DENSE, "feedforward_width": 64}, "its encoder.feedforward_width is 64"),
    (DENSE, {**DENSE, "kernel_size": 7}, "its encoder.kernel_size is 7"),
    (DENSE, {**DENSE, "subsampling": {"factor": 8}}, "its encoder.subsampling is"),
]


@pytest.mark.parametrize(("first", "second", "fragment"), MISFITS)
def test_an_encoder_that_cannot_start_as_a_stages_is_refused_with_the_recipe(recipe, first, second, fragment):
    with pytest.raises(ConfigError) as error:
        recipe(first, second)
    message = str(error.value)
    assert "Stage target cannot start from source (initialize_from): " in message
    assert fragment in message
    assert "teacher" not in message


@pytest.mark.parametrize(("first", "second", "fragment"), MISFITS)
def test_an_encoder_that_cannot_start_as_a_folders_is_refused_before_anything_starts(
    recipe, folder, first, second, fragment
):
    start = folder(first)
    with pytest.raises(ConfigError) as error:
        check_inputs(recipe(second=second, start=start))
    assert f"Stage target cannot start from {start} (initialize_from): " in str(error.value)
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("first", "second"), [(DENSE, DENSE), (EXPERTS, EXPERTS), (DENSE, EXPERTS), (DENSE, {**DENSE, "groups": 1})]
)
def test_what_fits_is_taken(recipe, folder, first, second):
    recipe(first, second)
    check_inputs(recipe(second=second, start=folder(first)))


def test_a_folder_that_was_trained_on_other_features_is_refused_before_anything_starts(recipe, folder):
    with pytest.raises(ConfigError, match=r"Stage target cannot start from .* its features\.hop_ms was 8\.0 and is 10"):
        check_inputs(recipe(start=folder(DENSE, {"hop_ms": 8.0})))


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ("encoder.feedforward_width=32", "its encoder.feedforward_width is 32"),
        ("decoder.layers=2", "the decoders of student and teacher differ"),
    ],
)
def test_a_student_that_cannot_start_from_its_teacher_is_refused_with_the_recipe(change, fragment):
    start = "stages.student.initialize_from_teacher=true"
    load_recipe("mini", [start])
    load_recipe("mini", ["stages.student.initialize_from_teacher=false", f"stages.student.model.{change}"])
    with pytest.raises(ConfigError) as error:
        load_recipe("mini", [start, f"stages.student.model.{change}"])
    assert "Stage student cannot start from teacher teacher (initialize_from_teacher): " in str(error.value)
    assert fragment in str(error.value)


def test_a_student_that_cannot_start_from_the_folder_of_its_teacher_is_refused_before_anything_starts(folder):
    teacher = folder(EXPERTS)
    overrides = [
        f"stages.student.teacher={teacher}",
        f"stages.student.model={{encoder: {json.dumps(DENSE)}}}",
        "stages.student.distill.hidden.layers=[1]",
        "features.mel_bins=80",
    ]
    with pytest.raises(ConfigError, match=r"cannot start from teacher .*: the teacher has experts itself"):
        check_inputs(load_recipe("mini", overrides))
