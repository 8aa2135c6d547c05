"""Averages of weights in a recipe: what is refused before anything starts, what is kept, and what counts as changed."""

import pytest
import yaml

from launcher.errors import ConfigError
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.settings import Settings, training_settings
from launcher.stages.start_checks import check_splits


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe of one stage of 100 steps, which saves every 20 and validates every 40 of them."""

    def write(**keys):
        stage = {"name": "s", "kind": "pretrain", "steps": 100, "validate_every": 40, "checkpoint": {"every_steps": 20}}
        values = {"name": "r", "corpus": {"shards": str(tmp_path)}, "batches": {}, "stages": [{**stage, **keys}]}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_recipe(path)

    return write


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"average": {"kind": "mean"}}, "'last', 'best' or 'running'"),
        ({"average": {}}, "average.kind"),
        ({"average": {"kind": "last", "checkpoints": 1}}, "average.checkpoints"),
        ({"average": {"kind": "last", "decay": 0.9}}, "decay is set"),
        ({"average": {"kind": "running", "checkpoints": 3}}, "checkpoints is set"),
        ({"average": {"kind": "running", "decay": 1.0}}, "average.decay"),
        ({"average": {"kind": "last"}, "checkpoint": {"every_steps": 100}}, "there would be one alone"),
        ({"average": {"kind": "last"}, "steps": 10}, "there would be one alone"),
        # No step before the last is both saved and validated.
        ({"average": {"kind": "best"}, "checkpoint": {"every_steps": 30}}, "one every 120 steps"),
        ({"average": {"kind": "best"}, "kind": "self_supervised"}, "without transcripts none has an error rate"),
    ],
)
def test_an_average_of_nothing_is_refused(recipe, keys, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**keys)


@pytest.mark.parametrize(
    ("average", "checkpoint", "expected"),
    [
        (None, {}, (2, 1)),
        ({"kind": "running"}, {}, (2, 1)),
        ({"kind": "last", "checkpoints": 4}, {}, (4, 1)),
        ({"kind": "last", "checkpoints": 4}, {"keep_last": 9}, (9, 1)),
        ({"kind": "best", "checkpoints": 4}, {}, (2, 4)),
    ],
    ids=["none", "running", "last", "last, more kept", "best"],
)
def test_as_many_checkpoints_stay_as_are_averaged(recipe, average, checkpoint, expected):
    keys = {"checkpoint": {"every_steps": 20, **checkpoint}}
    if average:
        keys["average"] = average
    retention = recipe(**keys).training_stage("s").retention
    assert (retention.keep_last, retention.keep_best) == expected


def test_a_stage_of_before_there_were_averages_has_not_changed(recipe):
    plain = recipe()
    recorded = training_settings(plain, plain.training_stage("s"))
    del recorded["average"]
    settings = Settings.of(training_settings, plain, plain.training_stage("s"))
    assert settings.comparable_to(recorded) == recorded
    averaged = recipe(average={"kind": "last"})
    settings = Settings.of(training_settings, averaged, averaged.training_stage("s"))
    assert settings.comparable_to(recorded) != recorded


def test_the_best_checkpoints_need_a_split_to_validate_on(recipe, tmp_path, monkeypatch):
    splits = {"train"}
    best = recipe(average={"kind": "best"})
    recipe_type = type(best)
    monkeypatch.setattr(
        recipe_type, "present_folders", lambda self, run, split: {"": tmp_path / split} if split in splits else {}
    )
    monkeypatch.setattr(recipe_type, "has_split", lambda self, run, split: split in splits)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"stages\.s\.average is of the best checkpoints.* has no split dev"):
        check_splits(best, run)
    splits.add("dev")
    check_splits(best, run)
