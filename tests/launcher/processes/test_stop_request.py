"""A request to stop reaches whoever waits for it, whatever is under way when the signal comes."""

import ast
import ctypes
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from data.shards.reader import RangeReader
from data.shards.reading_threads import Inline, Threads
from launcher.errors import Preempted, exit_code
from launcher.processes.stop_request import StopRequest
from launcher.tracking.background_writer import BackgroundWriter

ROOT = Path(__file__).parents[3]
# Catches everything, and hands it to the consumer, who raises it.
HANDS_ON = {"data/shards/reading_threads.py"}


def catches_everything(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return not names.isdisjoint({"BaseException", "Preempted"})


def raises_again(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))


def sources() -> list[Path]:
    files = []
    for package in ("data", "model", "launcher"):
        files += sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 100
    return files


def test_nothing_that_catches_everything_keeps_a_request_to_stop():
    assert not issubclass(Preempted, Exception)
    keepers = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and catches_everything(node) and not raises_again(node):
                keepers.add(str(path.relative_to(ROOT)))
    # The two ends of the line: the command, and a worker.
    assert keepers == HANDS_ON | {"launcher/cli.py", "launcher/worker.py"}


def test_nothing_suppresses_everything():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                arguments = {ast.unparse(argument) for argument in node.args}
                assert arguments.isdisjoint({"BaseException", "Preempted"}), f"{path}:{node.lineno}"


def ask_to_stop(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return b""


def callback_from_c():
    ask_to_stop()


class StoppingHandler(logging.Handler):
    def emit(self, record):
        # As every handler of the standard library does.
        try:
            ask_to_stop()
        except Exception:
            self.handleError(record)


def read_a_range(monkeypatch, tmp_path):
    (tmp_path / "shard.tar").write_bytes(b"12345678")
    reader = RangeReader(tmp_path, attempts=3, first_pause_s=0.01)
    monkeypatch.setattr(reader, "_read_once", ask_to_stop)
    reader.read("shard.tar", 0, 4)


def read_in_the_caller(monkeypatch, tmp_path):
    Inline().submit(ask_to_stop).result()


def read_in_a_thread(monkeypatch, tmp_path):
    # The signal is the main thread's, whichever asks for it.
    threads = Threads(1)
    try:
        threads.submit(ask_to_stop).result(timeout=5)
        time.sleep(5)
    finally:
        threads.close()


def write_a_line_of_the_log(monkeypatch, tmp_path):
    record = logging.makeLogRecord({"msg": "a line"})
    StoppingHandler().handle(record)


def hand_over_to_a_tracker(monkeypatch, tmp_path):
    writer = object.__new__(BackgroundWriter)
    monkeypatch.setattr(writer, "_backend", None, raising=False)
    writer._given_up = True

    def record(backend):
        ask_to_stop()

    writer._try(record)


@pytest.mark.parametrize(
    "work",
    [read_a_range, read_in_the_caller, read_in_a_thread, write_a_line_of_the_log, hand_over_to_a_tracker],
)
def test_a_signal_ends_what_tries_again_or_only_writes_down_what_failed(monkeypatch, tmp_path, work):
    swallowed = False

    def do_all():
        nonlocal swallowed
        with stop.interrupting():
            work(monkeypatch, tmp_path)
            swallowed = True

    with StopRequest().installed() as stop, pytest.raises(Preempted):
        do_all()
    assert not swallowed
    assert stop.count == 1


def test_a_signal_that_a_callback_from_c_lost_ends_the_work_at_its_end(monkeypatch):
    # ctypes, like the library that decodes audio, reports what a callback raises and goes on.
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: None)
    callback = ctypes.CFUNCTYPE(None)(callback_from_c)
    after = []

    def do_all():
        with stop.interrupting():
            callback()
            after.append("went on")

    with StopRequest().installed() as stop, pytest.raises(Preempted):
        do_all()
    assert after == ["went on"]


def test_a_signal_before_the_work_begins_ends_it_too():
    with StopRequest().installed() as stop:
        ask_to_stop()
        work = stop.interrupting()
        with pytest.raises(Preempted):
            work.__enter__()


def test_being_stopped_has_an_exit_code_of_its_own():
    assert exit_code(Preempted()) == 75


@pytest.mark.parametrize(("handler", "count"), [(signal.SIG_DFL, 1), (signal.SIG_IGN, 0)])
def test_the_end_of_a_terminal_is_a_request_to_stop_unless_nohup_was_asked_for(handler, count):
    former = signal.signal(signal.SIGHUP, handler)
    try:
        with StopRequest().installed() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.count == count
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, former)
