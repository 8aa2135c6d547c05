"""Folders that are foreign, torn or incomplete: one paragraph that names the file, and nothing is written into them."""

import io
import json

import pytest

from data.errors import DataError
from launcher.cli import main
from launcher.errors import ConfigError, exit_code
from launcher.executor import claim_folder
from launcher.inference.finished_model import FinishedModel, read_features
from launcher.monitoring.status import load_run_recipe
from launcher.recipe import dump, load_recipe
from launcher.run_files import (
    read_done,
    read_evaluation,
    read_results,
    read_state,
    read_statistics,
)
from launcher.run_folder import RunFolder, write_json
from model.export import read_description

RECORD = {
    "kind": "prepare",
    "status": "done",
    "fingerprint": "f",
    "settings": {},
    "inputs": {},
    "output": "o",
}
STATE = {"format": 1, "recipe": "mini", "stages": {"prepare": RECORD}}
# Commands as of a user who names the wrong folder, {run} being where it is.
COMMANDS = [
    "status {run}",
    "run mini --run-dir {run}",
    "plan mini --run-dir {run}",
    "evaluate {run}",
    "export {run}/teacher",
    "report {run}",
    "cache-teacher {run}/student",
    "compare {run} --out {run}/page.md",
    "sync {run}",
]
FOREIGN_STATES = [
    "",
    "{}",
    "[]",
    "null",
    "7",
    json.dumps(STATE)[:40],
    json.dumps({"version": 3, "resources": []}),
    json.dumps(STATE | {"stages": []}),
    json.dumps(STATE | {"recipe": None}),
    json.dumps(STATE | {"format": 99}),
    json.dumps(STATE | {"stages": {"prepare": "done"}}),
    json.dumps(STATE | {"stages": {"prepare": RECORD | {"fingerprint": None}}}),
    json.dumps(STATE | {"stages": {"prepare": RECORD | {"corpus_states": 5}}}),
    json.dumps(STATE | {"stages": {"prepare": {"status": "done"}}}),
    '{"a":' * 100_000,
]


@pytest.fixture
def run(tmp_path):
    """A run folder that has been started, of recipe mini."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    write_json(folder.state_file, STATE)
    folder.recipe_file.write_text(dump(load_recipe("mini")))
    return folder


def snapshot(run):
    return {path.name: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", ["{}", json.dumps(STATE)[:40], '{"version": 3, "resources": []}'])
def test_a_folder_of_another_program_is_named_and_left_as_it_is(run, command, state, capsys):
    run.state_file.write_text(state)
    before = snapshot(run)
    assert main(command.format(run=run.path).split()) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(run.path) in message
    assert "state.json" in message
    assert snapshot(run) == before


@pytest.mark.parametrize("state", FOREIGN_STATES)
def test_a_state_that_is_not_ours_is_refused(run, state):
    run.state_file.write_text(state)
    with pytest.raises(ConfigError, match=r"state\.json (cannot be read|holds|has|says)") as refusal:
        read_state(run)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError):
        claim_folder(load_recipe("mini"), run)


def test_a_state_in_another_encoding_is_refused(run):
    run.state_file.write_bytes(b"\xff\xfe{\x00}\x00")
    with pytest.raises(ConfigError, match=r"state\.json cannot be read"):
        read_state(run)


@pytest.mark.parametrize("command", [COMMANDS[0], *COMMANDS[3:5], *COMMANDS[6:8]])
@pytest.mark.parametrize("recipe", [None, "", "- a\n", "name: mini\nstages:\n- na", "name: mini\nstages: {}\n", "a: ["])
def test_a_recipe_that_is_missing_or_cut_is_named(run, command, recipe, capsys):
    if recipe is None:
        run.recipe_file.unlink()
    else:
        run.recipe_file.write_text(recipe)
    assert main(command.format(run=run.path).split()) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "recipe.yaml" in message
    assert "writes it anew" in message


def test_a_recipe_is_refused_wherever_it_was_cut(run):
    text = run.recipe_file.read_text()
    for section in ("corpus:", "stages:", "batches:", "cluster:", "tracking:"):
        run.recipe_file.write_text(text[: text.index(f"\n{section}") + 1])
        with pytest.raises(ConfigError, match=r"recipe\.yaml"):
            load_run_recipe(run)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"models": []}', '{"models": {"a": 3}}', '{"models": {"a'])
def test_torn_results_are_named_with_what_to_do(run, content):
    stage = run.stage("evaluation")
    stage.path.mkdir()
    stage.evaluation_file.write_text(content)
    run.results_file.write_text(content)
    for read, argument in ((read_evaluation, stage), (read_results, run)):
        with pytest.raises(DataError, match="Remove it") as refusal:
            read(argument)
        assert exit_code(refusal.value) == 3


def test_a_report_of_a_run_with_torn_results_names_them(run):
    run.results_file.write_text('{"models": {"a": 3}}')
    assert main(["report", str(run.path)]) == 0
    assert "results.json has a number as the results of model" in run.report_file.read_text().replace("&#39;", "'")


@pytest.mark.parametrize("content", ["", "[]", "null", '{"status": "do'])
def test_a_torn_end_of_a_stage_is_no_end(run, content):
    stage = run.stage("teacher")
    stage.path.mkdir()
    stage.done_file.write_text(content)
    assert read_done(stage) == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"mean": [1.0]}', '{"mean": [1.0], "std": ["a"]}', '{"mean": 1}'])
def test_torn_statistics_of_features_are_named(tmp_path, content):
    path = tmp_path / "features.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"features\.json"):
        read_statistics(path)
    for read in (FinishedModel.load, read_features):
        with pytest.raises(Exception, match=r"features\.json") as refusal:
            read(tmp_path)
        assert exit_code(refusal.value) == 4


@pytest.mark.parametrize("content", ["[]", "null", '{"format": "x"}'])
def test_a_model_description_of_another_program_is_refused(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match="describes no model"):
        read_description(tmp_path)


def test_output_that_the_encoding_cannot_hold_is_escaped(run, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", output)
    path = run.path.rename(run.path.with_name("прогон"))
    assert main(["status", str(path)]) == 0
    output.flush()
    assert b"\\u043f\\u0440" in output.buffer.getvalue()


def test_status_in_a_pipe_shows_whole_names(run, capsys):
    name = "teacher-with-a-name-that-is-longer-than-any-terminal-" * 3
    recipe = load_recipe("mini")
    stage = recipe.training_stage("teacher").model_copy(update={"name": name})
    run.recipe_file.write_text(dump(recipe.model_copy(update={"stages": (stage,)})))
    assert main(["status", str(run.path)]) == 0
    assert name in capsys.readouterr().out
