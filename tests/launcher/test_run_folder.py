import errno
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import files
from launcher.errors import ConfigError, place_problem
from launcher.processes.heartbeat import Heartbeat
from launcher.run_folder import RunFolder, read_json, write_json

HOLD = """
import sys, time
from launcher.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_run_folder_in_use_is_refused_with_the_process_that_uses_it(tmp_path, holder):
    with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"), RunFolder(tmp_path).locked():
        pass
    assert RunFolder(tmp_path).holder() == holder.pid


def test_a_killed_launcher_leaves_the_run_folder_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    run = RunFolder(tmp_path)
    assert run.holder() is None
    with run.locked():
        assert run.lock_file.read_text() == str(os.getpid())


def test_a_write_that_fails_leaves_the_old_content(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    with pytest.raises(TypeError):
        write_json(path, {"step": object()})
    assert read_json(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_missing_file_reads_as_nothing(tmp_path):
    assert read_json(tmp_path / "done.json") is None


@given(cut=st.integers(min_value=1, max_value=60))
def test_events_survive_a_line_cut_short_by_a_kill(tmp_path_factory, cut):
    run = RunFolder(tmp_path_factory.mktemp("run"))
    run.append_event("stage_started", stage="teacher")
    run.append_event("restart", stage="teacher", restart=1)
    content = run.events_file.read_bytes()
    run.events_file.write_bytes(content[:-cut])
    run.append_event("stage_done", stage="teacher")
    events = [event["event"] for event in run.events()]
    assert events[0] == "stage_started"
    assert events[-1] == "stage_done"


APPEND_HELD = """
import fcntl, sys, time
from launcher.run_folder import RunFolder
with RunFolder(sys.argv[1]).events_file.open("ab") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
    file.write(b'{"event": "written_under_the_lock", "time": 1}\\n')
"""


def test_an_event_waits_until_a_writer_elsewhere_has_finished_its_line(tmp_path):
    run = RunFolder(tmp_path)
    run.append_event("stage_started", stage="teacher")
    command = [sys.executable, "-c", APPEND_HELD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == "held\n"
        appending = threading.Thread(target=run.append_event, args=("stage_done",))
        appending.start()
        appending.join(timeout=0.05)
        assert appending.is_alive()
        writer.stdin.write("\n")
        writer.stdin.close()
        appending.join()
    assert [event["event"] for event in run.events()] == ["stage_started", "written_under_the_lock", "stage_done"]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), OSError(errno.ENOSYS, "none"), BlockingIOError()])
def test_an_event_is_written_where_a_file_system_has_no_locks_or_never_gives_one(tmp_path, monkeypatch, error):
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("launcher.run_folder.fcntl.lockf", refuse)
    monkeypatch.setattr("launcher.run_folder.LOCK_ATTEMPT_S", 0)
    run = RunFolder(tmp_path)
    run.append_event("stage_started", stage="teacher")
    assert [event["event"] for event in run.events()] == ["stage_started"]


def test_lines_of_other_programs_are_no_events(tmp_path):
    run = RunFolder(tmp_path)
    run.append_event("stage_started", stage="teacher")
    with run.events_file.open("ab") as file:
        file.write(b'null\n7\n[]\n{}\n{"event": 3, "time": 1}\n{"time": 1}\n\xff\n')
    run.append_event("stage_done", stage="teacher")
    assert [event["event"] for event in run.events()] == ["stage_started", "stage_done"]


def test_checkpoint_steps_leave_out_what_is_not_a_checkpoint(tmp_path):
    stage = RunFolder(tmp_path).stage("teacher")
    for name in ("step-00000400", "step-00000020", ".tmp-step-00000600", "latest"):
        (stage.checkpoints / name).mkdir(parents=True)
    assert stage.checkpoint_steps() == [20, 400]
    assert stage.checkpoint(400).is_dir()


def test_heartbeats_are_read_in_order_of_rank(tmp_path):
    stage = RunFolder(tmp_path).stage("teacher")
    stage.heartbeats.mkdir(parents=True)
    for rank in (100, 11, 0):
        Heartbeat(stage, rank).beat(1, "train")
    assert [beat["rank"] for beat in stage.read_heartbeats()] == [0, 11, 100]


def test_only_heartbeats_that_are_new_are_read_again(tmp_path, monkeypatch):
    stage = RunFolder(tmp_path).stage("teacher")
    for rank in range(50):
        Heartbeat(stage, rank).beat(1, "train")
    opened = []
    read_json = files.read_json
    monkeypatch.setattr(files, "read_json", lambda path, *bound: opened.append(path.name) or read_json(path, *bound))
    stage.read_heartbeats()
    assert len(opened) == 50
    Heartbeat(stage, 7).beat(2, "train")
    for _ in range(5):
        assert stage.read_heartbeats()[7]["step"] == 2
    assert opened[50:] == ["rank-07.json"]
    # Of an earlier attempt: what is gone is not reported.
    stage.heartbeat_file(3).unlink()
    assert len(stage.read_heartbeats()) == 49


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"rank": 0}',
        "[" * 20_000,
        "9" * 5000,
        '{"rank": 0, "pid": -1, "host": "h", "step": 1, "section": "train"}',
        '{"rank": 0, "pid": true, "host": "h", "step": 1, "section": "train"}',
        '{"rank": 1, "pid": 7, "host": "h", "step": 1, "section": "train"}',
        '{"rank": 0, "pid": 7, "host": "h", "step": "1", "section": "train"}',
    ],
)
def test_a_heartbeat_that_is_none_is_not_read(tmp_path, content):
    stage = RunFolder(tmp_path).stage("teacher")
    Heartbeat(stage, 1).beat(1, "train")
    stage.heartbeat_file(0).write_text(content)
    (stage.heartbeats / "rank-1.json").write_text(stage.heartbeat_file(1).read_text())
    assert [beat["rank"] for beat in stage.read_heartbeats()] == [1]


def test_a_full_disk_is_told_with_the_file_that_finds_no_room(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)

    def find_no_room(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for file, use in {
        run.state_file: lambda: write_json(run.state_file, {}),
        run.lock_file: lambda: run.locked().__enter__(),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", find_no_room)
            patch.setattr(os, "write", find_no_room)
            with pytest.raises(OSError, match="No space left") as caught:
                use()
        assert caught.value.filename == str(file)
        assert str(file) in (place_problem(caught.value) or "")
    assert place_problem(OSError(errno.ENOENT, "No such file", "x")) is None
