"""`freeze` of a stage: patterns that mean nothing, or everything, are refused with the recipe."""

import pytest

from launcher.errors import ConfigError
from launcher.recipe import load_recipe
from launcher.stages.settings import training_settings


@pytest.mark.parametrize(
    "patterns", [["encoder.subsampling"], ["encoder.blocks.0.*", "decoder.*"], ["*norm*"], ["ctc.bias"], ["ctc.wei?ht"]]
)
def test_patterns_that_mean_parameters_are_taken(patterns):
    recipe = load_recipe("mini", [f"stages.teacher.freeze={patterns}"])
    assert list(recipe.training_stage("teacher").freeze) == patterns


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("encoder.front_end.*", "encoder.subsampling"),
        ("encoder.block.0.*", "the nearest are encoder.blocks.0"),
        ("decodr", "the nearest are decoder"),
        ("blocks.0.attention", "encoder.blocks.0.attention"),
        ("zzz", "Its parts are ctc, decoder, "),
    ],
)
def test_a_pattern_that_means_nothing_is_refused_with_the_nearest_names(pattern, nearest):
    with pytest.raises(ConfigError) as error:
        load_recipe("mini", [f"stages.student.freeze=['ctc', '{pattern}']"])
    assert f"stages.student.freeze has the pattern '{pattern}', which means no parameter" in str(error.value)
    assert nearest in str(error.value)
    assert "\n" not in str(error.value)


def test_patterns_that_leave_nothing_to_train_are_refused():
    with pytest.raises(ConfigError, match=r"freezes all .* and nothing is left to train"):
        load_recipe("mini", ["stages.teacher.freeze=['encoder', 'c*', 'd*']"])


def test_stages_that_freeze_nothing_are_what_they_were_for_their_records():
    recipe = load_recipe("mini")
    settings = training_settings(recipe, recipe.training_stage("teacher"), sparse=True)
    assert "freeze" not in settings
    assert "initialize_outputs" not in training_settings(recipe, recipe.training_stage("teacher"))
    frozen = load_recipe("mini", ["stages.teacher.freeze=['ctc']"])
    assert training_settings(frozen, frozen.training_stage("teacher"), sparse=True)["freeze"] == ["ctc"]
