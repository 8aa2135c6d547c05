"""Only the processes of a run are ended with it: not what looks like them, and nothing that a file names."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launcher.processes import run_processes
from launcher.processes.remote_answer import PREFIX, read_number
from launcher.processes.run_processes import TOKEN_VARIABLE, make_token, processes_of, token_environment
from launcher.processes.watchdog import Deadlines, Watchdog, end_processes
from launcher.run_folder import RunFolder, write_json

STAGE = "teacher"
SLEEP = "import time; print(flush=True); time.sleep(100)"


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    make_token(folder)
    return folder


@pytest.fixture
def start():
    """Starts a process that sleeps, with some last arguments and variables."""
    started = []

    def call(*arguments: object, **variables: str) -> subprocess.Popen:
        command = [sys.executable, "-c", SLEEP, *map(str, arguments)]
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def worker(run: RunFolder, path: Path | None = None) -> list[object]:
    return ["--module", "launcher.worker", path or run.path, STAGE]


def pids(run: RunFolder, stage: str | None = STAGE) -> list[int]:
    return [process.pid for process in processes_of(run, stage)]


def test_the_processes_of_a_run_are_ended(run, start):
    process = start(*worker(run), **token_environment(run))
    assert pids(run) == [process.pid]
    assert pids(run, stage=None) == [process.pid]
    assert pids(run, stage="student") == []
    assert end_processes(run, STAGE, terminate_s=5) == 1
    assert process.wait(5) == -signal.SIGTERM


def test_what_only_looks_like_a_process_of_the_run_lives(run, start, tmp_path):
    token = token_environment(run)
    others = [
        # tar cf - -C RUN teacher, an editor, a copy
        start("cf", "-", "-C", run.path, STAGE),
        start("cf", "-", "-C", run.path, STAGE, **token),
        start("launcher/worker.py", run.path, STAGE, **token),
        # As if it were one, without or with another token.
        start(*worker(run)),
        start(*worker(run), **{TOKEN_VARIABLE: "0" * 32}),
        # Of another run, and of a copy of this one, which has the same token.
        start(*worker(run, tmp_path / "other"), **token),
        start(*worker(run, Path("run")), **token),
        # What a process of the run started.
        start("wandb-core", **token),
    ]
    assert pids(run, stage=None) == []
    assert end_processes(run, STAGE, terminate_s=0) == 0
    assert all(process.poll() is None for process in others)


@pytest.mark.parametrize("started_through_link", [True, False])
def test_a_run_folder_behind_a_link_is_the_same_folder(run, start, tmp_path, started_through_link):
    link = RunFolder(tmp_path / "link")
    link.path.symlink_to(run.path)
    paths = (run, link)
    if started_through_link:
        paths = (link, run)
    process = start(*worker(paths[0]), **token_environment(paths[0]))
    assert pids(paths[1]) == [process.pid]


def test_what_an_earlier_version_left_behind_without_a_token_is_ended(tmp_path, start):
    run = RunFolder(tmp_path)
    process = start(*worker(run))
    tar = start("cf", "-", "-C", run.path, STAGE)
    assert pids(run) == [process.pid]
    assert end_processes(run, STAGE, terminate_s=5) == 1
    assert tar.poll() is None


@pytest.mark.parametrize("content", ["", "x" * 32, "0" * 33, "\x00\xff"])
def test_a_broken_token_is_none_and_is_made_anew(tmp_path, content):
    run = RunFolder(tmp_path)
    run.token_file.write_text(content)
    assert token_environment(run) == {}
    make_token(run)
    first = token_environment(run)
    make_token(run)
    assert token_environment(run) == first != {}


def test_a_process_of_another_user_is_neither_ended_nor_in_the_way(run, start, monkeypatch):
    process = start(*worker(run), **token_environment(run))
    of_another = psutil.Process(process.pid).uids()._replace(real=12345)
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "uids", lambda self: of_another)
        assert pids(run) == []
    # As the system answers for a process of somebody else.
    for method in ("uids", "environ", "status", "cmdline"):
        with monkeypatch.context() as patch:

            def deny(self):
                raise psutil.AccessDenied(self.pid)

            patch.setattr(psutil.Process, method, deny)
            assert end_processes(run, STAGE, terminate_s=0) == 0
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "terminate", deny)
        patch.setattr(psutil.Process, "kill", deny)
        patch.setattr("launcher.processes.watchdog.KILL_S", 0.1)
        end_processes(run, STAGE, terminate_s=0)
    assert process.poll() is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_root_ends_no_process_of_another_user(run):
    # This interpreter may lie where another user sees nothing.
    command = ["/bin/sh", "-c", "echo; read line", "sh", *map(str, worker(run))]
    process = subprocess.Popen(
        command,
        user=65534,
        env=token_environment(run) | {"PATH": os.defpath},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    try:
        assert process.stdout
        assert process.stdout.readline()
        assert pids(run) == []
        assert end_processes(run, STAGE, terminate_s=0) == 0
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_a_heartbeat_that_names_somebody_elses_process_does_not_have_it_aborted(run, start):
    bystander = start("a", "process")
    lookalike = start("cf", "-", "-C", run.path, STAGE, **token_environment(run))
    member = start(*worker(run), **token_environment(run))
    stage = run.stage(STAGE)
    for rank, process_id in enumerate((bystander.pid, lookalike.pid, member.pid)):
        beat = {"rank": rank, "pid": process_id, "host": os.uname().nodename, "step": 1, "section": "train"}
        write_json(stage.heartbeat_file(rank), beat | {"time": time.time()})
    watchdog = Watchdog(stage, 3, Deadlines())
    watchdog.check()
    watchdog.abort()
    assert member.wait(5) == -signal.SIGABRT
    assert bystander.poll() is None
    assert lookalike.poll() is None


def test_a_number_that_was_given_to_another_process_is_not_signalled(run, start, monkeypatch):
    member = start(*worker(run), **token_environment(run))
    bystander = start("a", "process")
    (process,) = processes_of(run, STAGE)
    # The system gives the number of an ended process to a new one.
    process._pid = bystander.pid
    monkeypatch.setattr("launcher.processes.watchdog.processes_of", lambda *_: [process])
    monkeypatch.setattr("launcher.processes.watchdog.KILL_S", 0.1)
    end_processes(run, STAGE, terminate_s=0)
    assert bystander.poll() is None
    assert member.poll() is None


def test_a_path_on_another_users_command_line_is_not_looked_at(run, start, monkeypatch):
    """A look at a path may hang: it may lie on a file system of theirs that never answers."""
    process = start(*worker(run, Path("/net/never/answers")))
    of_another = psutil.Process(process.pid).uids()._replace(real=12345)
    uids = psutil.Process.uids
    monkeypatch.setattr(psutil.Process, "uids", lambda self: of_another if self.pid == process.pid else uids(self))
    realpath = os.path.realpath

    def watched(path, **options):
        assert not str(path).startswith("/net/never")
        return realpath(path, **options)

    monkeypatch.setattr(os.path, "realpath", watched)
    assert pids(run) == []


@pytest.mark.parametrize("method", ["status", "is_running", "__init__"])
def test_a_heartbeat_of_a_process_that_the_system_hides_is_a_lost_one(run, monkeypatch, method):
    """As with a /proc that is mounted with hidepid, once the number was given to another user's process."""
    stage = run.stage(STAGE)
    beat = {"rank": 0, "pid": os.getpid(), "host": os.uname().nodename, "step": 1, "section": "train"}
    write_json(stage.heartbeat_file(0), beat | {"time": time.time()})

    def deny(self, *_):
        raise psutil.AccessDenied(os.getpid())

    monkeypatch.setattr(psutil.Process, method, deny)
    watchdog = Watchdog(stage, 1, Deadlines())
    watchdog.check()
    assert watchdog.lost == [0]


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 10**30},
        {"pid": 2**31},
        {"pid": 0},
        {"pid": True},
        {"exit_code": []},
        {"exit_code": "1"},
        {"exit_code": None},
        {"host": 5},
        {"section": ["train"]},
        {"step": 1.5},
        {"rank": 1},
    ],
)
def test_a_heartbeat_that_is_none_is_nobodys(run, change):
    stage = run.stage(STAGE)
    beat = {"rank": 0, "pid": os.getpid(), "host": os.uname().nodename, "step": 1, "section": "train", "time": 1.0}
    write_json(stage.heartbeat_file(0), beat | change)
    watchdog = Watchdog(stage, 1, Deadlines())
    assert watchdog.check() is None
    assert stage.read_heartbeats() == []
    write_json(stage.heartbeat_file(0), beat | {"exit_code": 3})
    assert len(stage.read_heartbeats()) == 1


@pytest.mark.parametrize("answer", ["1.5", '"3"', "null", "true", "[1]", "{}", "1" * 5000, "[" * 10**5, ""])
def test_an_answer_that_is_no_number_of_processes_is_not_added_up(answer):
    assert read_number([f"{PREFIX}2", "a banner", f"{PREFIX}3"]) == 5
    with pytest.raises(ValueError, match=r"\w"):
        read_number([f"{PREFIX}2", f"{PREFIX}{answer}"])


def test_modules_that_are_started_for_a_run_exist():
    for module in run_processes.MODULES:
        assert (Path(__file__).parents[2] / f"{module.replace('.', '/')}.py").is_file()
