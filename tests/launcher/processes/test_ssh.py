"""Runs over two "hosts": `fake_ssh.sh` stands in for ssh, and both are this machine.

Everything between is the real thing: the agents, the lines that the remote shell reads, the supervision.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from paths import HELPERS

from launcher.errors import ConfigError, DistributedError, Preempted
from launcher.monitoring.progress import PlainDisplay
from launcher.processes import supervisor, watchdog, worker_command
from launcher.processes.launchers import make_launcher
from launcher.processes.process_group import ProcessGroup
from launcher.processes.ssh import SshLauncher
from launcher.processes.stop_request import StopRequest
from launcher.processes.supervisor import Job, supervise
from launcher.processes.watchdog import Deadlines, processes_of
from launcher.recipe import ClusterConfig
from launcher.run_folder import RunFolder, read_json

HERE = HELPERS
STAGE = "teacher"


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "a run")
    folder.stage(STAGE).logs.mkdir(parents=True)
    folder.recipe_file.write_text("{}")
    yield folder
    for process in processes_of(folder):
        process.kill()


@pytest.fixture(autouse=True)
def stand_ins(tmp_path, monkeypatch):
    """ssh and deepspeed as this test's own; what they are told to do goes through cluster.environment."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").symlink_to(HERE / "fake_ssh.sh")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("FAKE_SSH_LOG", str(tmp_path / "ssh.log"))
    deepspeed = tmp_path / "bin" / "deepspeed"
    deepspeed.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE}/fake_deepspeed.py "$@"\n')
    deepspeed.chmod(0o755)
    monkeypatch.setattr(worker_command, "deepspeed_executable", lambda: str(deepspeed))
    monkeypatch.setattr(supervisor, "POLL_S", 0.05)
    monkeypatch.setattr(watchdog, "LINGER_S", 2.0)


def cluster_of(tmp_path: Path, hosts: str = "node-a slots=1\nnode-b slots=2\n", **settings) -> ClusterConfig:
    hostfile = tmp_path / "hosts"
    hostfile.write_text(hosts)
    names = ("FAKE_BEHAVIOUR", *settings.pop("environment", ()))
    return ClusterConfig(processes=3, hostfile=hostfile, environment=names, **settings)


class Supervision:
    def __init__(self, run: RunFolder, tmp_path: Path, monkeypatch):
        self.run, self.stop, self.text = run, StopRequest(), ""
        self._tmp_path, self._monkeypatch = tmp_path, monkeypatch

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def __call__(self, attempts=(), steps=6, restarts=1, deadlines=None, hosts=None, **behaviour):
        behaviour |= {"steps": steps, "attempts": list(attempts)}
        self._monkeypatch.setenv("FAKE_BEHAVIOUR", json.dumps(behaviour))
        launcher = make_launcher(cluster_of(self._tmp_path, **({"hosts": hosts} if hosts else {})))
        stage = self.run.stage(STAGE)
        job = Job(
            stage,
            lambda: launcher.training(self.run, STAGE),
            processes=3,
            succeeded=lambda: (read_json(stage.done_file) or {}).get("status") == "done",
            steps=steps,
            restarts=restarts,
            deadlines=deadlines or Deadlines(startup_s=60, stall_s=20, stop_s=20, terminate_s=0.5),
            end_elsewhere=lambda terminate_s: launcher.end_elsewhere(self.run, STAGE, terminate_s),
        )
        with self.stop.installed():
            supervise(job, self.run, self.stop, PlainDisplay(self, seconds_between_lines=0))

    def events(self):
        return [event for event in self.run.events() if event["event"] != "processes_started"]


@pytest.fixture
def supervision(run, tmp_path, monkeypatch):
    return Supervision(run, tmp_path, monkeypatch)


def wait_until(condition, timeout_s: float = 60.0):
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_stage_runs_over_two_hosts_and_leaves_its_commands(supervision, run):
    supervision()
    assert supervision.events() == []
    assert "teacher: step 6/6" in supervision.text
    assert {beat["rank"]: beat["host"] for beat in run.stage(STAGE).read_heartbeats()} == {
        0: "node-a",
        1: "node-b",
        2: "node-b",
    }
    assert run.events()[0]["hosts"] == {"node-a": [0], "node-b": [1, 2]}
    launched = read_json(run.stage(STAGE).launch_file)
    assert launched["launcher"] == "ssh"
    assert [(command["host"], command["command"][0]) for command in launched["commands"]] == [
        ("node-a", "ssh"),
        ("node-b", "ssh"),
    ]
    assert launched["ranks"] == {"node-a": [0], "node-b": [1, 2]}


def test_a_process_lost_on_another_host_is_named_and_the_stage_goes_on(supervision):
    supervision([{"at": 12, "do": "die", "rank": 2}], steps=20)
    assert [(event["event"], event.get("rank")) for event in supervision.events()] == [
        ("process_lost", 2),
        ("restart", None),
    ]
    assert "rank 2 on node-b was lost at step" in supervision.text


def test_a_loss_elsewhere_that_nobody_notices_ends_the_attempt_with_the_stacks_of_the_others(supervision, run):
    supervision([{"at": 12, "do": "die", "rank": 2, "deaf": True}], steps=20, deadlines=Deadlines(60, stall_s=60))
    assert supervision.events()[0]["rank"] == 2
    assert "wait_for_peers" in run.stage(STAGE).rank_log(0).with_suffix(".stacks").read_text()
    assert "wait_for_peers" in run.stage(STAGE).rank_log(1).with_suffix(".stacks").read_text()


def test_a_silent_process_of_another_host_is_named_with_its_host(supervision, run):
    supervision([{"at": 2, "do": "hang", "rank": 1}], deadlines=Deadlines(60, stall_s=3))
    assert "rank 1 on node-b was silent for" in supervision.events()[0]["reason"]
    assert processes_of(run) == []


def test_a_stop_lets_the_processes_of_all_hosts_save_and_leave(supervision, run):
    def stop():
        wait_until(lambda: run.stage(STAGE).checkpoint_steps())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(Preempted, match="newest checkpoint is of step"):
        supervision(steps=100_000)
    done = read_json(run.stage(STAGE).done_file)
    assert done["status"] == "stopped"
    assert done["step"] == max(run.stage(STAGE).checkpoint_steps())


def test_a_host_out_of_reach_is_a_configuration_error_before_anything_starts(supervision, run):
    with pytest.raises(ConfigError, match=r"The host unreachable cannot be used over ssh: .* No route to host"):
        supervision(hosts="node-a slots=2\nunreachable slots=1\n")
    assert run.events() == []


def test_nothing_is_started_anew_while_a_host_that_may_still_work_is_out_of_reach(
    supervision, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 1.0)
    monkeypatch.setenv("FAKE_SSH_DOWN", str(tmp_path / "down"))
    (tmp_path / "down").mkdir()

    def cut():
        wait_until(lambda: run.stage(STAGE).checkpoint_steps())
        (tmp_path / "down" / "node-b").touch()
        agents = [process for process in processes_of(run) if "launcher.processes.agent" in process.cmdline()]
        next(agent for agent in agents if agent.environ()["FAKE_HOST"] == "node-b").kill()
        wait_until(lambda: any(event["event"] == "host_out_of_reach" for event in run.events()))
        (tmp_path / "down" / "node-b").unlink()

    thread = threading.Thread(target=cut)
    thread.start()
    supervision(steps=60, restarts=5)
    thread.join()
    names = [event["event"] for event in run.events()]
    first_out_of_reach, last_start = (
        names.index("host_out_of_reach"),
        len(names) - 1 - names[::-1].index("processes_started"),
    )
    assert names.count("processes_started") == 2
    assert first_out_of_reach < last_start


def test_a_host_that_does_not_see_the_run_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_BEHAVIOUR", "{}")
    launcher = make_launcher(cluster_of(tmp_path))
    started = ProcessGroup(launcher.training(RunFolder("/nowhere/run"), STAGE).commands, tmp_path / "log")
    wait_until(lambda: started.poll() is not None)
    assert started.poll() == 2
    started.end()
    assert "does not see the run folder /nowhere/run. Put it, with --run-dir" in (tmp_path / "log").read_text()


@pytest.fixture
def started(run, tmp_path, monkeypatch):
    """Processes on both hosts that work for ever and do not leave by themselves."""
    monkeypatch.setenv("FAKE_BEHAVIOUR", json.dumps({"steps": 10**9, "attempts": [], "stubborn": True}))
    launcher = make_launcher(cluster_of(tmp_path))
    launched = launcher.training(run, STAGE)
    for path, text in launched.files.items():
        path.write_text(text)
    return ProcessGroup(launched.commands, run.stage(STAGE).launcher_log)


def test_processes_elsewhere_end_when_the_one_that_holds_them_is_gone(started, run):
    wait_until(lambda: len(run.stage(STAGE).read_heartbeats()) == 3)
    assert len(processes_of(run)) == 2 + 2 + 3  # agents, stand-ins of deepspeed, ranks
    # All that the other side learns of a launcher killed with SIGKILL: its end of the pipe is closed.
    for process in started._processes:
        process.stdin.close()
    wait_until(lambda: processes_of(run) == [], timeout_s=20)


def test_processes_elsewhere_end_when_the_connection_falls_silent(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_BEHAVIOUR", json.dumps({"steps": 10**9, "attempts": []}))
    launched = make_launcher(cluster_of(tmp_path)).training(run, STAGE)
    run.stage(STAGE).hostfile.write_text("node-a slots=1\nnode-b slots=2\n")
    code = "import launcher.processes.agent as n, sys; n.SILENCE_S = 3; sys.exit(n.main(sys.argv[1:]))"
    inner = shlex.split(launched.commands[1].arguments[-1])
    agent = [sys.executable, "-c", code, *inner[inner.index("launcher.processes.agent") + 1 :]]
    process = subprocess.Popen(agent, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(HERE.parents[1])})
    assert process.stdin
    process.stdin.write(b"{}\n")
    process.stdin.flush()
    assert process.wait(60) == 128 + signal.SIGKILL
    assert processes_of(run) == []


def test_an_agent_that_is_killed_takes_nothing_else_down_and_leaves_nothing_once_asked(started, run, tmp_path):
    wait_until(lambda: len(run.stage(STAGE).read_heartbeats()) == 3)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)", "other/run", STAGE])
    for process in processes_of(run):
        if "launcher.processes.agent" in process.cmdline():
            process.kill()
    launcher = SshLauncher(cluster_of(tmp_path), make_launcher(cluster_of(tmp_path)).topology)
    assert launcher.end_elsewhere(run, STAGE, terminate_s=0.2) >= 3
    assert processes_of(run) == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert started.poll() not in (0, None)
    assert "on node-" in started.reason()
    started.end()


def test_the_environment_arrives_whole_and_secrets_are_on_no_command_line(run, tmp_path, monkeypatch):
    odd = """it's "odd" $HOME `id` ; rm -rf \\ /nowhere"""
    names = {"NCCL_DEBUG": odd, "WANDB_API_KEY": "s3cret", "MY_TOKEN": "t0ken", "MY_PATH": "/a b"}
    for name, value in {**names, "FAKE_BEHAVIOUR": "{}", "UNRELATED": "stays"}.items():
        monkeypatch.setenv(name, value)
    # Set by a tracker that was opened in this process.
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    shown = tmp_path / "shown.json"
    code = f"import json, os; json.dump(dict(os.environ), open({str(shown)!r}, 'w'))"
    monkeypatch.setattr(
        worker_command, "evaluation_command", lambda run, stage: [sys.executable, "-c", code, str(run.path), stage]
    )
    launcher = make_launcher(cluster_of(tmp_path, environment=("MY_TOKEN", "MY_PATH"), threads=3))
    launched = launcher.evaluation(run, STAGE)
    started = ProcessGroup(launched.commands, tmp_path / "log")
    wait_until(lambda: started.poll() is not None)
    assert started.poll() == 0, (tmp_path / "log").read_text()
    seen = json.loads(shown.read_text())
    assert {name: seen.get(name) for name in names} == names
    assert seen["OMP_NUM_THREADS"] == "3"
    assert seen["DS_ACCELERATOR"] == "cpu"
    assert seen["PYTHONPATH"].split(":")[0] == str(HERE.parents[1])
    assert "UNRELATED" not in seen
    told = (tmp_path / "ssh.log").read_text() + json.dumps(launched.record())
    assert "s3cret" not in told
    assert "t0ken" not in told
    assert launched.record()["commands"][0]["secret_variables"] == [
        "FAKE_BEHAVIOUR",
        "MY_PATH",
        "MY_TOKEN",
        "WANDB_API_KEY",
    ]


def test_the_lines_for_ssh_are_these(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_BEHAVIOUR", "{}")
    cluster = cluster_of(tmp_path, ssh_options=("-p", "2222"), master_address="10.0.0.1", include="node-b:1")
    first = make_launcher(cluster).training(run, STAGE, port=29500).commands[0].arguments
    assert first[:4] == ["ssh", "-T", "-p", "2222"]
    assert {"BatchMode=yes", "ServerAliveInterval=5", "ServerAliveCountMax=6"} <= set(first)
    assert first[-2] == "node-b"
    line = first[-1]
    assert line.startswith(f"cd {shlex.quote(os.getcwd())} && exec env ")
    deepspeed = shlex.split(line.partition(" -- ")[2])
    assert deepspeed[1:] == [
        "--node_rank=0",
        f"--hostfile={run.stage(STAGE).hostfile}",
        "--include=node-b:1",
        "--no_ssh",
        "--master_addr=10.0.0.1",
        "--master_port=29500",
        "--no_local_rank",
        "--module",
        "launcher.worker",
        str(run.path),
        STAGE,
    ]


def test_a_stage_that_cannot_go_on_over_ssh_shows_what_the_hosts_said(supervision, monkeypatch):
    failing = {"at": 12, "do": "exit", "rank": 2, "code": 1, "message": "out of memory"}
    with pytest.raises(DistributedError, match="rank 2: out of memory"):
        supervision([failing], steps=40, restarts=0)
