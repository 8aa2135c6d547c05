"""Run folders of others: they can be looked at, write nothing elsewhere, and exhaust nothing."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from limits import REPOSITORY, run_limited

from data.errors import DataError
from data.files import is_file_name, parse_json, read_json, remove_path, replacing
from data.shards.sources import SOURCES, changed_sources, read_sources
from launcher.bounded_yaml import load_yaml
from launcher.cli import main
from launcher.errors import ConfigError
from launcher.inference.hypotheses import read_hypotheses
from launcher.monitoring.status import load_run_recipe, open_run, run_status
from launcher.processes.run_processes import token_environment
from launcher.recipe import dump, load_recipe
from launcher.recipe.yaml_io import parse_recipe, parse_value
from launcher.report.run_data import Quarantined, read_run_data
from launcher.run_files import parse_metrics_row, read_recipe_values, read_state
from launcher.run_folder import RunFolder, write_json, write_lines, write_text
from launcher.stages.fingerprint import files_below, hash_folder
from launcher.tracking import MetricsLog, read_last_rows, read_metrics

RECORD = {"kind": "pretrain", "status": "running", "fingerprint": "f", "settings": {}, "inputs": {}}
# A number of a user that is nobody in particular.
NOBODY = 65534


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder of recipe mini, with a stage that has begun."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    write_json(folder.state_file, {"format": 1, "recipe": "mini", "stages": {"teacher": RECORD}})
    write_text(folder.recipe_file, dump(load_recipe("mini")))
    folder.append_event("stage_started", stage="teacher")
    return folder


# --- nothing is written elsewhere ---------------------------------------------------------------------


def test_a_planted_link_in_the_place_of_a_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("before")
    for name in (f".state.json.{os.getpid()}.tmp", ".state.json.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_text(tmp_path / "state.json", "after")
    with replacing(tmp_path / "other.json") as temporary:
        # The file is there before anything is written, and whoever plants a link now finds the name taken.
        assert temporary.is_file()
        assert not temporary.is_symlink()
        with pytest.raises(FileExistsError):
            temporary.symlink_to(victim)
        temporary.write_text("{}")
    assert victim.read_text() == "before"
    assert (tmp_path / "state.json").read_text() == "after"


def test_a_file_that_is_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("before")
    (tmp_path / "state.json").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "state.json", "after")
    assert (tmp_path / "victim").read_text() == "before"
    assert not (tmp_path / "state.json").is_symlink()


def test_two_writers_of_one_process_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_is_replaced_can_be_read_by_whom_the_mask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a", "1")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["lock_file", "events_file"])
def test_a_link_in_the_place_of_the_lock_or_the_events_is_refused(run: RunFolder, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("before")
    path = getattr(run, name)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    with pytest.raises(ConfigError, match="is a link"), run.locked():
        run.append_event("stage_started", stage="teacher")
    assert victim.read_text() == "before"


# Each would have the run write, or remove, elsewhere.
LINKS_ELSEWHERE = [
    "teacher",
    "teacher/logs",
    "teacher/logs/launcher.log",
    "teacher/metrics.jsonl",
    "teacher/.model.tmp",
    "teacher/model",
    "teacher/model/tokenizer",
    "teacher/checkpoints/step-00000003",
    "teacher/checkpoints/.step-00000004.tmp",
    "teacher/export",
    "nodes",
    "tokenizer",
    ".tokenizer.old",
    "recipe.yaml.link",
]


@pytest.mark.parametrize("name", LINKS_ELSEWHERE)
def test_a_link_out_of_the_run_is_refused_before_anything_is_written(run: RunFolder, tmp_path: Path, name: str) -> None:
    link = run.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    for target in (tmp_path, tmp_path / "nowhere"):
        link.symlink_to(target)
        with pytest.raises(ConfigError, match=f"{link} is a link to {target}, out of the run"), run.locked():
            pass
        link.unlink()


@pytest.mark.parametrize("name", ["corpus", "corpus/train", "teacher/checkpoints"])
def test_shards_and_checkpoints_may_lie_on_another_disk_and_the_run_says_so(
    run: RunFolder, tmp_path: Path, name: str
) -> None:
    link = run.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path)
    with run.locked() as links:
        assert links == [link]
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a link"), run.locked():
        pass


def test_links_within_the_run_and_those_of_wandb_are_nothing_new(run: RunFolder, tmp_path: Path) -> None:
    logs = run.path / "teacher/wandb/run-1/logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "cache.log")
    (run.path / "teacher/wandb/latest-run").symlink_to("run-1")
    (run.path / "latest").symlink_to("teacher")
    with run.locked() as links:
        assert links == []


@pytest.mark.parametrize("plant", ["link", "dangling link", "file", "folder"])
def test_what_was_planted_in_the_place_of_a_folder_goes_and_what_it_leads_to_stays(tmp_path: Path, plant: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("before")
    place = tmp_path / ".model.tmp"
    match plant:
        case "link":
            place.symlink_to(victim)
        case "dangling link":
            place.symlink_to(tmp_path / "nowhere")
        case "file":
            place.write_text("")
        case "folder":
            (place / "inner").mkdir(parents=True)
            (place / "inner/link").symlink_to(victim)
    remove_path(place)
    assert not os.path.lexists(place)
    assert (victim / "file").read_text() == "before"
    remove_path(place)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "..", "", ".hidden", "a/b", "a\nb", "<b>", "a" * 300])
def test_a_stage_name_that_leads_out_of_the_run_is_refused(run: RunFolder, name: str) -> None:
    assert not is_file_name(name)
    values = load_yaml(run.recipe_file.read_text())
    values["stages"][0]["name"] = name
    run.recipe_file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="no name of a folder"):
        read_recipe_values(run)
    with pytest.raises(ConfigError, match=r"pattern|no name of a folder"):
        load_run_recipe(run)
    write_json(run.state_file, {"format": 1, "recipe": "mini", "stages": {name: RECORD}})
    with pytest.raises(ConfigError, match="no name of a folder"):
        read_state(run)


@pytest.mark.parametrize(
    "split", ["../../elsewhere", "/etc", "..", ".", "", ".hidden", "a/b", "a\\b", "test\n", "a::b"]
)
def test_a_split_that_leads_out_of_the_corpus_is_refused(run: RunFolder, split: str) -> None:
    values = load_yaml(run.recipe_file.read_text())
    values["stages"][-1]["split"] = split
    run.recipe_file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="split"):
        load_run_recipe(run)


@pytest.mark.parametrize("split", ["test-clean", "test.other", "тест", "dev_2"])
def test_a_split_of_any_script_is_a_split(run: RunFolder, split: str) -> None:
    recipe = load_run_recipe(run, [f"stages.evaluation.split={split}"])
    assert recipe.split_folder(run, split) == run.corpus / split


# --- another user's run can be read -------------------------------------------------------------------


def test_the_run_of_somebody_else_can_be_looked_at(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("shared")
    run = RunFolder(root / "run")
    run.path.mkdir()
    write_json(run.state_file, {"format": 1, "recipe": "mini", "stages": {"teacher": RECORD}})
    write_text(run.recipe_file, dump(load_recipe("mini")))
    with run.locked():
        for path in run.path.iterdir():
            path.chmod(0o444)
        run.path.chmod(0o555)
        script = "import os, sys\nfrom launcher.monitoring.status import open_run, run_status\n"
        # What is imported on the way is imported now: Python itself may be closed to others.
        script += "run_status(open_run(sys.argv[1]))\n"
        if os.getuid() == 0:
            # pytest's own folders are closed to others, and root may do everything.
            for parent in (root, *root.parents):
                if parent.owner() == "root" and parent != Path("/") and parent.stat().st_mode & 0o5 != 0o5:
                    parent.chmod(parent.stat().st_mode | 0o055)
            script += f"os.setuid({NOBODY})\n"
        script += "print(run_status(open_run(sys.argv[1]))['process'])\n"
        finished = subprocess.run(
            [sys.executable, "-B", "-c", script, str(run.path)], capture_output=True, text=True, cwd=REPOSITORY
        )
    assert finished.stdout.strip() == str(os.getpid()), finished.stderr
    run.path.chmod(0o755)


def test_a_lock_of_another_program_is_nobody_in_particular(run: RunFolder) -> None:
    with run.locked():
        run.lock_file.write_text("not a number")
        assert run.holder() == 0
    run.lock_file.unlink()
    os.mkfifo(run.lock_file)
    assert run.holder() is None


@pytest.mark.parametrize("name", ["teacher", "teacher/logs", "teacher/metrics.jsonl", "results.json", "report.html"])
def test_links_in_a_run_that_is_only_looked_at_are_read_and_nothing_is_written_behind_them(
    run: RunFolder, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    link = run.path / name
    link.parent.mkdir(exist_ok=True)
    if link.suffix:
        elsewhere.write_text("{}")
    else:
        elsewhere.mkdir()
        (elsewhere / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    link.symlink_to(elsewhere)

    def content() -> dict[str, str]:
        files = [elsewhere] if elsewhere.is_file() else sorted(elsewhere.rglob("*"))
        return {str(file): file.read_text() for file in files}

    before = content()
    for command in ("status", "report"):
        assert main([command, str(run.path)]) in (0, 3)
    assert content() == before
    if name == "teacher":
        status = next(entry for entry in run_status(run)["stages"] if entry["name"] == "teacher")
        assert status["step"] == 7


# --- a recipe that was cut ----------------------------------------------------------------------------


def test_a_recipe_that_was_cut_anywhere_is_refused(run: RunFolder) -> None:
    text = run.recipe_file.read_text()
    assert read_recipe_values(run)["name"] == "mini"
    # Wherever it was, also between two values; the last letters one by one.
    lengths = [*range(len(text.splitlines()[0]) + 1, len(text) - 10, 400), *range(len(text) - 10, len(text) - 1)]
    for length in lengths:
        run.recipe_file.write_text(text[:length])
        with pytest.raises(ConfigError, match=r"recipe\.yaml"):
            read_recipe_values(run)
    # What an editor adds or takes at the end is no cut.
    for whole in (text.rstrip(), text + "\n\n"):
        run.recipe_file.write_text(whole)
        assert read_recipe_values(run)["name"] == "mini"


def test_a_recipe_of_an_earlier_version_has_no_end_and_stays_readable(run: RunFolder) -> None:
    text = "\n".join(run.recipe_file.read_text().splitlines()[1:-1])
    run.recipe_file.write_text(text + "\n")
    assert load_run_recipe(run) == load_recipe("mini")


# --- nothing exhausts ---------------------------------------------------------------------------------


def nested_aliases(levels: int, line: str) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} " + line.format(*[f"*a{level - 1}"] * 10))
    return "\n".join(lines) + "\n"


SEQUENCES = "[{}, {}, {}, {}, {}, {}, {}, {}, {}, {}]"
MAPPINGS = "{{a: {}, b: {}, c: {}, d: {}, e: {}, f: {}, g: {}, h: {}, i: {}, j: {}}}"
MERGES = nested_aliases(9, "{{<<: [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}]}}").replace(
    "a0: &a0 [x, x, x, x, x, x, x, x, x, x]", "a0: &a0 {k: 1}"
)
HOSTILE_YAML = {
    "aliases in lists": nested_aliases(9, SEQUENCES),
    "aliases in mappings": nested_aliases(9, MAPPINGS),
    "aliases in merges": MERGES,
    "its own anchor": "a: &a [*a]\n",
    "its own anchor in a mapping": "a: &a {b: *a}\n",
    "deep lists": "a: " + "[" * 20_000,
    "deep mappings": "{a: " * 20_000,
    "a long number": "a: " + "1" * 5_000 + "\n",
    "a long number in hexadecimal": "a: 0x" + "f" * 5_000 + "\n",
    "a long text": "a: " + "x" * 2**21,
    "a hundred thousand values": "a: [" + "1," * 100_000 + "]",
    "a tag": "a: !!python/object/apply:os.system [true]\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "a control character": "a: \x07\n",
    "nothing but an end": "...\n...\n",
}
PARSE_YAML = """
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        parse_recipe(path.read_text(), path.name)
    except ConfigError as error:
        assert len(str(error)) < 1000, path
        print(path.name)
"""


def test_hostile_yaml_is_one_clear_error_in_little_memory(tmp_path: Path) -> None:
    for name, text in HOSTILE_YAML.items():
        (tmp_path / name).write_text(text)
    imports = "import sys\nfrom pathlib import Path\nfrom launcher.errors import ConfigError\n"
    imports += "from launcher.recipe.yaml_io import parse_recipe\n"
    assert run_limited(imports, PARSE_YAML, tmp_path).splitlines() == sorted(HOSTILE_YAML)


@pytest.mark.parametrize("name", sorted(HOSTILE_YAML))
def test_a_run_with_hostile_yaml_is_refused(run: RunFolder, name: str) -> None:
    run.recipe_file.write_text(HOSTILE_YAML[name])
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        run_status(open_run(run.path))


def test_a_report_of_a_run_with_hostile_yaml_says_so(run: RunFolder) -> None:
    run.recipe_file.write_text(HOSTILE_YAML["aliases in lists"])
    assert main(["report", str(run.path)]) == 0
    assert "recipe.yaml is not a recipe" in run.report_file.read_text()


def test_aliases_of_a_few_values_stay_what_they_are() -> None:
    text = "a: &a {x: 1, y: [2, 3]}\nb: *a\nc: {<<: *a, x: 4}\n"
    expected = {"a": {"x": 1, "y": [2, 3]}, "b": {"x": 1, "y": [2, 3]}, "c": {"x": 4, "y": [2, 3]}}
    assert parse_recipe(text, "it") == expected
    assert parse_value("null", "it") is None
    assert parse_value("", "it") is None


HOSTILE_JSON = {
    "deep lists": b"[" * 200_000,
    "deep mappings": b'{"a":' * 200_000,
    "a long number": b"1" * 5_000,
    "a number beyond all floating point": b'{"a": [1' + b"0" * 308 + b"]}",
    "a negative long number": b"-" + b"1" * 5_000,
    "UTF-16": "{}".encode("utf-16"),
    "no UTF-8": b'"\xff"',
    "two values": b"{}{}",
    "nothing": b"",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("name", sorted(HOSTILE_JSON))
def test_hostile_json_is_one_kind_of_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.json").write_bytes(HOSTILE_JSON[name])
    for read in (lambda: read_json(tmp_path / "a.json"), lambda: parse_json(HOSTILE_JSON[name])):
        with pytest.raises(ValueError, match=r"\w") as refusal:
            read()
        assert len(str(refusal.value)) < 500


def test_long_numbers_in_texts_and_those_of_floating_point_are_read() -> None:
    text = f'{{"a": "{"7" * 400}", "b": {"9" * 308}, "c": 1e400}}'
    assert parse_json(text) == {"a": "7" * 400, "b": int("9" * 308), "c": float("inf")}


def test_a_file_that_is_too_large_a_device_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("large", "device", "pipe", "folder"):
        with pytest.raises((ValueError, OSError)):
            read_json(tmp_path / name)


def test_values_for_which_there_is_no_memory_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[" + b"[]," * 15_000_000 + b"[]]")
    imports = "import sys\nfrom pathlib import Path\nfrom data.files import read_json\n"
    code = """
try:
    read_json(Path(sys.argv[1]))
except ValueError as error:
    print(error)
"""
    assert "no memory" in run_limited(imports, code, tmp_path / "a.json")


# --- events and metrics -------------------------------------------------------------------------------

FOREIGN_LINES = [
    b"[" * 20_000,
    b"9" * 5_000,
    b'{"event": "stage_started"}',
    b'{"event": "stage_started", "time": "now", "stage": "teacher"}',
    b'{"event": "stage_started", "time": NaN, "stage": "teacher"}',
    b'{"event": "stage_started", "time": true, "stage": "teacher"}',
    b'{"event": "stage_started", "time": 1.0, "stage": ["teacher"]}',
    b'{"event": "update_skipped", "time": 1.0, "stage": "teacher"}',
    b'{"event": "rolled_back", "time": 1.0, "stage": "teacher", "step": 3}',
    b'{"event": "weights_taken_back", "time": 1.0, "stage": "teacher", "step": 3, "to_step": "2"}',
    b"\xff\xfe",
]


def test_lines_that_are_no_events_are_passed_over(run: RunFolder) -> None:
    before = run.events()
    with run.events_file.open("ab") as file:
        file.write(b"\n".join(FOREIGN_LINES) + b"\n")
        file.write(b'"' + b"a" * 2**23 + b'"\n')
    run.append_event("processes_started", stage="teacher")
    assert [event["event"] for event in run.events()] == [*[event["event"] for event in before], "processes_started"]
    run_status(run)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 20_000,
        b"{}",
        b"[1]",
        b'{"step": "1"}',
        b'{"step": true}',
        b'{"step": 1, "loss": "low"}',
        b'{"step": 1, "time": [3]}',
        b'{"step": 1, "step_s": {}}',
        b'{"step": 1, "audio_s_per_s": NaN}',
        b'{"step": 1, "loss": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_row_of_metrics_that_is_none_is_passed_over(run: RunFolder, line: bytes) -> None:
    assert parse_metrics_row(line) is None
    stage = run.stage("teacher")
    stage.path.mkdir()
    stage.metrics_file.write_bytes(line + b'\n{"step": 5, "loss": null}\n{"step": 6, "loss": 2.0, "time": 1.0}\n')
    status = next(entry for entry in run_status(run)["stages"] if entry["name"] == "teacher")
    assert (status["step"], status["loss"]) == (6, 2.0)


@pytest.mark.parametrize("read", [read_metrics, lambda path: read_last_rows(path, 3)])
def test_a_line_of_metrics_without_end_is_passed_over_at_once(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "metrics.jsonl"
    row = b'{"step": 5, "loss": 1.0}\n'
    path.write_bytes(row + b"9" * 2**26 + b"\n" + row)
    began = time.process_time()
    rows = list(read(path))
    # Copied again for each piece of it, it would be the square of its length.
    assert time.process_time() - began < 3
    assert [row["step"] for row in rows][-1] == 5


def test_a_stage_that_goes_on_behind_a_line_without_end_cuts_it_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    row = b'{"step": 5, "loss": 1.0}\n'
    path.write_bytes(row + b"9" * 2**24)
    MetricsLog(path, resume_step=5).close()
    assert path.read_bytes() == row


@pytest.mark.parametrize("plant", ["pipe", "device", "folder", "link to itself"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "run.lock"])
def test_what_is_no_file_in_the_place_of_a_runs_own_is_not_waited_for(run: RunFolder, name: str, plant: str) -> None:
    path = run.path / name
    if name == "metrics.jsonl":
        path = run.stage("teacher").metrics_file
        path.parent.mkdir()
    path.unlink(missing_ok=True)
    match plant:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "link to itself":
            path.symlink_to(path.name)
    assert main(["status", str(run.path)]) == (2 if name == "events.jsonl" else 0)
    assert list(read_metrics(run.stage("teacher").metrics_file)) == []
    if name == "run.lock":
        with pytest.raises((ConfigError, IsADirectoryError)), run.locked():
            pass


def test_a_circle_of_links_among_files_of_a_stage_is_no_file_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("123")
    (tmp_path / "model" / "circle").symlink_to("circle")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "model" / "pipe")
    assert files_below(tmp_path) == {"model/weights": 3}
    assert files_below(tmp_path / "circle") == {}
    assert hash_folder(tmp_path) is not None


def test_events_beyond_the_bound_are_not_read(run: RunFolder) -> None:
    with run.events_file.open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(ConfigError, match=r"has 2147483648 bytes, more than"):
        run.events()


def test_a_lock_that_may_not_be_read_is_a_paragraph(
    run: RunFolder, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("data.files.open_regular", deny)
    with pytest.raises(ConfigError, match=r"run\.lock cannot be read"):
        run.holder()
    with pytest.raises(ConfigError, match="events of the run"):
        run.events()


# --- what else a run folder holds ---------------------------------------------------------------------


@pytest.mark.parametrize("plant", ["pipe", "device", "words"])
def test_a_token_that_is_no_file_of_ours_is_none(run: RunFolder, plant: str) -> None:
    match plant:
        case "pipe":
            os.mkfifo(run.token_file)
        case "device":
            run.token_file.symlink_to("/dev/zero")
        case "words":
            run.token_file.write_text("x" * 10**6)
    assert token_environment(run) == {}


@pytest.mark.parametrize("name", ["lost-", "lost-x", "lost-²", "lost-01.tmp", "lost-" + "1" * 200])
def test_a_file_beside_the_heartbeats_that_names_no_rank_is_nobodys_loss(run: RunFolder, name: str) -> None:
    stage = run.stage("teacher")
    stage.heartbeats.mkdir(parents=True)
    (stage.heartbeats / name).touch()
    stage.loss_file(3).touch()
    stage.loss_file(104).touch()
    assert stage.read_losses() == {3, 104}


SOURCE = {"path": "/nowhere/a.wav", "num_bytes": 3, "mtime_ns": 1, "sha256": "0"}
HOSTILE_SOURCES = [
    {**SOURCE, "path": 5},
    {**SOURCE, "path": "a.wav"},
    {**SOURCE, "path": "/a\0.wav"},
    {**SOURCE, "num_bytes": "3"},
    {**SOURCE, "mtime_ns": 1.5},
    {**SOURCE, "sha256": None},
    {**SOURCE, "more": 1},
    {},
    [],
]


@pytest.mark.parametrize("source", HOSTILE_SOURCES)
def test_recordings_that_are_none_are_one_clear_error(tmp_path: Path, source: object) -> None:
    write_lines(tmp_path / SOURCES, [SOURCE, source])
    with pytest.raises(DataError, match="cannot be read"):
        read_sources(tmp_path)


@pytest.mark.parametrize("kind", ["device", "pipe", "link to a device"])
def test_a_recording_that_is_no_file_is_neither_read_nor_waited_for(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero")
    if kind == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
    if kind == "link to a device":
        path = tmp_path / "link"
        path.symlink_to("/dev/zero")
    write_lines(tmp_path / SOURCES, [{**SOURCE, "path": str(path)}])
    sources = read_sources(tmp_path)
    assert sources is not None
    # What cannot be read is as good as gone, and shards outlive their recordings.
    assert list(changed_sources(sources.values())) == []


def test_a_list_of_recordings_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SOURCES)
    with pytest.raises(DataError, match="no regular file"):
        read_sources(tmp_path)


HYPOTHESIS = {"key": "a", "reference": "one", "hypothesis": "two"}


@pytest.mark.parametrize(
    "line",
    ['{"key": "a"', "[]", "{}", '{"key": 1, "reference": "", "hypothesis": ""}', "[" * 10**5, "\xff", '"\\ud800"'],
)
def test_hypotheses_that_are_torn_are_one_clear_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hypotheses" / "teacher.jsonl"
    path.parent.mkdir()
    path.write_bytes(json.dumps(HYPOTHESIS).encode() + b"\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=r"Line 2 of .* cannot be read"):
        read_hypotheses(path)


def test_a_line_of_a_log_that_is_made_to_be_searched_for_long_is_not(run: RunFolder) -> None:
    logs = run.stage("teacher").logs
    logs.mkdir(parents=True)
    hostile = b"Utterance x at offset 1 of s is broken: y " * 10**5
    good = (
        b"Utterance u1 at offset 7 of shard-0.tar is broken: it ends. Look at the split with `chorus shards verify`.\n"
    )
    (logs / "rank-00.log").write_bytes(hostile + b"\n" + good)
    os.mkfifo(logs / "rank-01.log")
    began = time.process_time()
    data = read_run_data(run.path)
    assert time.process_time() - began < 5
    assert data.quarantined == [Quarantined("teacher", "u1", "shard-0.tar is broken: it ends")]
    assert any("rank-01.log" in gap for gap in data.gaps)


def test_names_in_no_utf8_do_not_end_a_run(run: RunFolder) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    run.append_event("recordings_changed", first=name)
    write_json(run.path / "record.json", {"path": name})
    assert run.events()[-1]["first"] == name
    assert read_json(run.path / "record.json") == {"path": name}


@pytest.mark.parametrize("text", [r'corpus: {shards: "a\0b"}', r'a: ["\x00"]'])
def test_a_character_of_value_zero_in_yaml_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="value zero"):
        load_yaml(text)


@pytest.mark.parametrize("text", [r'name: "\ud800"', r'a: {b: ["\udc80"]}', r'"\udfff": 1'])
def test_half_of_a_character_in_yaml_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="half of a character"):
        load_yaml(text)


def test_a_model_is_not_exported_through_a_link(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (run.path / "teacher").mkdir()
    (run.path / "teacher/export").symlink_to(tmp_path / "elsewhere")
    assert main(["export", str(run.path / "teacher")]) == 2
    assert "is a link to" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()
