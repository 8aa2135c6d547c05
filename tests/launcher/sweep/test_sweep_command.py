"""`chorus sweep` up to the start of its runs: what is refused, what is shared, what is kept."""

import json
import os
from pathlib import Path

import pytest
import yaml
from run_folders import training_row, write_model, write_rows

from launcher import cli
from launcher.commands import sweep as sweep_command
from launcher.errors import ConfigError
from launcher.recipe import load_recipe
from launcher.run_files import read_state
from launcher.run_folder import RunFolder
from launcher.stages.fingerprint import hash_folder
from launcher.stages.pipeline import build_pipeline
from launcher.stages.preparation import prepare_corpus
from launcher.sweep.points import read_axis
from launcher.sweep.shared_stages import group_trials, hand_over
from launcher.sweep.trials import SweepFolder, SweepSpec, make_trials, read_sweep

WEIGHT = "stages.student.distill.ctc.weight"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A teacher and a student on the corpus of the package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    values = {"extends": "mini", "name": "tiny", "stages": {"teacher": {"steps": 6}, "student": {"steps": 6}}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def trials_of(recipe, *axes, seeds=None):
    spec = SweepSpec(recipe, (), axes, None, seeds)
    return make_trials(spec, [read_axis(axis) for axis in axes])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--over", "stages.student.distil.ctc.weight=1,2"], "did you mean 'distill'"),
        (["--over", "stages.pupil.steps=1,2"], "no item named 'pupil'"),
        # The last value, too, is looked at before the first run starts.
        (["--over", f"{WEIGHT}=0.5,-1"], "weight--1 of the sweep"),
        (["--over", f"{WEIGHT}=0.5,1", "--seeds", "0"], "--seeds is 0"),
        (["--over", f"{WEIGHT}=0.5,1", "--parallel", "0"], "--parallel is 0"),
        (["--over", f"{WEIGHT}=0.5,1", "--budget", "0"], "--budget is 0"),
        (["--over", f"{WEIGHT}=0.5,1", "--stop-after", "1"], "--stop-after is 1"),
        (["--over", f"{WEIGHT}=0.5,1", "--set", "cluster.launcher=slurm"], "--launcher slurm"),
        (["--over", f"{WEIGHT}=0.5,1", "--parallel", "2", "--set", "cluster.master_port=29999"], "only one run"),
    ],
)
def test_what_is_wrong_with_any_run_is_said_before_anything_starts(recipe, options, message, capsys):
    assert cli.main(["sweep", recipe, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_dry_run_shows_the_runs_and_what_they_share(recipe, capsys):
    options = ["--over", f"{WEIGHT}=0.5,1", "--seeds", "2", "--dry-run", "--json"]
    assert cli.main(["sweep", recipe, *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    names = ["weight-0.5_seed-1", "weight-0.5_seed-2", "weight-1_seed-1", "weight-1_seed-2"]
    assert [run["name"] for run in shown["runs"]] == names
    assert shown["shared"] == [{"runs": names, "stages": ["prepare", "tokenizer", "teacher-1", "teacher-2"]}]
    assert not Path("runs").exists()


def test_runs_share_what_their_settings_do_not_touch(recipe):
    groups = group_trials(*trials_of(recipe, f"{WEIGHT}=0.5,1"))
    assert [group.stages for group in groups] == [["prepare", "tokenizer", "teacher"]]
    # A teacher that differs is no shared one, and neither is what learns from it.
    groups = group_trials(*trials_of(recipe, "stages.teacher.steps=5,6"))
    assert [group.stages for group in groups] == [["prepare", "tokenizer"]]
    # Other tokens, other preparation.
    groups = group_trials(*trials_of(recipe, "tokenizer={kind: char},{kind: bpe, pieces: 60}", f"{WEIGHT}=0.5,1"))
    assert [(group.trials, group.stages) for group in groups] == [
        ([0, 1], ["prepare", "tokenizer", "teacher"]),
        ([2, 3], ["prepare", "tokenizer", "teacher"]),
    ]


def test_a_run_gets_what_is_shared_as_if_it_had_made_it(recipe, tmp_path):
    trials, recipes = trials_of(recipe, f"{WEIGHT}=0.5,1")
    (group,) = group_trials(trials, recipes)
    shared = shared_run(tmp_path / "sweep" / "shared" / "1", recipes[0], group.stages)
    run = RunFolder(tmp_path / "sweep" / "trials" / "weight-0.5")
    # A kill came in the middle of handing over.
    run.path.mkdir(parents=True)
    (run.path / "tokenizer").mkdir()
    hand_over(recipes[0], shared, run, group.stages)
    assert os.readlink(run.corpus) == "../../shared/1/corpus"
    assert (run.tokenizer / "tokenizer.json").read_text() == "{}"
    state = read_state(run)
    assert state["recipe"] == "tiny"
    assert state["stages"] == read_state(shared)["stages"]
    assert hash_folder(run.stage("teacher").model) == hash_folder(shared.stage("teacher").model)
    assert run.stage("teacher").metrics_file.exists()
    assert not run.stage("teacher").checkpoints.exists()
    assert [event["event"] for event in run.events()] == ["stage_done"]
    # What the run did since is never taken from it.
    (run.tokenizer / "counts.npz").touch()
    hand_over(recipes[0], shared, run, group.stages)
    assert (run.tokenizer / "counts.npz").exists()


def shared_run(folder, recipe, stages):
    run = RunFolder(folder)
    for name in ("corpus", "tokenizer"):
        (folder / name).mkdir(parents=True)
    (run.tokenizer / "tokenizer.json").write_text("{}")
    write_model(run.stage("teacher").model, "weights")
    run.stage("teacher").checkpoint(6).mkdir(parents=True)
    write_rows(run.stage("teacher").metrics_file, [training_row(6)])
    events = [
        {"time": 1.0, "event": "stage_done", "stage": "teacher"},
        {"time": 1.0, "event": "stage_done", "stage": "something else"},
    ]
    write_rows(run.events_file, events)
    records = {}
    for node in build_pipeline(recipe):
        if node.name in stages:
            record = {"kind": node.kind, "status": "done", "fingerprint": "f", "settings": {}, "inputs": {}}
            records[node.name] = record | {"output": "o"}
    run.state_file.write_text(json.dumps({"format": 1, "recipe": recipe.name, "stages": records}))
    return run


def test_a_run_never_writes_the_shards_that_it_shares(recipe, tmp_path):
    _, recipes = trials_of(recipe, f"{WEIGHT}=0.5,1")
    shared = shared_run(tmp_path / "shared", recipes[0], ["prepare", "tokenizer"])
    run = RunFolder(tmp_path / "run")
    hand_over(recipes[0], shared, run, ["prepare", "tokenizer"])
    with pytest.raises(ConfigError, match="which other runs read too"):
        prepare_corpus(recipes[0], run, None)
    assert list(shared.corpus.iterdir()) == []


@pytest.fixture
def without_runs(monkeypatch):
    """Everything but the runs themselves; what they would have been is in the list."""
    started = []
    monkeypatch.setattr(sweep_command, "run_shared", lambda *values: None)

    class Scheduler:
        def __init__(self, folder, trials, *values):
            self.trials = trials

        def run(self):
            for trial in self.trials:
                if trial.state in ("waiting", "interrupted"):
                    started.append(trial.name)
                    trial.state = "done"

    monkeypatch.setattr(sweep_command, "Scheduler", Scheduler)
    return started


def test_the_same_command_goes_on_and_another_sweep_is_refused(recipe, without_runs, capsys):
    command = ["sweep", recipe, "--over", f"{WEIGHT}=0.5,1"]
    assert cli.main(command) == 0
    assert without_runs == ["weight-0.5", "weight-1"]
    folder = SweepFolder(Path("runs/tiny-sweep"))
    content = json.loads(folder.file.read_text())
    for trial, state in zip(content["trials"], ("done", "failed"), strict=True):
        trial["state"] = state
    folder.file.write_text(json.dumps(content))
    # How many at a time, and for how long, may change.
    assert cli.main([*command, "--parallel", "2", "--budget", "3"]) == 0
    assert without_runs == ["weight-0.5", "weight-1", "weight-1"]
    capsys.readouterr()
    for other in (["--over", f"{WEIGHT}=0.5,2"], ["--over", f"{WEIGHT}=0.5,1", "--set", "seed=2"]):
        assert cli.main(["sweep", recipe, *other]) == 2
        message = capsys.readouterr().err
        assert "begun with other settings" in message
        assert f"--over {WEIGHT}=0.5,1" in message


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 9}', '{"format": 1, "sha256": "", "recipe": "", "trials": [{}]}', '{"format": 1}'],
)
def test_a_torn_sweep_file_is_said_and_nothing_is_written_over_it(recipe, content, capsys):
    folder = SweepFolder(Path("runs/tiny-sweep"))
    folder.path.mkdir(parents=True)
    folder.file.write_text(content)
    assert cli.main(["sweep", recipe, "--over", f"{WEIGHT}=0.5,1"]) == 2
    assert "sweep.json" in capsys.readouterr().err
    assert folder.file.read_text() == content


def test_a_folder_of_something_else_is_refused(recipe, capsys):
    Path("runs/tiny-sweep").mkdir(parents=True)
    Path("runs/tiny-sweep/thesis.tex").touch()
    assert cli.main(["sweep", recipe, "--over", f"{WEIGHT}=0.5,1"]) == 2
    assert "thesis.tex" in capsys.readouterr().err


def test_two_sweeps_in_one_folder_are_refused(recipe, without_runs, capsys):
    with RunFolder("runs/tiny-sweep").locked():
        assert cli.main(["sweep", recipe, "--over", f"{WEIGHT}=0.5,1"]) == 2
    assert "in use by process" in capsys.readouterr().err
    assert without_runs == []


def test_what_is_kept_is_what_was_made(recipe, without_runs):
    assert cli.main(["sweep", recipe, "--over", f"{WEIGHT}=0.5,1", "--seeds", "2"]) == 0
    trials = read_sweep(SweepFolder(Path("runs/tiny-sweep")))["trials"]
    assert trials[3].overrides == [f"{WEIGHT}=1", "seeds=[2]"]
    made = load_recipe(recipe, trials[3].overrides)
    assert [stage.name for stage in made.training_stages()] == ["teacher-2", "student-2"]
    assert made.stage("student-2").distill.ctc.weight == 1
