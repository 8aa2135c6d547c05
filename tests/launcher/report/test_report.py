"""The report must say what a run found, be complete in itself, and cope with a run in any state."""

import json
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jiwer
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ConfigError
from launcher.formatting import MISSING
from launcher.report import results_table, svg, write_report
from launcher.report.figures import smooth
from launcher.report.page import headline
from launcher.report.results import tabulate
from launcher.report.run_data import Series, average_load, read_run_data
from launcher.report.sizes import tabulate_sizes
from launcher.report.text_diff import differences
from launcher.tracking import read_metrics

START_TIME_S = 1.79e9
SENTENCES = [
    ("ru_0002", "в четыре часа дня в петербурге на проспекте красных зорь появилось странное объявление"),
    ("ru_0032", "небольшой серой бумаги листок прибитый к облупленной стене пустынного дома"),
    (
        "ru_0069",
        "корреспондент американской газеты арчибальд скайльс проходя мимо увидел стоявшую перед объявлением",
    ),
    ("ru_0099", "зовите его сюда сказал лось"),
    ("ru_0124", "это же бред проговорил он наконец"),
]


def metric_rows(seed: int, steps: int, parts: list[str], layers: int) -> list[dict]:
    """Rows as a trainer writes them: a falling noisy loss, a schedule, drifting experts."""
    generator = np.random.default_rng(seed)
    bias_LE = generator.normal(0, 0.35, (layers, 4))
    rows, moment_s = [], START_TIME_S
    for step in range(1, steps + 1):
        progress = step / steps
        step_s = 0.42 + 0.05 * generator.random() + (1.5 if step == 1 else 0)
        moment_s += step_s
        base = 0.35 + 5.2 * np.exp(-5 * progress)
        row = {
            "step": step,
            "epoch": step // 40,
            "loss": base * (1 + 0.12 * generator.normal()),
            "learning_rate": 1e-3 * min(step / 60, 0.5 * (1 + np.cos(np.pi * progress)) + 0.02),
            "grad_norm": float(np.exp(generator.normal(0.3 + np.exp(-4 * progress), 0.35))),
            "audio_s_per_s": 61 + 4 * generator.normal(),
            "data_wait": float(np.clip(0.03 + 0.02 * generator.normal(), 0, 1)),
            "step_s": step_s,
            "time": moment_s,
        }
        for index, part in enumerate(parts):
            row[part] = base * (0.8, 0.5, 0.12, 0.3)[index] * (1 + 0.05 * generator.normal())
        for layer in range(layers):
            logits = bias_LE[layer] * (1 - 0.8 * progress) + 0.1 * generator.normal(size=4)
            load = np.exp(logits) / np.exp(logits).sum()
            row[f"experts/layer-{layer:02d}/load"] = load.tolist()
            row[f"experts/layer-{layer:02d}/entropy"] = 1.38 - (0.2 + 0.12 * layer) * progress
        rows.append(row)
        if step % 60 == 0:
            moment_s += 4.5  # 3 s of validation, 1.5 s for a checkpoint
            error_rate = 0.07 + 0.9 * np.exp(-4 * progress)
            validation = {"validation/loss": base * 1.15, "validation/cer": error_rate, "validation_s": 3.0}
            rows.append({"step": step, **validation, "time": moment_s})
    return rows


def model_sizes(encoder: int, effective: int, activated: int, cer: float) -> dict:
    scores = {"cer": cer, "wer": 2.9 * cer, "utterances": 212, "rtf": 0.031}
    return {
        "parameters": encoder + 400_000,
        "encoder_parameters": encoder,
        "effective_encoder_parameters": effective,
        "activated_encoder_parameters": activated,
        "encoder_operations_per_s": 2.0 * 25 * activated,
        "operations_per_s": 2.0 * 25 * (activated + 400_000),
        "test": scores,
    }


MODELS = {
    "teacher": model_sizes(3_812_352, 3_812_352, 3_812_352, 0.079),
    "student": model_sizes(1_247_040, 5_402_112, 3_402_112, 0.083),
    "student-without-experts": model_sizes(703_400, 3_812_352, 3_812_352, 0.104),
}


def with_errors(text: str, errors: int) -> str:
    words = text.split()
    for index in range(errors):
        place = (3 * index + 1) % len(words)
        words[place] = ("", words[place][:-1] + "ы", words[place] + " и")[index % 3]
    return " ".join(word for word in words if word)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(run: Path) -> None:
    student = {"encoder": {"layers": 6, "groups": 3, "experts": {"num_experts": 4, "per_frame": 2}}}
    stages = [
        {"name": "teacher", "kind": "pretrain", "steps": 480, "model": {"encoder": {"layers": 6}}},
        {"name": "student", "kind": "distill", "teacher": "teacher", "steps": 600, "model": student},
        {"name": "evaluation", "kind": "evaluate", "models": list(MODELS), "split": "test"},
    ]
    recipe = {"name": "mini", "seed": 1, "corpus": {"name": "aelita"}, "stages": stages}
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def write_events(run: Path) -> None:
    events = [
        {"event": "stage_started", "stage": "teacher", "from_step": 0},
        {"event": "stage_done", "stage": "teacher", "step": 480},
        {"event": "stage_started", "stage": "student", "from_step": 0},
        {"event": "process_lost", "stage": "student", "rank": 1, "reason": "rank 1 was killed by signal 9"},
        {"event": "restart", "stage": "student", "restart": 1, "from_step": 200},
    ]
    write_rows(run / "events.jsonl", [{"time": START_TIME_S + 90 * i, **event} for i, event in enumerate(events)])


def build_run(run: Path) -> Path:
    """A finished run: a teacher, a student with 6 layers of 4 experts, an evaluation of three models."""
    write_recipe(run)
    write_events(run)
    write_rows(run / "teacher/metrics.jsonl", metric_rows(1, 480, ["loss/ctc", "loss/attention"], layers=0))
    parts = ["loss/ctc", "loss/attention", "loss/balance", "distill/hidden"]
    write_rows(run / "student/metrics.jsonl", metric_rows(2, 600, parts, layers=6))
    for stage, step in (("teacher", 480), ("student", 600)):
        (run / stage / "done.json").write_text(json.dumps({"status": "done", "step": step}))
    examples = {
        name: [
            {"key": key, "reference": text, "hypothesis": with_errors(text, (index + place) % 4)}
            for place, (key, text) in enumerate(SENTENCES)
        ]
        for index, name in enumerate(MODELS)
    }
    evaluated = {name: {**model, "examples": examples[name]} for name, model in MODELS.items()}
    (run / "evaluation").mkdir()
    (run / "evaluation/evaluation.json").write_text(json.dumps({"models": evaluated}))
    (run / "results.json").write_text(json.dumps({"models": MODELS}))
    return run


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "mini")


@pytest.fixture(scope="module")
def page(finished_run) -> str:
    return write_report(finished_run).read_text()


class TagChecker(HTMLParser):
    """Collects ids, references and unclosed tags."""

    VOID = {"meta", "br", "link", "img"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open_tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open_tags.pop()

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


def text_of(page: str) -> str:
    without_style = re.sub(r"<style.*?</style>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", without_style).split())


def test_the_page_is_well_formed_and_fetches_nothing(page):
    checker = TagChecker()
    checker.feed(page)
    assert checker.open_tags == []
    assert checker.fetched == []
    assert "@import" not in page
    assert "<script" not in page
    assert not re.search(r"url\((?!#)", page)


def test_no_two_figures_share_an_id_and_every_reference_has_its_target(page):
    checker = TagChecker()
    checker.feed(page)
    assert len(checker.ids) == len(set(checker.ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(checker.ids)


def test_figures_take_their_colours_from_the_page_so_that_dark_mode_and_print_serve_them(page):
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.S))
    assert figures.count("<path") > 50
    assert re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", figures) == []
    variables = set(re.findall(r"var\((--[a-z0-9-]+)\)", page))
    defined = set(re.findall(r"(--[a-z0-9-]+):", page))
    assert variables <= defined


def test_figures_are_drawn_in_the_light_colours_of_the_page_each_of_one_role(page):
    light = page.split("@media")[0]
    for colour, variable in svg.CSS_VARIABLES.items():
        assert f"{variable}: {colour};" in light
    assert len(svg.CSS_VARIABLES) == 4 + len(svg.SERIES) + len(svg.HEAT)


def test_the_headline_sets_the_student_beside_its_teacher(page):
    assert (
        "With 33% of the encoder parameters of teacher, student gets 8.3% of the test characters wrong, "
        "0.4 points more than teacher's 7.9%." in text_of(page).replace("&#39;", "'")
    )


def test_each_models_sizes_and_operations_are_in_one_table(page):
    text = text_of(page)
    assert "GFLOPs per s of audio, encoder" in text
    assert "student 1.65 M 1.25 M 5.40 M 3.40 M 0.170 0.190" in text


def test_a_model_that_was_evaluated_before_operations_were_counted_has_a_dash_for_them():
    (row,) = tabulate_sizes({"old": model_sizes(1_000, 2_000, 1_500, 0.1) | {"operations_per_s": None}})
    assert row.cells()[-1] == MISSING
    assert row.cells()[:2] == ("old", "401 k")


def test_every_section_of_a_finished_run_has_its_content(page):
    assert 'class="none"' not in page
    text = text_of(page)
    for expected in (
        "Loss from",
        "The 4 parts of the loss",
        "student: the busiest expert takes",
        "student: how sure the routers are",
        "seconds of audio per second",
        "waiting for data",
        "rank 1 was killed by signal 9",
        "600 of 600, 1 restart",
        "зовите его сюда сказал лось",
        "num_experts: 4",
    ):
        assert expected in text.replace("\u202f", " "), expected


@pytest.mark.alone
def test_a_finished_run_is_reported_in_under_five_seconds_and_without_pyplot(finished_run):
    command = "import sys; from pathlib import Path; from launcher.report import write_report as write; "
    command += "write(Path(sys.argv[1])); assert 'matplotlib.pyplot' not in sys.modules"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", command, str(finished_run)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Time of the processor, which other tests beside this one do not lengthen.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_drawing_leaves_matplotlib_as_it_was(finished_run):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_report(finished_run)
    assert dict(mpl.rcParams) == before


def test_a_run_that_has_only_begun_says_what_is_missing(tmp_path):
    write_recipe(tmp_path)
    rows = metric_rows(1, 7, ["loss/ctc"], layers=0)
    write_rows(tmp_path / "teacher/metrics.jsonl", rows)
    with (tmp_path / "teacher/metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    text = text_of(write_report(tmp_path).read_text())
    assert "No model has been evaluated yet; 0 of 3 stages are done." in text
    assert "step 7 of 480" in text
    assert "No step recorded yet: student." in text
    assert "A model with experts is planned; it has recorded no load yet." in text
    assert "No evaluation has kept examples yet." in text
    assert "No event has been recorded." in text


def test_an_empty_run_folder_gets_a_report_and_a_missing_one_an_error_that_names_it(tmp_path):
    text = text_of(write_report(tmp_path).read_text())
    assert "recipe.yaml could not be read" in text
    assert "No training stage has recorded a step." in text
    with pytest.raises(ConfigError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_torn_files_are_named_in_the_report(tmp_path):
    write_recipe(tmp_path)
    (tmp_path / "results.json").write_text('{"models": {')
    (tmp_path / "events.jsonl").write_text('{"time": 1.0, "event": "stage_started"}\n{"time": 2.')
    text = text_of(write_report(tmp_path).read_text())
    assert "results.json could not be read" in text
    assert "stage started" in text


def test_quarantined_utterances_are_listed_once_with_their_shard(tmp_path):
    write_recipe(tmp_path)
    log = tmp_path / "teacher/logs/rank-00.log"
    log.parent.mkdir(parents=True)
    line = (
        "Skipped broken utterance 1 of 9: Utterance a b at offset 512 of corpus/shard-000003.tar is broken: its bytes "
        "are not readable (x. y). Look at the split with `chorus shards verify`, then write it again.\n"
    )
    log.write_bytes((line * 2 + "something else\n").encode() + b"\xff\n")
    text = text_of(write_report(tmp_path).read_text())
    assert "Quarantined utterances" in text
    assert text.count("corpus/shard-000003.tar is broken: its bytes are not readable (x. y)") == 1


def test_a_loss_that_was_not_finite_leaves_a_gap_and_no_error(tmp_path):
    write_recipe(tmp_path)
    rows = metric_rows(1, 40, ["loss/ctc"], layers=0)
    rows[10]["loss"] = rows[20]["grad_norm"] = None
    write_rows(tmp_path / "teacher/metrics.jsonl", rows)
    assert "Loss from" in write_report(tmp_path).read_text()


def test_a_single_step_is_enough_for_a_report(tmp_path):
    write_recipe(tmp_path)
    write_rows(tmp_path / "student/metrics.jsonl", metric_rows(1, 1, ["loss/ctc"], layers=2))
    assert "the busiest expert" in write_report(tmp_path).read_text()


def test_text_from_a_run_cannot_become_markup(tmp_path):
    write_recipe(tmp_path)
    hostile = "<script>alert(1)</script> $x_1$ & more"
    example = {"key": hostile, "reference": hostile, "hypothesis": "<b>bold</b>"}
    model = {**MODELS["teacher"], "examples": [example]}
    (tmp_path / "evaluation").mkdir()
    content = {"models": {hostile: model}}
    (tmp_path / "evaluation/evaluation.json").write_text(json.dumps(content))
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "<b>bold" not in page
    assert "$x_1$" in page


def test_a_long_file_is_thinned_but_keeps_every_validation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1.0} for step in range(1000)]
    rows += [{"step": step, "validation/cer": 0.5} for step in range(1000, 1010)]
    write_rows(path, rows)
    thinned = list(read_metrics(path, thin_to=100))
    assert len(thinned) <= 120
    assert sum("validation/cer" in row for row in thinned) == 10


def test_the_table_takes_the_share_from_the_teacher_the_recipe_distils_from():
    models = {"large": MODELS["teacher"], "student": MODELS["student"]}
    recipe = {"stages": [{"name": "student", "kind": "distill", "teacher": "large"}]}
    table = tabulate(models, recipe)
    assert [row.is_teacher for row in table.rows] == [True, False]
    assert table.rows[1].share == pytest.approx(1_247_040 / 3_812_352)


def test_the_table_reads_the_evaluations_while_there_are_no_results_yet(finished_run, tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/evaluation.json").write_bytes((finished_run / "evaluation/evaluation.json").read_bytes())
    assert [row.model for row in results_table(tmp_path).rows] == list(MODELS)
    assert results_table(tmp_path / "evaluation").rows == ()


def test_the_table_as_text_is_aligned(finished_run):
    lines = str(results_table(finished_run)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert re.search(r"student +1\.25 M +32\.7% +5\.40 M +3\.40 M +8\.30% +24\.07% +0\.031", lines[2])


def test_the_table_names_the_search_where_one_is_not_greedy():
    beam = MODELS["student"]["test"] | {"cer": 0.07, "search": {"kind": "prefix_beam", "beam": 4}}
    greedy = MODELS["student"]["test"] | {"search": {"kind": "greedy"}}
    student = MODELS["student"] | {"test": greedy, "test/with-beam": beam}
    table = tabulate({"teacher": MODELS["teacher"], "student": student}, {})
    assert "search" not in tabulate(MODELS, {}).headings
    assert table.headings[-1] == "search"
    assert [cells[-1] for _, cells in table.lines()] == ["–", "greedy", "prefix beam"]
    assert [row.cer for row in table.others] == [0.07]
    assert "prefix beam" in str(table)


def test_a_headline_without_a_teacher_names_the_best_model():
    table = tabulate({"alone": MODELS["student"]}, {})
    assert headline(table, []) == "Alone gets 8.3% of the test characters wrong."


def test_the_load_is_relative_to_an_even_share(finished_run):
    stage = next(stage for stage in read_run_data(finished_run).stages if stage.name == "student")
    load_LE = average_load(stage)
    assert load_LE is not None
    assert load_LE.shape == (6, 4)
    np.testing.assert_allclose(load_LE.mean(axis=1), 1)


def test_smoothing_keeps_a_straight_line_and_follows_to_both_ends():
    line = Series(np.arange(200), np.linspace(0, 1, 200))
    np.testing.assert_allclose(smooth(line), line.values, atol=1e-12)


WORDS = st.lists(st.sampled_from(["а", "бэ", "вэ", "гэ"]), max_size=8).map(" ".join)


@given(reference=WORDS, hypothesis=WORDS)
def test_the_marked_pieces_give_back_both_texts(reference, hypothesis):
    """same + missing = reference; same + added = hypothesis; no errors exactly when both are equal"""
    pieces, errors, units = differences(reference, hypothesis)
    assert " ".join(piece.text for piece in pieces if piece.kind != "added") == reference
    assert " ".join(piece.text for piece in pieces if piece.kind != "missing") == hypothesis
    assert (errors == 0) == (reference == hypothesis)
    assert units == len(reference.split())


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_errors_and_units_are_jiwers(pairs):
    """sum of errors / sum of units = jiwer's error rate over the corpus; each text's errors are its edit distance."""
    references, hypotheses = (list(texts) for texts in zip(*pairs, strict=True))
    results = [differences(*pair) for pair in pairs]
    for (reference, hypothesis), (_, errors, _) in zip(pairs, results, strict=True):
        assert errors == edit_distance(reference.split(), hypothesis.split())
    if all(references):  # jiwer refuses an empty reference
        total = sum(errors for _, errors, _ in results) / sum(units for _, _, units in results)
        assert total == pytest.approx(jiwer.wer(references, hypotheses))


def edit_distance(one: list[str], other: list[str]) -> int:
    """Fewest substitutions, deletions and insertions, by the plain recursion over prefixes."""
    distances = list(range(len(other) + 1))
    for row, left in enumerate(one, start=1):
        diagonal, distances[0] = distances[0], row
        for column, right in enumerate(other, start=1):
            cheapest = min(diagonal + (left != right), distances[column] + 1, distances[column - 1] + 1)
            diagonal, distances[column] = distances[column], cheapest
    return distances[-1]


def test_the_characters_of_chinese_are_counted_as_jiwer_counts_them():
    reference, hypothesis = "今天 天气好", "今天天汽很好"
    _, errors, units = differences(reference, hypothesis)
    joined = reference.replace(" ", "")
    assert errors / units == pytest.approx(jiwer.cer(joined, hypothesis))


def test_chinese_is_compared_by_character():
    pieces, errors, units = differences("今天天气好", "今天天汽好")
    assert [(piece.kind, piece.text) for piece in pieces] == [
        ("same", "今天天"),
        ("missing", "气"),
        ("added", "汽"),
        ("same", "好"),
    ]
    assert (errors, units) == (1, 5)
