"""Defaults that have changed: what an earlier version began goes on as it was, and new runs get the new default."""

import argparse

import pytest
import yaml

from launcher.commands.run import read_recipe
from launcher.monitoring.status import load_run_recipe
from launcher.recipe import dump, load_recipe
from launcher.recipe.former_defaults import FORMER_DEFAULTS
from launcher.run_folder import RunFolder, write_json
from launcher.stages.pipeline import Pipeline
from launcher.stages.settings import Settings, training_settings
from model.encoder import EncoderConfig

KEYS = sorted(FORMER_DEFAULTS)
KINDS = ("mini", "base", "self_supervised")


def recipe_of(kind, tmp_path, overrides=()):
    if kind == "mini":
        return load_recipe("mini", overrides)
    if kind == "base":
        return load_recipe("base", [f"corpus.shards={tmp_path}", *overrides])
    path = tmp_path / "listening.yaml"
    values = yaml.safe_load(dump(load_recipe("mini")))
    model = {"encoder": {"layers": 2, "groups": 1, "width": 32, "heads": 2}}
    values["stages"] = [{"name": "listener", "kind": "self_supervised", "model": model, "steps": 5}]
    path.write_text(yaml.safe_dump(values))
    return load_recipe(path, overrides)


def without(values, dotted):
    """A copy of nested values without a key."""
    key, _, rest = dotted.partition(".")
    copy = dict(values)
    if rest and key in copy:
        copy[key] = without(copy[key], rest)
    elif not rest:
        copy.pop(key, None)
    return copy


def value_of(stage, dotted):
    for key in dotted.split("."):
        stage = getattr(stage, key)
    return stage


def begin(run, recipe):
    """Leave what a version without the settings left of a run whose trainings had begun."""
    run.path.mkdir(parents=True)
    values = yaml.safe_load(dump(recipe))
    records = {}
    for stage in values["stages"]:
        if "model" in stage:
            settings = training_settings(recipe, recipe.training_stage(stage["name"]))
            for key in KEYS:
                settings = without(settings, key)
                stage.update(without(stage, key))
            record = {"kind": stage["kind"], "status": "stopped", "fingerprint": "0", "inputs": {}}
            records[stage["name"]] = record | {"settings": settings}
    run.recipe_file.write_text(yaml.safe_dump(values))
    write_json(run.state_file, {"format": 1, "recipe": recipe.name, "stages": records})
    return records


def options(recipe, run, *overrides):
    names = ("processes", "hostfile", "launcher")
    return argparse.Namespace(recipe=recipe, run_dir=str(run.path), set=list(overrides), **dict.fromkeys(names))


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_default_differs_from_the_former(key):
    assert value_of(load_recipe("mini").training_stages()[0], key) not in FORMER_DEFAULTS[key]


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_that_an_older_run_keeps_means_the_former_default(kind, tmp_path):
    run = RunFolder(tmp_path / "run")
    begin(run, recipe_of(kind, tmp_path))
    for stage in load_run_recipe(run).training_stages():
        for key, formers in FORMER_DEFAULTS.items():
            assert value_of(stage, key) == formers[0]


def test_a_run_that_was_begun_before_goes_on_as_it_was_begun(tmp_path):
    run = RunFolder(tmp_path / "run")
    begin(run, load_recipe("mini"))
    recipe, folder = read_recipe(options("mini", run))
    assert folder.path == run.path
    for stage in recipe.training_stages():
        assert stage.model.encoder.branch_exponent == 0
    # And no setting counts as changed.
    pipeline = Pipeline(recipe, run)
    trained = [node for node in pipeline.nodes if node.kind in ("pretrain", "distill")]
    assert len(trained) == 2
    for node in trained:
        assert all(key.startswith("input ") for key in pipeline.changes(node, {}))


def test_a_run_that_was_begun_before_takes_the_setting_that_its_recipe_names(tmp_path):
    run = RunFolder(tmp_path / "run")
    begin(run, load_recipe("mini"))
    recipe, _ = read_recipe(options("mini", run, "stages.student.model.encoder.branch_exponent=0.5"))
    assert recipe.training_stage("student").model.encoder.branch_exponent == 0.5
    assert recipe.training_stage("teacher").model.encoder.branch_exponent == 0
    pipeline = Pipeline(recipe, run)
    node = next(node for node in pipeline.nodes if node.name == "student")
    assert "model.encoder.branch_exponent unset -> 0.5" in pipeline.changes(node, {}).values()


def test_a_run_that_was_begun_with_a_later_former_default_goes_on_with_that(tmp_path):
    run = RunFolder(tmp_path / "run")
    names = ("teacher", "student")
    halves = [f"stages.{name}.model.encoder.branch_exponent=0.5" for name in names]
    recipe = load_recipe("mini", halves)
    records = {}
    for name in names:
        stage = recipe.training_stage(name)
        record = {"kind": stage.kind, "status": "stopped", "fingerprint": "0", "inputs": {}}
        records[name] = record | {"settings": training_settings(recipe, stage)}
    run.path.mkdir()
    write_json(run.state_file, {"format": 1, "recipe": "mini", "stages": records})
    gone_on, _ = read_recipe(options("mini", run))
    for stage in gone_on.training_stages():
        assert stage.model.encoder.branch_exponent == 0.5
    # A recipe that names another value means it.
    named, _ = read_recipe(options("mini", run, "stages.student.model.encoder.branch_exponent=2"))
    assert named.training_stage("student").model.encoder.branch_exponent == 2


def test_a_run_in_which_nothing_was_trained_yet_gets_the_new_default(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    record = {"kind": "prepare", "status": "done", "fingerprint": "0", "inputs": {}, "settings": {}, "output": "0"}
    write_json(run.state_file, {"format": 1, "recipe": "mini", "stages": {"prepare": record}})
    recipe, _ = read_recipe(options("mini", run))
    assert recipe.training_stage("student").model.encoder.branch_exponent == EncoderConfig().branch_exponent


def test_a_run_of_this_version_keeps_its_settings_whatever_it_trains(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    recipe = load_recipe("mini", ["stages.student.model.encoder.branch_exponent=1"])
    run.recipe_file.write_text(dump(recipe))
    assert load_run_recipe(run) == recipe


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_record_without_the_setting_is_one_of_the_former_default(value):
    recipe = load_recipe("mini", [f"stages.student.model.encoder.branch_exponent={value}"])
    stage = recipe.training_stage("student")
    settings = Settings.of(training_settings, recipe, stage)
    recorded = without(settings.values, "model.encoder.branch_exponent")
    comparable = settings.comparable_to(recorded)
    assert (comparable == recorded) == (value == FORMER_DEFAULTS["model.encoder.branch_exponent"][0])
