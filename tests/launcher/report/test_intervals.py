"""The report answers whether a student is as good as its teacher, and says what it cannot answer."""

import json

import jiwer
import numpy as np
import pytest
import yaml

from launcher.report import write_report
from launcher.report.expert_figures import explained_share
from launcher.report.intervals import measure_intervals, read_errors, verdict
from launcher.report.results import tabulate
from launcher.report.results_view import evidence
from launcher.run_folder import RunFolder, write_json, write_lines

WORDS = ("one", "two", "three", "four", "five", "six", "seven")
RECIPE = {
    "name": "pair",
    "stages": [
        {"name": "teacher", "kind": "pretrain", "steps": 1},
        {"name": "student", "kind": "distill", "teacher": "teacher", "steps": 1},
        {"name": "evaluation", "kind": "evaluate", "split": "test"},
    ],
}


def evaluated_run(folder, **wrong_every):
    """A run whose models get every n-th of 60 utterances wrong."""
    run = RunFolder(folder)
    run.path.mkdir(exist_ok=True)
    run.recipe_file.write_text(yaml.safe_dump(RECIPE))
    models = {}
    for name, every in wrong_every.items():
        rows = []
        for number in range(60):
            text = f"{WORDS[number % 7]} {WORDS[number % 5]}"
            hypothesis = text
            if every and number % every == 0:
                hypothesis = text.replace("e", "x").replace("o", "y")
            rows.append({"key": f"k{number:02d}", "reference": text, "hypothesis": hypothesis})
        write_lines(run.stage("evaluation").hypotheses_file(name), rows)
        references = [row["reference"] for row in rows]
        hypotheses = [row["hypothesis"] for row in rows]
        scores = {"cer": jiwer.cer(references, hypotheses), "wer": jiwer.wer(references, hypotheses), "utterances": 60}
        encoder = 300 if name == "teacher" else 100
        models[name] = {"parameters": 400, "encoder_parameters": encoder, "test": scores}
    write_json(run.stage("evaluation").evaluation_file, {"models": models})
    return run, models


def measured(run, models):
    table = tabulate(models, RECIPE)
    errors = read_errors(run, RECIPE, table)
    return table, measure_intervals(table, errors.models), errors


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [(5, 5, "no difference shown"), (5, 6, "no difference shown"), (0, 2, "more errors"), (2, 0, "fewer errors")],
)
def test_a_student_is_better_worse_or_not_told_apart_from_its_teacher(tmp_path, teacher, student, expected):
    run, models = evaluated_run(tmp_path / "run", teacher=teacher, student=student)
    table, intervals, _ = measured(run, models)
    difference = intervals["student"].difference
    assert verdict(difference).startswith(expected)
    assert difference.value == pytest.approx(models["student"]["test"]["cer"] - models["teacher"]["test"]["cer"])
    assert difference.low <= difference.value <= difference.high
    assert intervals["teacher"].difference is None
    sentence = evidence(table, intervals)
    assert "60 utterances" in sentence
    assert ("no difference" in sentence.lower()) == (expected == "no difference shown")


def test_the_page_begins_with_the_answer_and_sorts_models_by_errors(tmp_path):
    run, _ = evaluated_run(tmp_path / "run", teacher=3, student=9)
    page = write_report(run.path).read_text()
    table = page[page.index('id="results"') :]
    assert page.index("95% interval over utterances") < page.index('id="results"')
    assert table.index("student") < table.index("teacher</")
    assert "Hardest utterances" in page
    assert "chorus report RUN --analyse" in page


def test_hypotheses_of_another_search_give_no_interval_and_the_page_says_so(tmp_path):
    run, models = evaluated_run(tmp_path / "run", teacher=5, student=4)
    models["student"]["test"]["cer"] = 0.5
    table, intervals, errors = measured(run, models)
    assert list(intervals) == ["teacher"]
    assert errors.gaps == ["No intervals of student: the run folder has no hypotheses that these error rates are of."]
    assert evidence(table, intervals) == ""


@pytest.mark.parametrize("content", ["{", "[]", '{"key": 1}', '{"key": "a", "reference": "b"}', "\x00"])
def test_torn_hypotheses_are_named_and_the_page_is_written(tmp_path, content):
    run, models = evaluated_run(tmp_path / "run", teacher=5, student=4)
    run.stage("evaluation").hypotheses_file("student").write_text(content)
    _, intervals, errors = measured(run, models)
    assert list(intervals) == ["teacher"]
    assert "student.jsonl" in errors.gaps[0]
    assert "student.jsonl" in write_report(run.path).read_text()


@pytest.mark.parametrize("name", ["../../secret", "/secret", ".."])
def test_names_that_lead_out_of_the_run_are_not_followed(tmp_path, name):
    run, models = evaluated_run(tmp_path / "run", teacher=5)
    row = {"key": "k", "reference": "my secret", "hypothesis": "my secret"}
    for place in (tmp_path / "secret.jsonl", tmp_path / "run/secret.jsonl"):
        place.write_text(json.dumps(row) + "\n")
    models[name] = models["teacher"] | {"test": {"cer": 0.0, "wer": 0.0, "utterances": 1}}
    write_json(run.stage("evaluation").evaluation_file, {"models": models})
    assert "my secret" not in write_report(run.path).read_text()
    recipe = RECIPE | {"stages": [{"name": "../..", "kind": "evaluate", "split": "test"}]}
    run.recipe_file.write_text(yaml.safe_dump(recipe))
    assert "my secret" not in write_report(run.path).read_text()


def test_a_class_that_decides_the_expert_explains_all_and_chance_nothing():
    assert explained_share(np.diag([500.0, 300.0, 200.0])) == pytest.approx(1, abs=0.01)
    assert explained_share(np.outer([40.0, 60.0], [10.0, 30.0])) == 0
    assert explained_share(np.zeros((3, 2))) == 0
    assert explained_share(np.array([[5.0, 0.0], [9.0, 0.0]])) == 0
    draws = np.random.default_rng(1).integers(0, 4, (20, 400))
    by_chance = [explained_share(np.bincount(row, minlength=4).reshape(2, 2).astype(float)) for row in draws]
    assert np.mean(by_chance) < 0.005
