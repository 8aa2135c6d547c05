"""Hosts that speak through the run folder: whoever may write into it chooses no command."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.errors import ConfigError, DistributedError
from launcher.monitoring.progress import PlainDisplay
from launcher.processes import shared_folder
from launcher.processes.launchers import make_launcher
from launcher.processes.shared_folder import MAX_ORDER_BYTES, Follower, SharedFolderLauncher
from launcher.processes.stop_request import StopRequest
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder, read_json

ORDER = {"attempt": "a" * 32, "stage": "teacher", "port": 29500, "words": "", "held": True, "renewed": 1}


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.order_file(1).parent.mkdir(parents=True)
    return folder


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    hosts = ["cluster.launcher=no_ssh", f"cluster.hostfile={tmp_path / 'hosts'}"]
    return load_recipe("mini", hosts, count_slots=True)


@pytest.fixture
def follow(run, recipe, tmp_path, monkeypatch):
    """Follows orders, the first of which is put into place once the follower listens; returns what was started."""
    monkeypatch.setattr(shared_folder, "POLL_S", 0.02)
    started = tmp_path / "started"
    code = f"import sys; open({str(started)!r}, 'w').write(' '.join(sys.argv[1:])); sys.stdin.read()"
    launcher = make_launcher(recipe.cluster)
    assert isinstance(launcher, SharedFolderLauncher)
    of_recipe = launcher.agent_of

    def agent_of(node, *arguments):
        return [sys.executable, "-c", code, *of_recipe(node, *arguments)]

    monkeypatch.setattr(launcher, "agent_of", agent_of)

    def call(*put) -> str:
        def put_in_turn():
            for action in put:
                time.sleep(0.3)
                action()

        thread = threading.Thread(target=put_in_turn, daemon=True)
        thread.start()
        display = PlainDisplay(sys.stderr, seconds_between_lines=0)
        try:
            Follower(recipe, launcher, run, 1, StopRequest(), display).follow()
        finally:
            thread.join()
        return started.read_text() if started.exists() else ""

    call.started = started
    return call


def hostile(tmp_path: Path) -> dict[str, object]:
    mark = str(tmp_path / "ran")
    return {
        "a command, as an earlier version took it": {
            "attempt": "a",
            "command": ["touch", mark],
            "words": "",
            "held": True,
        },
        "a command beside the rest": ORDER | {"stage": ["touch", mark]},
        "a stage outside": ORDER | {"stage": "../../elsewhere"},
        "an absolute stage": ORDER | {"stage": mark},
        "a stage that is none": ORDER | {"stage": "evaluation"},
        "an option": ORDER | {"stage": f"--launcher_args=$(touch {mark})"},
        "a port of words": ORDER | {"port": f"1; touch {mark}"},
        "a port that is none": ORDER | {"port": 0},
        "a port beyond": ORDER | {"port": 65536},
        "true as a port": ORDER | {"port": True},
        "other words": ORDER | {"words": "x" * 10},
        "no attempt": ORDER | {"attempt": None},
        "a count of words": ORDER | {"renewed": "1"},
        "an end that is no number": {"attempt": "a", "over": "0"},
        "a list": [1],
        "a number": 1,
    }


@pytest.mark.parametrize("name", hostile(Path("/tmp")))
def test_what_is_no_order_of_a_stage_is_refused_and_nothing_runs(follow, run, tmp_path, name):
    order = hostile(tmp_path)[name]
    with pytest.raises(ConfigError, match=r"node-01\.json, through which the hosts of a run speak, is not taken: "):
        follow(lambda: run.order_file(1).write_text(json.dumps(order)))
    assert not follow.started.exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"[" * 20_000, b"{", b"\xff", b" " * (MAX_ORDER_BYTES + 1), b"1" * 5000])
def test_a_file_that_cannot_be_read_is_a_paragraph(follow, run, content):
    with pytest.raises(ConfigError, match="is not taken: it"):
        follow(lambda: run.order_file(1).write_bytes(content))


def test_links_pipes_and_folders_are_no_orders(follow, run, tmp_path):
    file = run.order_file(1)
    (tmp_path / "order").write_text(json.dumps(ORDER))
    for put in (lambda: file.symlink_to(tmp_path / "order"), lambda: os.mkfifo(file), file.mkdir):
        with pytest.raises(ConfigError, match="is not taken: it"):
            follow(put)
        assert not follow.started.exists()
        file.rmdir() if file.is_dir() else file.unlink()


def test_an_order_of_another_user_is_refused(follow, run, monkeypatch):
    file = run.order_file(1)
    if os.getuid() == 0:
        file.write_text("{}")
        os.chown(file, 65534, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        monkeypatch.setattr(shared_folder, "_owner_shown", lambda folder: 12345)
    with pytest.raises(ConfigError, match="it belongs to user"):
        follow(lambda: file.write_text(json.dumps(ORDER)))
    assert not follow.started.exists()


def test_the_command_of_a_stage_is_that_of_the_followers_own_recipe(follow, run):
    def end():
        run.order_file(1).write_text(json.dumps({"attempt": "b", "over": 5}))

    with pytest.raises(DistributedError, match="exit code 5"):
        follow(lambda: run.order_file(1).write_text(json.dumps(ORDER)), lambda: None, lambda: None, end)
    words = follow.started.read_text().split()
    assert "launcher.processes.agent" in words
    assert {"--node_rank=1", "--master_addr=node-a", "--master_port=29500", "launcher.worker"} <= set(words)
    assert words[-2:] == [str(run.path), "teacher"]
    assert read_json(run.order_file(1).with_suffix(".answer.json"))["attempt"] == ORDER["attempt"]


def test_an_order_names_no_command(run, recipe):
    launcher = make_launcher(recipe.cluster)
    _, writer = launcher.training(run, "teacher", port=29500).commands
    assert writer.arguments[-5:] == [
        shared_folder.ORDER_WRITER_MODULE,
        str(run.order_file(1)),
        "29500",
        str(run.path),
        "teacher",
    ]


@pytest.mark.parametrize("answer", [{"code": "0"}, {"code": None}, {}, {"code": True}])
def test_an_answer_that_is_none_ends_the_order_writer_with_a_paragraph(run, capsys, monkeypatch, answer):
    file = run.order_file(1)
    monkeypatch.setattr(shared_folder, "POLL_S", 0.02)
    monkeypatch.setattr("uuid.uuid4", lambda: type("", (), {"hex": "a" * 32}))
    file.with_suffix(".answer.json").write_text(json.dumps({"attempt": "a" * 32, **answer}))
    read, write = os.pipe()
    os.write(write, b"{}\n")
    with os.fdopen(read) as stdin, os.fdopen(write, "w"):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert shared_folder.main([str(file), "29500", str(run.path), "teacher"]) == 2
    assert "its code is" in capsys.readouterr().err
    order = json.loads(file.read_text())
    assert set(order) == {"attempt", "stage", "port", "words", "held", "renewed"}
