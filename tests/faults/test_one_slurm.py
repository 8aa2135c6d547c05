"""A run as a job of a real SLURM cluster of two nodes: saved at its time limit, queued again, and cancelled."""

import subprocess
import sys
import time

import pytest
from one_slurm import Cluster, missing
from runs import WAIT_S, Victim, write_recipe

from launcher.processes.watchdog import processes_of
from launcher.run_folder import read_json

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800)]

STEPS = 18


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class QueuedRun(Victim):
    """A run that is a job."""

    def __init__(self, cluster: Cluster, shards, folder):
        super().__init__(write_recipe(folder / "recipe.yaml", shards, STEPS, threads=1), folder / "run")
        self.cluster = cluster
        settings = ["nodes=2", "cpus_per_process=1", "time_limit_min=30"]
        options = [part for setting in settings for part in ("--set", f"cluster.slurm.{setting}")]
        self.options = ["--launcher", "slurm", *options, "--set", "cluster.master_address=127.0.0.1"]

    def submit(self) -> str:
        command = [sys.executable, "-m", "launcher.cli", "run", str(self.recipe), "--run-dir", str(self.run.path)]
        environment = {**self.cluster.environment, "DS_ACCELERATOR": "cpu", "WANDB_MODE": "disabled"}
        done = subprocess.run([*command, *self.options], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.rpartition("Job ")[2].split()[0]

    def wait_until(self, reached) -> None:
        until = time.monotonic() + WAIT_S
        while not reached():
            assert time.monotonic() < until, "\n".join(log.read_text() for log in self.run.path.glob("slurm-*.log"))
            time.sleep(0.2)

    def state(self, job: str) -> str:
        return self.cluster.ask("squeue", "-h", "-o", "%T", "--states=all", "-j", job)


@pytest.fixture
def queued(cluster, shards, tmp_path) -> QueuedRun:
    return QueuedRun(cluster, shards, tmp_path)


def test_a_job_is_saved_at_its_limit_queued_again_and_comes_to_the_same_weights(queued, cluster, make_victim):
    job = queued.submit()
    queued.wait_until(lambda: any(beat["step"] >= 4 for beat in queued.beats()))
    cluster.ask("scancel", "--batch", "--signal=USR1", job)  # what SLURM sends before the time limit
    queued.wait_until(lambda: queued.state(job) == "PENDING")
    assert read_json(queued.stage.done_file)["status"] == "stopped"
    assert processes_of(queued.run) == []
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    queued.wait_until(lambda: queued.state(job) == "COMPLETED")
    assert {host for event in queued.events("processes_started") for host in event["hosts"]} == {"n1", "n2"}
    one_host = make_victim(steps=STEPS, threads=1)  # the last bits of a sum depend on the number of threads
    one_host.start()
    one_host.finish()
    found = queued.weights()
    for name, values in one_host.weights().items():
        assert values.equal(found[name]), name


def test_a_cancelled_job_leaves_nothing_and_is_not_queued_again(queued, cluster):
    job = queued.submit()
    queued.wait_until(lambda: any(beat["step"] >= 2 for beat in queued.beats()))
    cluster.ask("scancel", job)
    queued.wait_until(lambda: queued.state(job) == "CANCELLED")
    queued.wait_until(lambda: processes_of(queued.run) == [])
    time.sleep(3)
    assert queued.state(job) == "CANCELLED"
