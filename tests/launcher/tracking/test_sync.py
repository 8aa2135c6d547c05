"""`chorus sync`: what was recorded without a server is sent once, stage by stage, and what was not is named."""

import json
import os
import sys
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.run_folder import RunFolder, write_json
from launcher.tracking.sync import unsent_records

# Stands in for `python -m wandb`: notes what it was asked, and does to each record what its id says.
FAKE_WANDB = """
import os, sys, time
from pathlib import Path
with open(os.environ["FAKE_WANDB_CALLS"], "a") as calls:
    print(*sys.argv[1:], "WANDB_MODE" in os.environ, file=calls)
for folder in sys.argv[3:]:
    file = next(Path(folder).glob("*.wandb"))
    print("wandb: Syncing", file)
    if "hang" in file.stem:
        time.sleep(60)
    if "fail" in file.stem:
        print("wandb: ERROR the server said 403", file=sys.stderr)
    else:
        file.with_suffix(".wandb.synced").touch()
"""


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    fake = tmp_path / "fake" / "wandb"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(FAKE_WANDB)
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    monkeypatch.setenv("FAKE_WANDB_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path))
    run = RunFolder(tmp_path / "run")
    names = ("prepare", "tokenizer", "teacher", "student", "evaluation")
    record = {"kind": "", "status": "running", "fingerprint": "", "settings": {}, "inputs": {}}
    write_json(run.state_file, {"format": 1, "recipe": "mini", "stages": dict.fromkeys(names, record)})
    return run


def record(run: RunFolder, stage: str, folder: str, wandb_run: str, sent: bool = False) -> Path:
    path = run.stage(stage).wandb / f"{folder}-{wandb_run}"
    path.mkdir(parents=True)
    (path / f"run-{wandb_run}.wandb").write_bytes(b"record")
    if sent:
        (path / f"run-{wandb_run}.wandb.synced").touch()
    return path


def calls(tmp_path: Path) -> list[list[str]]:
    return [line.split() for line in (tmp_path / "calls").read_text().splitlines()]


def test_the_attempts_of_a_stage_go_out_together_oldest_first_and_stages_in_the_order_of_the_run(run, tmp_path, capsys):
    student = record(run, "student", "offline-run-20260102_000000", "s1")
    second = record(run, "teacher", "offline-run-20260101_090000", "t1")
    first = record(run, "teacher", "offline-run-20260101_080000", "t1")
    online = record(run, "teacher", "run-20260101_083000", "t1")
    record(run, "teacher", "offline-run-20260101_070000", "t1", sent=True)
    assert main(["sync", str(run.path), "--json"]) == 0
    assert calls(tmp_path) == [
        ["sync", "--include-online", str(first), str(online), str(second), "False"],
        ["sync", "--include-online", str(student), "False"],
    ]
    records = json.loads(capsys.readouterr().out)["records"]
    assert [(entry["stage"], entry["record"], entry["wandb_run"], entry["sent"]) for entry in records] == [
        ("teacher", first.name, "t1", True),
        ("teacher", online.name, "t1", True),
        ("teacher", second.name, "t1", True),
        ("student", student.name, "s1", True),
    ]
    assert unsent_records(run) == {}
    assert main(["sync", str(run.path)]) == 0
    assert "nothing to send" in capsys.readouterr().out
    assert len(calls(tmp_path)) == 2


def test_what_could_not_be_sent_is_named_with_the_reason_and_tried_again(run, capsys):
    record(run, "teacher", "offline-run-20260101_080000", "fail1")
    record(run, "student", "offline-run-20260101_090000", "good1")
    assert main(["sync", str(run.path)]) == 1
    output = capsys.readouterr().out
    assert "teacher/wandb/offline-run-20260101_080000-fail1: not sent" in output
    assert "the server said 403" in output
    assert "sent to W&B run good1" in output
    assert list(unsent_records(run)) == ["teacher"]


def test_a_server_that_does_not_answer_ends_at_the_timeout_and_the_next_stage_is_tried(run, capsys):
    record(run, "teacher", "offline-run-20260101_080000", "hang1")
    record(run, "student", "offline-run-20260101_090000", "good1")
    assert main(["sync", str(run.path), "--timeout-s", "1.5", "--json"]) == 1
    teacher, student = json.loads(capsys.readouterr().out)["records"]
    assert (teacher["sent"], student["sent"]) == (False, True)
    assert "not done after 1.5 s" in teacher["reason"]
    assert "hang1" in teacher["reason"]


def test_without_a_login_nothing_is_called_and_the_exit_code_is_that_of_configuration(
    run, tmp_path, monkeypatch, capsys
):
    record(run, "teacher", "offline-run-20260101_080000", "t1")
    monkeypatch.delenv("WANDB_API_KEY")
    assert main(["sync", str(run.path)]) == 2
    assert "wandb login" in capsys.readouterr().err
    assert not (tmp_path / "calls").exists()


def test_the_real_command_knows_the_options_and_finds_the_records(run, tmp_path, monkeypatch):
    import subprocess

    folder = record(run, "teacher", "offline-run-20260101_080000", "t1")
    monkeypatch.delenv("PYTHONPATH")
    result = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--include-online", "--dry-run", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=tmp_path,
    )
    assert "Would sync 1 run" in result.stdout + result.stderr
