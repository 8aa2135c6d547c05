"""What is called by other people cannot act on a terminal, in a page or in a picture, nor look like something else."""

import html.parser
import json
import sys

import pytest
import yaml

from launcher import cli
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
    parser = Elements()
    parser.feed(page)
    assert not parser.elements & {"img", "onerror=", "script"}
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
