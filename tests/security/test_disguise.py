"""What is called by other people cannot act on a terminal, in a page or in a picture, nor look like something else."""

import html.parser
import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from data.errors import DataError
from launcher import cli
from launcher.comparison.model_results import EvaluationSet, Training
from launcher.comparison.records import read_records, write_records
from launcher.plain_text import PrintableStream, make_console, markdown_line, printable, printable_output, table_cell
from launcher.report import write_report

# A colour, a title of the window, a cleared line, C1's own introducer, an override of direction, a nul, a backspace,
# what ends lines without being "\n", half a character, none at all.
ACTING = [
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\r\x1b[K",
    "\x9b31m",
    "\u202e",
    "\x00",
    "\x08",
    "\u2028",
    "\x85",
    "\ud800",
    "\uffff",
]
HARMLESS = ["teacher", "हिन्दी की", "می‌خواهم", "\u200fעברית", "a\tb\n", "👩‍👩‍👧", "<b>", "[bold]", "$x$", "\\u001b"]


@pytest.mark.parametrize("text", ACTING)
def test_what_acts_is_shown_as_its_escape(text):
    shown = printable(f"a{text}b")
    assert shown.startswith("a\\u")
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize("text", HARMLESS)
def test_what_people_write_stays(text):
    assert printable(text) == text


def test_json_that_is_printed_stays_json():
    value = {"key": "".join(ACTING[:-2])}
    assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value


@pytest.mark.parametrize("text", ACTING)
def test_all_that_is_printed_is_printable(capsys, text):
    with printable_output():
        print(f"a{text}b")
        print(f"c{text}d", file=sys.stderr)
        sys.stdout.writelines([text, "\n"])
    assert not isinstance(sys.stdout, PrintableStream)
    output, errors = capsys.readouterr()
    for line in [*output.split("\n"), *errors.split("\n")]:
        assert line.isprintable()


@pytest.mark.parametrize("text", [*ACTING, "[bold]", "[/red]", "[link=http://x]y[/link]", ":smile:"])
def test_a_cell_of_a_table_shows_markup_and_does_not_follow_it(capsys, text):
    from rich.table import Table

    with printable_output():
        table = Table(box=None)
        table.add_column("name", no_wrap=True)
        table.add_row(table_cell(f"<{text}>"))
        make_console(width=200).print(table)
    assert f"<{printable(text)}>" in capsys.readouterr().out


class Elements(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.elements = set()

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.elements.update(f"{name}=" for name, _ in attributes)


def elements_of(page: str) -> set[str]:
    parser = Elements()
    parser.feed(page)
    return parser.elements


@pytest.fixture
def received(tmp_path):
    """A run folder of somebody whose names and texts are markup, escapes and mathematics."""
    name = "<img src=x onerror=a()> & [b] $\\frac$ \x1b[31m\u202e -->"
    stages = [
        {"name": name, "kind": "pretrain", "steps": 20},
        {"name": "evaluation", "kind": "evaluate", "split": name},
    ]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": name, "stages": stages}))
    folder = tmp_path / name
    (folder / "logs").mkdir(parents=True)
    rows = []
    for step in range(1, 21):
        row = {"step": step, "loss": 1.0 / step, "grad_norm": 1.0, "learning_rate": 1e-3, "time": float(step)}
        rows.append(json.dumps(row | {f"experts/{name}/load": [0.5, 0.5], f"loss/{name}": 1.0}))
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    (folder / "logs" / "rank-0.log").write_text(f"quarantined: utterance {name}: {name}\n")
    broken = {"split": name, "key": name, "shard": name, "offset": 1, "reason": name}
    (folder / "logs" / "quarantined-00.jsonl").write_text(json.dumps(broken) + "\n")
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": name, "stage": name, "time": 1.0, name: name}) + "\n")
    (tmp_path / "state.json").write_text(json.dumps({"format": 1, "recipe": name, "stages": {name: {"status": name}}}))
    return tmp_path


@pytest.mark.filterwarnings("ignore:(Glyph 27|constrained_layout not applied)")
def test_a_report_of_a_received_run_folder_holds_no_element_of_its_names(received):
    write_report(received)
    page = (received / "report.html").read_text(encoding="utf-8")
    assert not elements_of(page) & {"img", "onerror=", "script"}
    assert page.isprintable() or set(filter(lambda c: not c.isprintable(), page)) <= {"\n", "\t"}
    assert "&lt;img src=x" in page


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["report"], ["evaluate"], ["sync"]])
def test_commands_on_a_received_run_folder_print_what_can_be_read(received, capsys, arguments):
    name, *options = arguments
    assert cli.main([name, str(received), *options]) in (0, 2)
    output, errors = capsys.readouterr()
    for line in [*output.split("\n"), *errors.split("\n")]:
        assert line.isprintable()
    # Markup is neither followed nor eaten, in a table or in what refuses the folder.
    if name == "status":
        assert "[b]" in output + errors


@pytest.mark.parametrize("text", ACTING[:-2])
def test_errors_name_paths_and_settings_readably(capsys, text):
    for arguments in (["plan", f"{text}.yaml"], ["plan", "mini", "--set", f"{text}=1"], ["status", text]):
        try:
            code = cli.main(arguments)
        except SystemExit as stopped:
            code = stopped.code
        assert code == 2
        output, errors = capsys.readouterr()
        for line in [*output.split("\n"), *errors.split("\n")]:
            assert line.isprintable()


MARKUP = "<img src=x onerror=a()> ![a](http://x) ` **b** | $\\frac$ [c](d) \x1b[31m\u202e"
EVALUATED = EvaluationSet("test", "greedy", 1, 9.0, "0" * 64, characters=(10, 20), words=(2, 4))
TRAINING = Training(
    stage="teacher",
    model="teacher",
    about="a model",
    seed=1,
    recipe="mini",
    settings_sha256="0" * 64,
    steps=10,
    teacher=None,
    compare_to=(),
    parameters=100,
    encoder_parameters=90,
    real_time_factor=0.1,
    load_entropy=None,
    minutes=1.0,
    operations=1e9,
    whole_operations=None,
    audio_hours=1.0,
    character_errors=(1, 2),
    word_errors=(1, 1),
)


def received_records(folder, training=None, header=None):
    """A folder of records from somebody else."""
    write_records(folder, EVALUATED, [TRAINING])
    for name, changes in (("teacher.json", training or {}), ("evaluated.json", header or {})):
        record = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(record | changes))
    return folder


def test_a_comparison_of_received_records_shows_markup_and_does_not_follow_it(tmp_path):
    folder = received_records(
        tmp_path / "a](b) [c] $x_$ <b>", {"about": MARKUP, "recipe": MARKUP}, {"split": MARKUP, "search": MARKUP}
    )
    out = tmp_path / "page.md"
    assert cli.main(["compare", str(folder), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    for line in page.split("\n"):
        assert line.isprintable()
    # Outside of code, where no element begins and no link, but for the one to the picture.
    parts = re.sub(r"`[^`\n]*`", "", page)
    assert not re.search(r"(?<!\\)<img|(?<!\\)\*\*b", parts)
    assert re.findall(r"(?<!\\)\]\(([^)]*)\)", parts) == ["page-a%5D%28b%29%20%5Bc%5D%20%24x_%24%20%3Cb%3E.svg"]
    html = tmp_path / "page.html"
    assert cli.main(["compare", str(folder), "--out", str(html)]) == 0
    assert not elements_of(html.read_text(encoding="utf-8")) & {"img", "script", "onerror=", "src="}
    assert "&lt;img src=x" in html.read_text(encoding="utf-8")
    picture = (tmp_path / "page-a](b) [c] $x_$ <b>.svg").read_text(encoding="utf-8")
    assert not {"img", "script", "onerror="} & elements_of(picture)


@pytest.mark.parametrize("key", ["stage", "model", "teacher", "compare_to"])
@pytest.mark.parametrize("name", [MARKUP, "../x", "a b", "$x$", "", "a" * 300, "a`b", "a|b"])
def test_a_record_that_names_what_no_stage_is_called_is_refused(tmp_path, key, name):
    value = [name] if key == "compare_to" else name
    with pytest.raises(DataError, match="is no name of a stage") as refusal:
        read_records(received_records(tmp_path / "records", {key: value}))
    assert "\n" not in str(refusal.value)


HOSTILE_NUMBERS = [
    {"encoder_parameters": 0},
    {"parameters": -1},
    {"parameters": 10**40},
    {"minutes": float("nan")},
    {"operations": float("inf")},
    {"real_time_factor": True},
    {"steps": 1.5},
    {"steps": 10**300},
    {"character_errors": {"-1": 3}},
    {"character_errors": {"0": -3}},
    {"word_errors": {"0": True}},
    {"word_errors": {"9": 1}},
    {"word_errors": {"1" * 5000: 1}},
    {"word_errors": []},
    {"word_errors": None},
]
HOSTILE_HEADERS = [
    {"characters": []},
    {"characters": [0, 0]},
    {"words": [0, 0]},
    {"words": [-1, 9]},
    {"words": None},
    {"seconds": float("nan")},
    {"models": "teacher"},
    {"models": [1]},
    {"split": 3},
]


@pytest.mark.parametrize("changes", HOSTILE_NUMBERS, ids=str)
def test_a_record_of_numbers_that_no_training_has_is_refused(tmp_path, changes):
    with pytest.raises(DataError, match=r"teacher\.json holds something else than a training") as refusal:
        read_records(received_records(tmp_path / "records", training=changes))
    assert len(str(refusal.value)) < 2000


@pytest.mark.parametrize("changes", HOSTILE_HEADERS, ids=str)
def test_a_header_of_records_with_which_nothing_can_be_computed_is_refused(tmp_path, changes):
    with pytest.raises(DataError, match=r"evaluated\.json does not have the keys"):
        read_records(received_records(tmp_path / "records", header=changes))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("shared blocks, norms_of_layers (2 + 2)", "shared blocks, norms_of_layers (2 + 2)"),
        ("a | b", r"a \| b"),
        ("<script>alert(1)</script>", r"\<script\>alert(1)\</script\>"),
        ("![x](http://x)", r"!\[x\](http://x)"),
        ("`code` *loud* \\", r"\`code\` \*loud\* \\"),
        ("two\n\n# lines\x1b[1m", r"two # lines\\u001b\[1m"),
    ],
)
def test_a_description_of_a_model_stays_one_cell_of_a_table_in_markdown(text, line):
    assert markdown_line(text) == line


def test_a_run_in_a_folder_whose_name_is_no_text_does_not_cost_the_gauges_of_others() -> None:
    pytest.importorskip("prometheus_client")
    from launcher.board.prometheus import render_metrics

    runs = {}
    for name in ("good", "a\udcffb", "a\n# HELP\x1b[31m", "\u202ea"):
        values = {"step": 1.0}
        runs[name] = SimpleNamespace(
            name=name, summary={"state": "running", "training_stage": "t"}, prometheus_values=values.copy
        )
    watcher: Any = SimpleNamespace(runs=runs)
    text = render_metrics(watcher).decode()
    assert 'chorus_run_step{run="good",stage="t"} 1.0' in text
    assert text.count("chorus_run_step{") == len(runs)
    assert "\x1b" not in text
