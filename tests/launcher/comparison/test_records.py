"""Records of trainings: a page from them is that of the runs, and they grow over several sittings."""

import json
import shutil

import pytest

from data.errors import DataError
from launcher.cli import main
from launcher.comparison.intervals import ModelIntervals
from launcher.comparison.model_results import compare_trainings, read_trainings
from launcher.comparison.records import read_records, write_records
from launcher.errors import ConfigError
from launcher.inference.bootstrap import rate
from launcher.recipe import dump as dump_recipe
from launcher.recipe import load_recipe
from tests.launcher.comparison.test_comparison import build_run


@pytest.fixture
def run(tmp_path):
    return build_run(tmp_path / "runs/pair")


def training(trainings, stage):
    return next(other for other in trainings if other.stage == stage)


def only(trainings, *stages):
    return [other for other in trainings if other.stage in stages]


def test_a_page_from_records_is_that_of_the_run_though_the_run_is_gone(run, tmp_path):
    records = tmp_path / "records/pair"
    of_run = tmp_path / "of-run.md"
    assert main(["compare", str(run.path), "--out", str(of_run), "--records", str(records)]) == 0
    shutil.rmtree(run.path)

    of_records = tmp_path / "of-records.md"
    assert main(["compare", str(records), "--out", str(of_records)]) == 0

    def lines_of(page):
        lines = page.read_text().replace(page.stem, "page").splitlines()
        # The name of the table is that of the folder, not of the recipe; the command names what was read.
        return [line for line in lines if not line.startswith(("Written by", "## "))]

    assert lines_of(of_records) == lines_of(of_run)


def test_records_hold_all_that_was_measured_of_a_training(run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    write_records(tmp_path / "records", evaluated, trainings)
    assert read_records(tmp_path / "records") == (evaluated, trainings)


def test_seeds_that_are_trained_later_join_those_that_are_there(run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    folder = tmp_path / "records"
    write_records(folder, evaluated, only(trainings, "teacher-1", "student-2"))
    write_records(folder, evaluated, only(trainings, "teacher-1", "teacher-2", "student-1"))
    comparison = compare_trainings("pair", *read_records(folder))
    assert [(model.name, model.seeds) for model in comparison.models] == [("teacher", (1, 2)), ("student", (1, 2))]


def test_models_with_different_seeds_are_compared_on_those_that_both_have(run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    comparison = compare_trainings("pair", evaluated, only(trainings, "teacher-1", "teacher-2", "student-2"))
    teacher, student = comparison.models
    intervals = ModelIntervals(comparison)
    expected = sum(training(trainings, "student-2").character_errors)
    expected /= sum(training(trainings, "teacher-2").character_errors)
    assert intervals.difference(student, teacher).value == pytest.approx(expected - 1)
    # The rate of a model is that of all its seeds, whatever the others have.
    assert intervals.rate(teacher.characters).value == rate(teacher.characters.errors_SU, teacher.characters.lengths_U)
    nothing_in_common = compare_trainings("pair", evaluated, only(trainings, "teacher-1", "student-2"))
    teacher, student = nothing_in_common.models
    assert ModelIntervals(nothing_in_common).difference(student, teacher) is None


def test_a_page_of_models_without_a_seed_in_common_says_so(run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    folder = tmp_path / "records"
    write_records(folder, evaluated, only(trainings, "teacher-1", "student-2"))
    assert main(["compare", str(folder), "--out", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    assert "no seed in common" in text
    assert "`teacher` seed 1; `student` seed 2" in text


def test_a_model_of_another_recipe_stands_after_the_one_that_it_follows_there(run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    folder = tmp_path / "records"
    write_records(folder, evaluated, only(trainings, "teacher-1", "student-1"))
    middle = vars(training(trainings, "student-2")) | {"stage": "middle-2", "model": "middle"}
    write_records(folder, evaluated, [training(trainings, "teacher-2"), type(trainings[0])(**middle)])
    _, recorded = read_records(folder)
    assert [other.stage for other in recorded] == ["teacher-1", "teacher-2", "middle-2", "student-1"]


def test_a_model_that_comes_first_in_its_recipe_stands_before_those_that_follow_it_there(run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    folder = tmp_path / "records"
    write_records(folder, evaluated, only(trainings, "student-1"))
    write_records(folder, evaluated, trainings)
    _, recorded = read_records(folder)
    assert [other.stage for other in recorded] == ["teacher-1", "teacher-2", "student-1", "student-2"]


def test_seeds_that_were_trained_in_different_ways_are_not_put_together(run, tmp_path, capsys):
    folder = tmp_path / "records"
    main(["compare", str(run.path), "--records", str(folder)])
    recipe = load_recipe("mini", ["seeds=[1, 2]", "stages.student.optimizer.peak_learning_rate=5e-4"])
    run.recipe_file.write_text(dump_recipe(recipe))
    _, evaluated, trainings = read_trainings(run)
    write_records(folder, evaluated, only(trainings, "student-2"))
    assert main(["compare", str(folder), "--out", str(tmp_path / "page.md")]) == 2
    message = capsys.readouterr().err
    assert "student-1 and student-2 are seeds of student" in message
    assert "different settings" in message
    assert not (tmp_path / "page.md").exists()


def test_records_of_other_utterances_are_refused_and_change_nothing(run, tmp_path, capsys):
    folder = tmp_path / "records"
    main(["compare", str(run.path), "--records", str(folder)])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for file in run.stage("evaluation").hypotheses_file("teacher-1").parent.iterdir():
        file.write_text(file.read_text().replace("seven", "eight"))
    assert main(["compare", str(run.path), "--records", str(folder)]) == 2
    assert "are of another evaluation" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_records_are_not_written_among_other_files(run, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    assert main(["compare", str(run.path), "--records", str(folder)]) == 2
    assert "is no folder of records" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_comparison_that_would_write_nothing_says_what_to_give(run, capsys):
    assert main(["compare", str(run.path)]) == 2
    assert "--out FILE" in capsys.readouterr().err


TORN = {
    "cut short": '{"format": 1, "stage": "stu',
    "a list": "[]",
    "of no training": '{"format": 1}',
    "with errors of no utterance": None,
    "with errors that are no mapping": None,
}


@pytest.mark.parametrize("kind", TORN)
def test_a_torn_record_is_named_with_what_to_do(kind, run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    folder = tmp_path / "records"
    write_records(folder, evaluated, trainings)
    path = folder / "student-1.json"
    record = json.loads(path.read_text())
    if kind == "with errors of no utterance":
        path.write_text(json.dumps(record | {"word_errors": {"99": 1}}))
    elif kind == "with errors that are no mapping":
        path.write_text(json.dumps(record | {"character_errors": [1, 2]}))
    else:
        path.write_text(TORN[kind])
    with pytest.raises(DataError, match=r"student-1\.json.*version control"):
        read_records(folder)


CHANGES_OF_A_TRAINING = [
    {"seed": "one"},
    {"steps": None},
    {"parameters": []},
    {"word_errors": {"0": "x"}},
    {"word_errors": {"1" * 5000: 1}},
    {"minutes": {}},
    {"compare_to": 3},
]


def test_a_record_or_list_of_other_types_is_one_clear_error(run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    folder = tmp_path / "records"
    write_records(folder, evaluated, trainings)
    path = folder / "student-1.json"
    record = json.loads(path.read_text())
    contents = [json.dumps(record | change) for change in CHANGES_OF_A_TRAINING]
    for content in (*contents, "[" * 10**5, "1" * 5000):
        path.write_text(content)
        with pytest.raises(DataError, match=r"student-1\.json.*version control") as raised:
            read_records(folder)
        assert "\n" not in str(raised.value)
    path.write_text(json.dumps(record))
    header = json.loads((folder / "evaluated.json").read_text())
    for change in ({"models": [[]]}, {"characters": ["x"]}, {"threads": {}}):
        (folder / "evaluated.json").write_text(json.dumps(header | change))
        with pytest.raises(DataError, match=r"evaluated\.json"):
            read_records(folder)


def test_a_torn_list_of_models_is_named(run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    folder = tmp_path / "records"
    write_records(folder, evaluated, trainings)
    (folder / "evaluated.json").write_text('{"format": 1, "split": "test"}')
    with pytest.raises(DataError, match=r"evaluated\.json"):
        read_records(folder)


def test_records_of_a_later_version_are_refused(run, tmp_path):
    _, evaluated, trainings = read_trainings(run)
    folder = tmp_path / "records"
    write_records(folder, evaluated, trainings)
    record = json.loads((folder / "student-1.json").read_text())
    (folder / "student-1.json").write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(ConfigError, match="format 2"):
        read_records(folder)
