"""Models that a user names: folders, stages of runs, models of the package."""

import pytest

from launcher.errors import CheckpointError
from launcher.inference import model_lookup
from launcher.inference.model_lookup import find_model, packaged_models


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "packaged"
    (folder / "aelita").mkdir(parents=True)
    (folder / "aelita" / "model.safetensors").write_bytes(b"")
    (folder / "half").mkdir()
    monkeypatch.setattr(model_lookup, "PACKAGED_MODELS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_model_is_found_by_its_folder_by_its_stage_and_by_its_name(package, tmp_path):
    stage = tmp_path / "run" / "student"
    (stage / "model").mkdir(parents=True)
    (stage / "model" / "model.safetensors").write_bytes(b"")
    assert find_model(str(stage)) == stage / "model"
    assert find_model(str(stage / "model")) == stage / "model"
    assert packaged_models() == ["aelita"]
    assert find_model("aelita") == package / "aelita"


def test_a_folder_of_the_user_goes_before_a_model_of_the_package(package, tmp_path):
    (tmp_path / "aelita").mkdir()
    (tmp_path / "aelita" / "model.safetensors").write_bytes(b"")
    assert str(find_model("aelita")) == "aelita"


@pytest.mark.parametrize("name", ["alita", "half", "gpt-4"])
def test_a_name_of_no_model_says_which_there_are(package, name):
    with pytest.raises(CheckpointError, match=f"no model called {name}.* This installation has aelita"):
        find_model(name)


@pytest.mark.parametrize(("name", "meant"), [("alita", True), ("Aelita", True), ("aelita2", True), ("whisper", False)])
def test_a_name_that_is_nearly_one_is_proposed(package, name, meant):
    with pytest.raises(CheckpointError) as raised:
        find_model(name)
    assert ("Did you mean aelita?" in str(raised.value)) is meant


@pytest.mark.parametrize("name", ["runs/none", "../aelita", "/nowhere", "packaged"])
def test_a_path_without_a_model_says_what_it_lacks(package, name):
    with pytest.raises(CheckpointError, match="holds no finished model"):
        find_model(name)


def test_an_installation_without_models_says_so(package, monkeypatch, tmp_path):
    monkeypatch.setattr(model_lookup, "PACKAGED_MODELS", tmp_path / "none")
    with pytest.raises(CheckpointError, match="This installation has no model of its own"):
        find_model("aelita")
