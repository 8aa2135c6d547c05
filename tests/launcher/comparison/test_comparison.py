"""`chorus compare`: seeds put together, intervals that mean what they say, and a page that can be written again."""

import json
import re
from itertools import pairwise
from xml.etree import ElementTree

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cli import main
from launcher.comparison.model_results import read_comparison
from launcher.comparison.picture import Point, _spread
from launcher.errors import ConfigError
from launcher.inference import bootstrap
from launcher.inference.bootstrap import Draws, Interval, interval, rate, relative_difference
from launcher.recipe import dump as dump_recipe
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder, write_json, write_lines

TEXTS = [f"{first} {second}" for first in ("one", "two", "three", "four") for second in ("five", "six", "seven")]


def hypothesis_of(text, wrong):
    return text.replace("e", "o") if wrong else text


def build_run(path):
    """A run of a teacher and a student with two seeds each, whose errors are known."""
    run = RunFolder(path)
    recipe = load_recipe("mini", ["seeds=[1, 2]", "stages.student.about=the small one"])
    path.mkdir(parents=True)
    run.recipe_file.write_text(dump_recipe(recipe))
    write_json(run.state_file, {"format": 1, "recipe": recipe.name, "stages": {}})
    models = {}
    for name, every in (("teacher-1", 4), ("teacher-2", 3), ("student-1", 3), ("student-2", 2)):
        rows = [
            {"key": f"key-{index:02d}", "reference": text, "hypothesis": hypothesis_of(text, index % every == 0)}
            for index, text in enumerate(TEXTS)
        ]
        write_lines(run.stage("evaluation").hypotheses_file(name), rows[::-1])
        sizes = {"parameters": 900, "encoder_parameters": 600 if name.startswith("teacher") else 200}
        measured = {"rtf": 0.01, "threads": 2, "utterances": len(TEXTS), "seconds": 60.0, "search": {"kind": "greedy"}}
        models[name] = {**sizes, "test": measured}
        row = {
            "step": 10,
            "loss": 1.0,
            "step_s": 0.5,
            "data_wait": 0.0,
            "audio_s_per_s": 36.0,
            "flops_per_s": 2e14,
            "time": 5.0,
        }
        if name.startswith("student"):
            row |= {"experts/layer-00/load": [0.5, 0.5], "experts/layer-01/load": [1.0, 0.0]}
        write_lines(run.stage(name).metrics_file, [row])
    write_json(run.stage("evaluation").evaluation_file, {"models": models})
    return run


@pytest.fixture
def run(tmp_path):
    return build_run(tmp_path / "runs/pair")


def errors_of(run, *names):
    rows = []
    for name in names:
        lines = run.stage("evaluation").hypotheses_file(name).read_text().splitlines()
        rows += [json.loads(line) for line in lines]
    return jiwer.cer([row["reference"] for row in rows], [row["hypothesis"] for row in rows])


def test_the_seeds_of_a_model_are_one_model_whose_rate_is_that_of_all_of_them(run):
    comparison = read_comparison(run)
    assert [(model.name, model.seeds) for model in comparison.models] == [("teacher", (1, 2)), ("student", (1, 2))]
    for model in comparison.models:
        error_rate = rate(model.characters.errors_SU, model.characters.lengths_U)
        assert error_rate == pytest.approx(errors_of(run, f"{model.name}-1", f"{model.name}-2"))
    student = comparison.models[1]
    assert student.about == "the small one"
    assert student.load_entropy == pytest.approx(0.5)  # an even layer and a layer of one expert
    assert student.audio_hours == pytest.approx(10 * 0.5 * 36 / 3600)


def test_a_student_costs_its_own_training_and_that_of_its_teacher(run):
    teacher, student = read_comparison(run).models
    assert teacher.operations == pytest.approx(10 * 0.5 * 2e14)
    assert teacher.whole_operations == pytest.approx(teacher.operations)
    assert student.whole_operations == pytest.approx(student.operations + teacher.operations)


def test_the_cost_of_a_student_is_not_told_where_its_teacher_is_of_another_run(run, tmp_path):
    recipe = load_recipe("mini", ["seeds=[1, 2]", f"stages.student.teacher={tmp_path}/elsewhere/model"])
    run.recipe_file.write_text(dump_recipe(recipe))
    _, student = read_comparison(run).models
    assert student.whole_operations is None
    assert student.teacher is None


def test_a_model_is_set_against_the_models_that_its_recipe_names(run, tmp_path):
    recipe = load_recipe("mini", ["seeds=[1, 2]", "stages.student.compare_to=[teacher]"])
    run.recipe_file.write_text(dump_recipe(recipe))
    page = tmp_path / "results.md"
    assert main(["compare", str(run.path), "--out", str(page)]) == 0
    row = next(line for line in page.read_text().splitlines() if line.startswith("| `student` | +"))
    assert row.count("`teacher`: ") == 1
    assert "(detects " in row


def test_a_comparison_with_a_stage_that_the_recipe_does_not_train_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match=r"student.*'techer' \(compare_to\).*teacher"):
        load_recipe("mini", ["stages.student.compare_to=[techer]"])
    with pytest.raises(ConfigError, match="compare_to"):
        load_recipe("mini", ["stages.student.compare_to=[student]"])


def test_the_page_says_what_was_found_and_writing_it_again_changes_nothing(run, tmp_path, capsys):
    page = tmp_path / "results.md"
    assert main(["compare", str(run.path), "--out", str(page), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    text = page.read_text()
    picture = tmp_path / "results-pair.svg"
    assert written == [str(page), str(picture)]
    cer = 100 * errors_of(run, "student-1", "student-2")
    row = next(line for line in text.splitlines() if line.startswith("| `student` | the small one"))
    assert f"| 33.3% | 900 | {cer:.2f}% [" in row
    each = ", ".join(f"{100 * errors_of(run, name):.2f}" for name in ("student-1", "student-2"))
    assert f"| {each} |" in row
    more = errors_of(run, "student-1", "student-2") / errors_of(run, "teacher-1", "teacher-2") - 1
    assert f"with 33.3% of the encoder parameters of `teacher`, makes {100 * more:+.1f} % [" in text
    assert f"]({picture.name})" in text
    assert "Seeds 1, 2; `teacher` 3,400 steps, 0.1 h of audio; `student` 2,600 steps, 0.1 h of audio." in text
    drawn = picture.read_text()
    ElementTree.fromstring(drawn)
    assert "teacher" in drawn
    assert "prefers-color-scheme: dark" in drawn
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", drawn)) <= set(re.findall(r"(--[a-z0-9-]+):", drawn))
    main(["compare", str(run.path), "--out", str(page)])
    assert (page.read_text(), picture.read_text()) == (text, drawn)


def test_an_html_page_has_the_same_findings_and_stands_alone(run, tmp_path, capsys):
    markdown = tmp_path / "results.md"
    page = tmp_path / "results.HTML"
    assert main(["compare", str(run.path), "--out", str(markdown), "--out", str(page), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert [name.rsplit("/", 1)[-1] for name in written] == ["results.md", "results-pair.svg", "results.HTML"]
    html = page.read_text()
    for fetching in ("<script", "<img", "src=", "@import"):
        assert fetching not in html
    assert re.findall(r'href="(?!#)', html) == []
    # The verdict of the Markdown page, in words, and the intervals of both rates.
    verdict = re.search(r"makes (\S+ % \[[^]]*\]) errors", markdown.read_text())[1]
    assert f"student, with 33% of the encoder parameters of teacher, against it: {verdict}" in html
    rate = re.search(r"\| `student` .*?\| (\d+\.\d+%) \[", markdown.read_text())[1]
    assert rate in html
    # The fewest errors come first in the table.
    names = re.findall(r'class="chip series-\d"></i>(teacher|student)', html)
    assert names[:2] == ["teacher", "student"]
    before = html
    main(["compare", str(run.path), "--out", str(page)])
    assert page.read_text() == before


def test_several_comparisons_on_one_html_page_have_ids_of_their_own(run, tmp_path):
    other = build_run(tmp_path / "runs/other")
    page = tmp_path / "page.html"
    assert main(["compare", str(run.path), str(other.path), "--out", str(page)]) == 0
    ids = re.findall(r' id="([^"]+)"', page.read_text())
    assert len(ids) == len(set(ids))
    assert page.read_text().count("<svg") == 4


def test_a_seed_that_has_not_converged_is_marked_and_left_out_once(run, tmp_path):
    rows = [{"key": f"key-{index:02d}", "reference": text, "hypothesis": ""} for index, text in enumerate(TEXTS)]
    write_lines(run.stage("evaluation").hypotheses_file("student-1"), rows)
    page = tmp_path / "results.md"
    assert main(["compare", str(run.path), "--out", str(page)]) == 0
    text = page.read_text()
    assert f"| 100.00 †, {100 * errors_of(run, 'student-2'):.2f} |" in text
    second_seed = errors_of(run, "student-2") / errors_of(run, "teacher-2") - 1
    both_seeds = errors_of(run, "student-1", "student-2") / errors_of(run, "teacher-1", "teacher-2") - 1
    row = next(line for line in text.splitlines() if line.startswith("| `student` | ") and "`teacher`: " in line)
    assert f"`teacher`: {100 * both_seeds:+.1f} % [" in row
    assert f"; seed 2: {100 * second_seed:+.1f} % [" in row


def test_a_run_without_an_evaluation_is_refused_with_the_way_on(run, capsys, tmp_path):
    run.stage("evaluation").evaluation_file.unlink()
    assert main(["compare", str(run.path), "--out", str(tmp_path / "page.md")]) == 2
    assert "has no evaluation yet" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_an_evaluation_that_kept_no_hypotheses_is_named_with_the_file(run):
    run.stage("evaluation").hypotheses_file("student-2").unlink()
    with pytest.raises(ConfigError, match=r"student-2\.jsonl"):
        read_comparison(run)


@given(st.integers(1, 4), st.integers(2, 30), st.integers(0, 1000))
def test_a_model_differs_from_itself_by_nothing(seeds, utterances, seed):
    """relative_difference(e, e) = 0 in every replicate, however the draws fall."""
    generator = np.random.default_rng(seed)
    errors_SU = generator.integers(1, 5, (seeds, utterances)).astype(float)
    lengths_U = generator.integers(5, 20, utterances).astype(float)
    difference = relative_difference(errors_SU, errors_SU, lengths_U, Draws.sample(utterances, seeds, replicates=50))
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_intervals_hold_the_true_rate_as_often_as_they_say():
    """Of 300 test sets drawn at a known rate, 95 % of the intervals hold it, within three standard deviations."""
    generator = np.random.default_rng(3)
    lengths_U = np.full(200, 20.0)
    draws = Draws.sample(200, 1, replicates=1000)
    true_rate = 0.1
    held = 0
    for _ in range(300):
        errors_SU = generator.binomial(20, true_rate, (1, 200)).astype(float)
        estimate = interval(rate(errors_SU, lengths_U), draws.rates(errors_SU, lengths_U))
        held += estimate.low <= true_rate <= estimate.high
    assert held / 300 == pytest.approx(0.95, abs=0.038)


def test_seeds_that_disagree_widen_the_interval():
    utterances = 300
    lengths_U = np.full(utterances, 10.0)
    agreeing = np.ones((3, utterances))
    disagreeing = np.stack([np.zeros(utterances), np.ones(utterances), np.full(utterances, 2.0)])
    draws = Draws.sample(utterances, 3)
    narrow = interval(rate(agreeing, lengths_U), draws.rates(agreeing, lengths_U))
    wide = interval(rate(disagreeing, lengths_U), draws.rates(disagreeing, lengths_U))
    assert narrow.value == wide.value
    assert narrow.high - narrow.low == 0
    assert (wide.low, wide.high) == (0.0, pytest.approx(0.2))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.integers(1, 30))
def test_models_of_one_size_are_moved_apart_around_it_and_no_others_are_moved(sizes, gap):
    """Neighbours stand at least `gap` apart, in the order of their sizes, and their mean stays where it was."""
    placed = _spread([Point("model", size, Interval(0.1, 0.1, 0.1)) for size in sizes], gap)
    places = [place for _, place in placed]
    assert [point.encoder_parameters for point, _ in placed] == sorted(sizes)
    assert all(after - before >= gap - 1e-6 for before, after in pairwise(places))
    assert np.mean(places) == pytest.approx(np.mean(sizes))
    if all(after - before >= gap for before, after in pairwise(sorted(sizes))):
        assert places == pytest.approx(sorted(sizes))


def test_draws_take_ten_kilobytes_per_utterance_and_are_those_of_one_block(monkeypatch):
    """rates of R replicates in blocks == rates of R replicates at once"""
    utterances, replicates = 300, 2000
    generator = np.random.default_rng(5)
    errors_SU = generator.integers(0, 9, (2, utterances)).astype(float)
    lengths_U = generator.integers(1, 40, utterances).astype(float)
    draws = Draws.sample(utterances, 2, replicates)
    assert draws.utterances_RU.nbytes == utterances * replicates
    monkeypatch.setattr(bootstrap, "BLOCK_REPLICATES", replicates)
    at_once = Draws.sample(utterances, 2, replicates)
    assert np.array_equal(draws.utterances_RU, at_once.utterances_RU)
    assert np.array_equal(draws.rates(errors_SU, lengths_U), at_once.rates(errors_SU, lengths_U))
