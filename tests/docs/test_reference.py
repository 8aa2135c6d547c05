"""The reference says what the code says: no key, command, event, metric or file is missing, and none is made up."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from docs.generate import PAGES
from docs.generate.commands import EXAMPLES, all_commands
from docs.generate.records import EVENTS, METRICS
from docs.generate.run_folder import RUN_FILES, STAGE_FILES
from launcher.cli import build_parser
from launcher.run_folder import RunFolder, StageFolder

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# The outcome of a stage is part of the name of its event.
OUTCOMES = {"stage_done", "stage_failed", "stage_stopped"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_reference_is_what_the_code_says(name):
    page = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert page == PAGES[name](), "run `make reference`"


def test_every_command_has_an_example_that_its_parser_takes():
    commands = [command.words for command in all_commands()]
    # The commands of `prepare` and `shards` are corpora and tools with options of their own.
    assert {words for words in commands if " " not in words} - set(EXAMPLES) == {"shards"}
    assert set(EXAMPLES) <= set(commands)
    for example in EXAMPLES.values():
        words = shlex.split(example)[1:]
        assert build_parser(words).parse_args(words)


def test_every_key_of_a_recipe_has_a_meaning():
    page = (DOCS / "reference" / "recipe.md").read_text(encoding="utf-8")
    without = []
    for line in page.splitlines():
        # `name` and `kind` of a mapping that they choose say all with their type.
        if line.startswith("| `") and line.endswith("|  |") and not re.match(r'\| `\w+` \| "', line):
            without.append(line)
    assert without == []


def calls_of_events() -> set[str]:
    """The names of events that the code writes."""
    names = set()
    for path in (ROOT / "launcher").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr="append_event" | "event"), args=[ast.Constant(value), *_]):
                    names.add(value)
                case ast.Assign(targets=[ast.Name(id="event")], value=ast.Constant(value)):
                    names.add(value)
                case ast.Dict():
                    for key, value in zip(node.keys, node.values, strict=True):
                        if isinstance(key, ast.Constant) and key.value == "event" and isinstance(value, ast.Constant):
                            names.add(value.value)
    return names


def test_events_are_those_that_the_code_writes():
    assert set(EVENTS) == calls_of_events() | OUTCOMES


def test_terms_of_the_loss_are_those_that_the_code_adds_up():
    pattern = re.compile(r'"((?:loss|validation|goodput)/[a-z_]+)"')
    names = set()
    for path in (ROOT / "launcher" / "training").rglob("*.py"):
        names |= set(pattern.findall(path.read_text(encoding="utf-8")))
    listed = {key for key, _, _ in METRICS}
    assert names <= listed
    assert {key for key in listed if key.startswith("loss/")} <= names


def test_files_are_those_of_a_run_folder():
    for folder, files in ((RunFolder("/run"), RUN_FILES), (StageFolder(Path("/run")), STAGE_FILES)):
        names = set()
        for value in vars(folder).values():
            if isinstance(value, Path) and value != folder.path:
                names.add(str(value.relative_to(folder.path)))
        assert names <= set(files)
