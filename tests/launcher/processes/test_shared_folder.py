"""Runs without ssh: each "host" is a process of its own on this machine, and they share the run folder alone."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import yaml
from paths import HELPERS

from launcher.cli import main as chorus
from launcher.processes.watchdog import processes_of
from launcher.run_folder import RunFolder, read_json

HERE = HELPERS
ROOT = HERE.parents[1]
# `chorus` with a stand-in for the deepspeed command; what trains is fake_deepspeed.py.
FAKE = """
import sys
from pathlib import Path
from launcher.cli import main
from launcher.processes import supervisor, worker_command
worker_command.deepspeed_executable = lambda: {deepspeed!r}
supervisor.POLL_S = 0.05
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    yield folder
    for process in processes_of(folder):
        process.kill()


@pytest.fixture
def arguments(tmp_path, run):
    """Options of a run whose corpus and tokenizer are done already."""
    (tmp_path / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    return ["--run-dir", str(run.path), "--launcher", "no_ssh", "--hostfile", str(tmp_path / "hosts")]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Four utterances of a second of noise."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number, split in enumerate(("train", "train", "dev", "test")):
        soundfile.write(folder / f"{number}.wav", np.random.default_rng(number).normal(0, 0.1, 16000), 16000)
        rows.append({"audio": f"{number}.wav", "text": f"word{'s' * number} here", "split": split})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path, manifest):
    values = yaml.safe_load((ROOT / "launcher/recipes/mini.yaml").read_text())
    teacher = values["stages"][0] | {"steps": 100_000}
    path = tmp_path / "recipe.yaml"
    corpus = {"name": "folder", "manifest": str(manifest)}
    path.write_text(yaml.safe_dump(values | {"name": "relay", "corpus": corpus, "stages": [teacher]}))
    return str(path)


@pytest.fixture
def start(tmp_path, recipe, arguments):
    """Starts `chorus run` as one of the hosts."""
    deepspeed = tmp_path / "deepspeed"
    deepspeed.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE}/fake_deepspeed.py "$@"\n')
    deepspeed.chmod(0o755)
    started = []

    def call(node: int, behaviour: dict) -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DS_ACCELERATOR": "cpu",
            "FAKE_HOST": f"node-{'ab'[node]}",
            "FAKE_BEHAVIOUR": json.dumps({"steps": 20, "attempts": [], **behaviour}),
        }
        command = [sys.executable, "-c", FAKE.format(deepspeed=str(deepspeed)), "run", recipe, *arguments]
        with (tmp_path / f"output-{node}").open("ab") as output:
            process = subprocess.Popen(
                [*command, f"--node-rank={node}"], env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()


def wait_until(reached, timeout_s: float = 120.0):
    until = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_first_host_decides_and_the_other_follows_through_a_loss_to_the_end(start, run, tmp_path):
    behaviour = {"attempts": [{"at": 12, "do": "die", "rank": 1}]}
    hosts = [start(node, behaviour) for node in (1, 0)]
    assert [host.wait(150) for host in hosts] == [0, 0], (tmp_path / "output-0").read_text()
    assert {beat["rank"]: beat["host"] for beat in run.stage("teacher").read_heartbeats()} == {0: "node-a", 1: "node-b"}
    lost = next(event for event in run.events() if event["event"] == "process_lost")
    assert lost["rank"] == 1
    assert "rank 1 on node-b was lost" in lost["reason"]
    assert "Everything is done." in (tmp_path / "output-1").read_text()


def test_a_stop_of_the_one_that_follows_stops_the_run_and_both_say_so(start, run, tmp_path):
    hosts = [start(node, {"steps": 10**9}) for node in (0, 1)]
    wait_until(lambda: run.stage("teacher").checkpoint_steps())
    hosts[1].send_signal(signal.SIGTERM)
    assert [host.wait(60) for host in hosts] == [75, 75], (tmp_path / "output-0").read_text()
    assert read_json(run.stage("teacher").done_file)["status"] == "stopped"
    assert processes_of(run) == []


def test_what_the_one_that_follows_started_ends_when_the_first_host_is_killed(start, run):
    first, other = (start(node, {"steps": 10**9, "stubborn": True}) for node in (0, 1))
    wait_until(lambda: len(run.stage("teacher").read_heartbeats()) == 2)
    first.kill()
    wait_until(lambda: processes_of(run) == [], timeout_s=30)
    assert other.poll() is None  # it waits for the first to be started again


def test_without_a_number_the_command_of_every_host_is_shown_and_kept(recipe, arguments, run, capsys):
    assert chorus(["run", recipe, *arguments]) == 0
    shown = capsys.readouterr().out
    assert "# on node-b, in " in shown
    assert f"run {recipe} --run-dir {run.path}" in shown
    assert "--node-rank=1" in shown
    assert run.node_commands_file.read_text() in shown
    assert not run.state_file.exists()


@pytest.mark.parametrize(
    ("options", "fragment"),
    [(["--node-rank", "2"], "the hosts in use are 0 to 1"), (["--node-rank", "0", "--launcher", "ssh"], "is ssh")],
)
def test_a_number_that_no_host_has_is_refused(recipe, arguments, capsys, options, fragment):
    assert chorus(["run", recipe, *arguments, *options]) == 2
    assert fragment in capsys.readouterr().err
