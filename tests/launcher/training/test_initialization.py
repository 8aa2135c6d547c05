"""A stage starts as a finished model of either layout, and says what was copied and what was drawn anew."""

import pytest
import torch
import yaml
from small_models import write_small_model

from launcher.errors import CheckpointError, ConfigError
from launcher.export.hub_folder import write_hub_folder
from launcher.export.model_files import load_tokenizer, open_model_files
from launcher.recipe import check_inputs, load_recipe
from launcher.recipe.checks import check_model_folders
from launcher.recipe.teachers import read_spec
from launcher.run_folder import RunFolder
from launcher.stages.context import StageContext
from launcher.training.initialization import initialize_from_model
from model.export import load_model, read_description
from model.recognizer import Recognizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in ("shared with experts", "transducer"):
        write_small_model(root / kind.split()[0], kind, features="log_mel")
    hub = root / "hub"
    hub.mkdir()
    write_hub_folder(hub, open_model_files(root / "shared"), "a card")
    return root


def recipe_from(folder, start_from=None, **changes):
    """A recipe of one stage of the shape of a folder's model, which starts from it or from elsewhere."""
    recognizer = read_description(folder).recognizer
    assert recognizer is not None
    stage = {"name": "tuned", "kind": "pretrain", "steps": 5, "model": recognizer.model_dump(mode="json")}
    stage |= {"initialize_from": str(start_from or folder), **changes.pop("stage", {})}
    values = {"name": "r", "corpus": {"name": "aelita"}, "batches": {}, "stages": [stage], **changes}
    file = folder.parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return load_recipe(file)


def start(folder, pieces=None, **changes):
    recipe = recipe_from(folder, stage=changes)
    stage = recipe.training_stage("tuned")
    torch.manual_seed(7)
    recognizer = Recognizer(stage.model, recipe.features.mel_bins, len(pieces or load_tokenizer(folder).pieces))
    context = StageContext(recipe, RunFolder("nowhere"), stage)
    return recognizer, initialize_from_model(recognizer, context, pieces or load_tokenizer(folder).pieces)


@pytest.mark.parametrize("name", ["shared", "hub", "transducer"])
def test_all_of_a_model_is_copied_to_the_bit_where_the_tokens_are_the_same(models, name):
    recognizer, told = start(models / name)
    # As it is stored: what other programs read has its kernels merged.
    source = load_model(models / name).state_dict()
    for key, values in recognizer.state_dict().items():
        assert values.equal(source[key]), key
    assert told.drawn == {}
    assert told.describe().startswith(f"started from {models / name}: encoder, ctc")


def test_other_tokens_are_said_in_one_paragraph(models):
    pieces = load_tokenizer(models / "transducer").pieces
    recognizer, told = start(models / "transducer", [*pieces[:-1], "other"])
    source = open_model_files(models / "transducer").recognizer.state_dict()
    assert recognizer.encoder.state_dict()["subsampling.first.weight"].equal(source["encoder.subsampling.first.weight"])
    assert not recognizer.ctc.weight.equal(source["ctc.weight"])
    text = told.describe()
    assert "ctc.weight drawn anew, because it has a row for each token, and the tokens are others" in text
    assert "\n" not in text


def test_outputs_stay_as_drawn_where_the_recipe_says_so(models):
    recognizer, told = start(models / "transducer", initialize_outputs=False)
    source = open_model_files(models / "transducer").recognizer.state_dict()
    assert not recognizer.ctc.weight.equal(source["ctc.weight"])
    assert told.copied == ("encoder",)
    assert set(told.drawn.values()) == {"initialize_outputs is false"}


def test_a_folder_of_hugging_faces_layout_is_a_start_before_anything_starts(models):
    assert read_spec(models / "hub", "The teacher").kind == "chorus"
    check_model_folders(recipe_from(models / "hub"))
    with pytest.raises(ConfigError, match=r"cannot start from .*hub.*: its features\.hop_ms was 10\.0 and is 8"):
        check_model_folders(recipe_from(models / "hub", features={"hop_ms": 8}))


def test_a_model_that_vanished_since_is_one_paragraph(models, tmp_path):
    recipe = recipe_from(models / "shared", tmp_path / "gone")
    with pytest.raises(CheckpointError, match="holds no finished model"):
        check_inputs(recipe)
    stage = recipe.training_stage("tuned")
    recognizer = Recognizer(stage.model, recipe.features.mel_bins, 9)
    with pytest.raises(CheckpointError, match="cannot be read"):
        initialize_from_model(recognizer, StageContext(recipe, RunFolder("nowhere"), stage), [])
