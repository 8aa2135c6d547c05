"""Processes whose launcher is gone leave, whenever it went and whatever became of its number."""

import os
import subprocess
import threading

import pytest

from launcher.processes import heartbeat


@pytest.fixture
def watch(monkeypatch):
    """Let this process take another one for its launcher; returns what is set when it would leave."""

    def start(pid: int) -> threading.Event:
        monkeypatch.setenv("CHORUS_LAUNCHER_PID", str(pid))
        heartbeat.leave_with_launcher()
        return leaving

    leaving = threading.Event()
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: leaving.set())
    monkeypatch.setattr(heartbeat, "LAUNCHER_CHECK_S", 0.01)
    yield start
    # No thread may be left that would end this process for good.
    assert leaving.wait(10)


def test_a_process_that_starts_after_its_launcher_was_killed_leaves(watch):
    launcher = subprocess.Popen(["true"])
    launcher.wait()
    assert watch(launcher.pid).wait(10)


def test_a_launcher_that_was_killed_and_that_nobody_collects_is_gone(watch):
    launcher = subprocess.Popen(["sleep", "60"])
    launcher.kill()
    # Until it is a zombie, without collecting it.
    os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
    assert watch(launcher.pid).wait(10)
    launcher.wait()


def test_a_process_stays_while_its_launcher_runs(watch):
    launcher = subprocess.Popen(["sleep", "60"])
    leaving = watch(launcher.pid)
    assert not leaving.wait(0.2)
    launcher.kill()
    launcher.wait()
