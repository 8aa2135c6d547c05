"""`chorus compare` of a sweep: its points side by side, their seeds put together."""

import json
import shutil

import pytest

from launcher import cli
from launcher.errors import ConfigError
from launcher.recipe import dump, load_recipe
from launcher.sweep.results import read_sweep_trainings
from launcher.sweep.trials import SweepFolder, Trial
from tests.launcher.comparison.test_comparison import build_run

WEIGHT = "stages.student.distill.ctc.weight"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two points of a student under two seeds; the runs of each seed have its teacher."""
    folder = SweepFolder(tmp_path_factory.mktemp("runs") / "mini-sweep")
    model = build_run(tmp_path_factory.mktemp("runs") / "run")
    trials = []
    for value in ("0.5", "1"):
        for seed in (1, 2):
            trial = Trial(f"weight-{value}_seed-{seed}", f"weight-{value}", {WEIGHT: value}, seed, [], state="done")
            run = folder.trial(trial)
            shutil.copytree(model.path, run.path)
            run.recipe_file.write_text(dump(load_recipe("mini", [f"seeds=[{seed}]", f"{WEIGHT}={value}"])))
            trials.append(trial)
    # One that failed left nothing to compare.
    trials.append(Trial("weight-2_seed-1", "weight-2", {WEIGHT: "2"}, 1, [], state="failed"))
    write(folder, trials)
    return folder


@pytest.fixture
def sweep(finished, tmp_path):
    """The same, to be changed."""
    shutil.copytree(finished.path, tmp_path / "mini-sweep")
    return SweepFolder(tmp_path / "mini-sweep")


def write(folder, trials):
    content = {"format": 1, "recipe": "mini", "sha256": "", "trials": [vars(trial) for trial in trials]}
    folder.path.mkdir(exist_ok=True)
    folder.file.write_text(json.dumps(content))


def test_each_point_is_a_model_with_its_seeds_and_a_shared_teacher_is_one(sweep):
    title, _, trainings = read_sweep_trainings(sweep.path)
    assert title == "mini-sweep"
    assert sorted((training.model, training.seed) for training in trainings) == [
        ("student-weight-0.5", 1),
        ("student-weight-0.5", 2),
        ("student-weight-1", 1),
        ("student-weight-1", 2),
        ("teacher", 1),
        ("teacher", 2),
    ]
    assert {training.teacher for training in trainings if training.model != "teacher"} == {"teacher"}


def test_what_learns_from_a_model_that_differs_differs_too(sweep):
    for run in (sweep.path / "trials").iterdir():
        value = 5 if "0.5" in run.name else 6
        seed = run.name[-1]
        # Written out, the steps of the teacher are the first ones.
        text = (run / "recipe.yaml").read_text().replace("steps: 3400", f"steps: {value}")
        assert f"teacher-{seed}" in text
        (run / "recipe.yaml").write_text(text)
    _, _, trainings = read_sweep_trainings(sweep.path)
    teachers = {training.model: training.teacher for training in trainings}
    assert teachers["student-weight-1"] == "teacher-weight-1"
    assert teachers["student-weight-0.5"] == "teacher-weight-0.5"


def test_compare_writes_a_page_of_a_sweep(sweep, tmp_path, capsys):
    page = tmp_path / "sweep.md"
    assert cli.main(["compare", str(sweep.path), "--out", str(page)]) == 0
    text = page.read_text()
    assert "student-weight-0.5" in text
    assert "student-weight-1" in text


def test_a_sweep_without_a_finished_run_is_told_so(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    write(folder, [Trial("a", "a", {}, None, [], state="running")])
    with pytest.raises(ConfigError, match="No run of the sweep"):
        read_sweep_trainings(folder.path)


def test_runs_that_were_evaluated_on_other_utterances_are_not_compared(sweep):
    run = sweep.path / "trials" / "weight-1_seed-2"
    for file in (run / "evaluation" / "hypotheses").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[0]["key"] = "another"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="weight-1_seed-2"):
        read_sweep_trainings(sweep.path)
