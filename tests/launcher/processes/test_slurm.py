"""The batch script and the commands of a SLURM job, as texts; `tests/faults/test_one_slurm.py` runs them for real."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main as chorus
from launcher.processes import worker_command
from launcher.processes.launchers import make_launcher
from launcher.recipe import ClusterConfig
from launcher.run_folder import RunFolder

SETTINGS = [
    "cluster.processes=4",
    "batches.lanes=4",
    "cluster.expert_parallel=2",
    "cluster.slurm.nodes=2",
    "cluster.slurm.gpus_per_node=2",
    "cluster.slurm.partition=asr",
    "cluster.slurm.options=['--comment=two words']",
]


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """`chorus run mini --launcher slurm` with a stand-in for sbatch; returns the exit code."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def call(*options: str, sbatch: str = "echo 42"):
        program = tmp_path / "bin" / "sbatch"
        program.write_text(f"#!/bin/sh\n{sbatch}\n")
        program.chmod(0o755)
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        run_dir = str(tmp_path / "a run")
        return chorus(["run", "mini", "--run-dir", run_dir, "--launcher", "slurm", *settings, *options])

    return call


def test_the_script_asks_for_what_the_recipe_says_and_runs_the_same_command(queue, tmp_path, capsys):
    assert queue("--dry-run") == 0
    script = (tmp_path / "a run" / "job.sbatch").read_text()
    assert script in capsys.readouterr().out
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "--job-name=mini",
        f"--chdir={os.getcwd()}",
        f'"--output={tmp_path}/a run/slurm-%j.log"',
        "--open-mode=append",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
        "--gpus-per-node=2",
        "--time=1440",
        "--partition=asr",
        "--signal=B:USR1@180",
        "--requeue",
        '"--comment=two words"',
    ]
    command = next(line for line in script.splitlines() if line.endswith(" &"))
    words = shlex.split(command.removesuffix(" &"))
    assert words[:5] == [sys.executable, "-m", "launcher.cli", "run", "mini"]
    assert "--dry-run" not in words
    assert "--launcher" in words


def test_a_script_is_submitted_and_its_job_named(queue, tmp_path, capsys):
    assert queue() == 0
    assert f"Job 42 is queued; it writes to {tmp_path}/a run/slurm-42.log" in capsys.readouterr().out
    assert queue() == 0  # the folder with the script alone is still free for this run


def test_what_sbatch_refuses_is_a_configuration_error(queue, capsys):
    assert queue(sbatch="echo 'Invalid partition name' >&2; exit 1") == 2
    assert "sbatch does not take the script" in (error := capsys.readouterr().err)
    assert "Invalid partition name" in error


@pytest.mark.parametrize(
    ("setting", "fragment"),
    [
        ("cluster.slurm.nodes=3", "processes is 4, which slurm.nodes, 3, does not divide"),
        ("cluster.stop_deadline_s=200", "stop_deadline_s is 200, and slurm.signal_s, 180,"),
        ("cluster.hostfile=hosts", "the launcher slurm does not use a hostfile"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(queue, capsys, tmp_path, setting, fragment):
    assert queue("--set", setting) == 2
    assert fragment in capsys.readouterr().err
    assert not (tmp_path / "a run").exists()


def test_a_dry_run_without_slurm_is_refused(capsys, tmp_path):
    assert chorus(["run", "mini", "--run-dir", str(tmp_path / "run"), "--dry-run"]) == 2
    assert "--dry-run belongs to --launcher slurm" in capsys.readouterr().err


# What the child of the script does, which signal reaches the script, and whether the job is queued again.
ENDINGS = [
    ("exit 0", None, 0, False),
    ("exit 5", None, 5, False),
    ("exit 75", None, 75, False),
    ("trap 'exit 75' USR1; while :; do sleep 0.1; done", "USR1", 75, True),
    ("trap 'sleep 0.5; exit 0' USR1; while :; do sleep 0.1; done", "USR1", 0, False),
    ("trap 'exit 75' TERM; while :; do sleep 0.1; done", "TERM", 75, False),
]


@pytest.mark.parametrize(("child", "signal", "code", "again"), ENDINGS)
def test_the_job_is_queued_again_when_its_time_limit_stopped_it_and_only_then(
    queue, tmp_path, child, signal, code, again
):
    queue("--dry-run")
    script = (tmp_path / "a run" / "job.sbatch").read_text()
    command = next(line for line in script.splitlines() if line.endswith(" &"))
    short = tmp_path / "short.sh"
    short.write_text(script.replace(command, f"sh -c {shlex.quote('echo ready; ' + child)} &"))
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    environment = {**os.environ, "SLURM_JOB_ID": "42"}
    process = subprocess.Popen(["bash", str(short)], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    if signal:
        subprocess.run(["sh", "-c", f"sleep 0.3; kill -{signal} {process.pid}"], check=True)
    assert process.wait(20) == code
    assert (tmp_path / "requeued").exists() == again
    if again:
        assert (tmp_path / "requeued").read_text() == "requeue 42\n"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The launcher inside a job of two nodes; programs in `tmp_path / "bin"` stand in for those of SLURM."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text("#!/bin/sh\nprintf 'gpu-07\\ngpu-09\\n'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    return make_launcher(ClusterConfig.model_validate({"processes": 4, "launcher": "slurm", "slurm": {"nodes": 2}}))


SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
echo "prolog of node 1"
"$@"
echo 7
"$@"
"""


def test_what_is_left_on_the_nodes_of_a_job_is_counted_whatever_a_prolog_prints(job, tmp_path):
    srun = tmp_path / "bin" / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)
    assert job.end_elsewhere(RunFolder(tmp_path / "a run"), "teacher", terminate_s=0) == 0


def test_inside_a_job_one_srun_starts_an_agent_on_every_node(job, tmp_path):
    launched = job.training(RunFolder(tmp_path / "a run"), "teacher", port=29500)
    assert launched.ranks == {"gpu-07": [0, 1], "gpu-09": [2, 3]}
    (command,) = launched.commands
    assert command.arguments[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert command.arguments[-3:-1] == ["sh", "-c"]
    environment = {**os.environ, "SLURM_PROCID": "1"}
    line = command.arguments[-1].replace("exec ", "printf '%s\\n' ", 1)
    words = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=True).stdout
    assert "--node_rank=1" in words.splitlines()
    assert "--master_addr=gpu-07" in words.splitlines()
    assert words.splitlines()[-2:] == [str(tmp_path / "a run"), "teacher"]
    assert Path(words.splitlines()[0]) == Path(sys.executable)
    assert worker_command.deepspeed_executable() in words.splitlines()
