"""Augmentation in a recipe: refused before any process starts, and part of what a stage is."""

import os
import shutil

import numpy as np
import pytest
import soundfile
import yaml
from small_runs import STAGE, recipe_values, write_shards

from data.augmentation import codecs
from launcher.cli import main
from launcher.errors import ConfigError
from launcher.recipe import check_inputs, load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.pipeline import Pipeline, build_pipeline


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noises")
    soundfile.write(folder / "hum.wav", np.full(1000, 0.1, np.float32), 16_000)
    return folder


@pytest.fixture
def recipe_file(shards, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(shards)))
    return path


def refusal(recipe_file, *overrides):
    with pytest.raises(ConfigError) as error:
        check_inputs(load_recipe(recipe_file, overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


# --- refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("augment.noise={probability: 0.5}", "augment.noise.recordings is missing"),
        ("augment.noise={recordings: /nowhere/noises}", "augment.noise.recordings cannot be used. /nowhere/noises is"),
        ("augment.babble={recordings: /nowhere/voices}", "augment.babble.recordings cannot be used"),
        ("augment.reverberation={recordings: /nowhere/rooms}", "augment.reverberation.recordings cannot be used"),
        ("augment.noise={recordings: 'chain::http://nowhere'}", "augment.noise.recordings cannot be used"),
        ("augment.volume={probability: 1.5}", "augment.volume.probability is 1.5"),
        ("augment.volume={gain_db: [6, -6]}", "augment.volume.gain_db: it is [6, -6]; give the lowest value and then"),
        ("augment.volume={gain_db: [true, 6]}", "augment.volume.gain_db"),
        ("augment.clipping={level: [0, 1]}", "augment.clipping.level: it is [0, 1]"),
        ("augment.codec={kinds: [gsm]}", "augment.codec.kinds"),
        ("augment.codec={opus_kbps: [1, 2]}", "augment.codec.opus_kbps"),
        ("augment.codec={mp3_kbps: [64, 320]}", "augment.codec.mp3_kbps is [64, 320], and at 16000 Hz"),
        ("augment.telephone={low_hz: 1900, high_hz: 1000}", "augment.telephone: low_hz is 1900 and high_hz 1000"),
        ("augment.reverberation={rt60_s: [0, 1]}", "augment.reverberation.rt60_s"),
        ("augment.echo={}", "augment.echo is not a key"),
        ("augment.noise={recording: x}", "augment.noise.recording is not a key"),
        (
            f"stages.{STAGE}.augment={{noise: {{recordings: /nowhere}}}}",
            f"stages.{STAGE}.augment.noise.recordings cannot",
        ),
    ],
)
def test_what_cannot_be_augmented_is_refused_with_its_key(recipe_file, override, expected):
    assert expected in refusal(recipe_file, override)


def test_noise_of_another_rate_is_refused(recipe_file, shards):
    noise = f"augment.noise={{recordings: {shards}/dev}}"
    assert "have 16000 Hz, and features.sample_rate_hz is 8000" in refusal(
        recipe_file, noise, "features.sample_rate_hz=8000"
    )
    check_inputs(load_recipe(recipe_file, [noise]))


def test_a_telephone_of_a_corpus_below_its_rate_is_refused(recipe_file):
    low = "features={sample_rate_hz: 4000, mel_bins: 20}"
    assert "augment.telephone is the band of lines of 8000 Hz" in refusal(recipe_file, low, "augment.telephone={}")


def test_a_codec_whose_extra_is_not_installed_is_refused_with_what_to_install(recipe_file, monkeypatch):
    load_recipe(recipe_file, ["augment.codec={kinds: [g722]}"])
    monkeypatch.setattr(codecs.importlib.util, "find_spec", lambda name: None)
    message = refusal(recipe_file, "augment.codec={kinds: [mu_law, g722]}")
    assert "augment.codec.kinds has g722, and the package G722 is not installed" in message
    assert "pip install 'chorus-asr[g722]'" in message
    load_recipe(recipe_file, ["augment.codec={kinds: [g722], probability: 0}"])


def test_the_command_ends_with_2_and_starts_nothing(recipe_file, tmp_path, capsys):
    options = [str(recipe_file), "--set", "augment.noise={recordings: /nowhere}"]
    assert main(["run", *options, "--run-dir", str(tmp_path / "run")]) == 2
    assert "augment.noise.recordings cannot be used. /nowhere is no folder" in capsys.readouterr().err
    assert not (tmp_path / "run" / "state.json").exists()
    assert main(["plan", *options]) == 2


# --- part of what a stage is --------------------------------------------------------------------------


def training_node(recipe):
    (node,) = [node for node in build_pipeline(recipe) if node.name == STAGE]
    return node


def test_a_recipe_without_augmentation_is_what_it_was_before_there_was_any(recipe_file):
    """A record of an earlier version knows speeds and masks alone: nothing differs from it."""
    settings = training_node(load_recipe(recipe_file)).settings
    earlier = {key: value for key, value in settings.values["augment"].items() if value is not None}
    assert set(earlier) == {
        "speeds", "frequency_masks", "frequency_width_bins", "time_masks", "time_width_s", "time_ratio"
    }  # fmt: skip
    recorded = {**settings.values, "augment": earlier}
    assert settings.comparable_to(recorded) == recorded
    assert all("recordings" not in name for name in training_node(load_recipe(recipe_file)).inputs)

    augmented = training_node(load_recipe(recipe_file, ["augment.volume={}"])).settings
    assert augmented.comparable_to(recorded) != recorded


def test_recordings_count_by_their_content_and_their_place_is_no_setting(recipe_file, noises, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(noises, moved)
    nodes = []
    hashes = []
    for folder in (noises, moved):
        recipe = load_recipe(recipe_file, [f"augment.noise={{recordings: {folder}}}"])
        node = training_node(recipe)
        nodes.append(node)
        assert f"recordings {folder}" in node.inputs
        hashes.append(Pipeline(recipe, RunFolder(tmp_path / "run"))._input_hash(f"recordings {folder}"))
    assert nodes[0].settings == nodes[1].settings
    assert "recordings" not in nodes[0].settings.values["augment"]["noise"]
    assert hashes[0] == hashes[1]

    soundfile.write(moved / "more.wav", np.full(1000, 0.1, np.float32), 16_000)
    pipeline = Pipeline(recipe, RunFolder(tmp_path / "run"))
    assert pipeline._input_hash(f"recordings {moved}") != hashes[0]
    assert pipeline._input_hash("recordings /nowhere") is None


def test_paths_are_those_from_where_the_command_was_given(recipe_file, noises, monkeypatch):
    monkeypatch.chdir(noises.parent)
    name = noises.name
    recipe = load_recipe(
        recipe_file,
        [
            f"augment={{noise: {{recordings: {name}}}, babble: {{recordings: 's3://bucket/voices'}}}}",
            f"stages.{STAGE}.augment={{reverberation: {{recordings: {name}}}}}",
        ],
    )
    assert recipe.augment.recordings() == {
        "babble.recordings": "s3://bucket/voices",
        "noise.recordings": os.path.join(os.getcwd(), name),
    }
    stage = recipe.training_stage(STAGE)
    assert recipe.augment_of(stage).recordings() == {"reverberation.recordings": os.path.join(os.getcwd(), name)}
