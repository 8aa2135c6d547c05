"""A run as a SLURM job: the batch script and its submission outside a job, one `srun` for each attempt inside.

The script runs the same `chorus run` on the job's first node. SLURM sends it SIGUSR1 before the time limit: the run
saves, leaves with 75, and the job is queued again, as often as needed. A job that was cancelled is not.
"""

import os
import shlex
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext

from launcher.errors import ConfigError
from launcher.processes import agent_command, worker_command
from launcher.processes.process_group import Command, Launch
from launcher.recipe import ClusterConfig, Recipe
from launcher.recipe.hostfile import Host, Topology
from launcher.run_folder import RunFolder

ANSWER_S = 60.0
SCRIPT = """#!/bin/bash
{directives}

export {environment}
{command} &
child=$!
trap 'signalled=1; queue_again=1; kill -USR1 "$child"' USR1
trap 'signalled=1; kill -TERM "$child"' TERM
wait "$child"
code=$?
# A signal ends `wait`, not the child.
while [ -n "$signalled" ]; do
    signalled=
    wait "$child"
    waited=$?
    [ "$waited" -eq 127 ] || code=$waited
done
# 75: saved and stopped. Only at the time limit: a job that was cancelled, or preempted and queued again, stays so.
if [ "$code" -eq 75 ] && [ -n "$queue_again" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def inside_job() -> bool:
    """Return whether this process runs in an allocation, by a batch script or salloc."""
    return "SLURM_JOB_ID" in os.environ


def batch_script(recipe: Recipe, run: RunFolder, arguments: list[str]) -> str:
    """Return the script that runs `chorus ARGUMENTS` as a job."""
    slurm = recipe.cluster.slurm
    per_node = recipe.cluster.processes // slurm.nodes
    options = {
        "job-name": recipe.name,
        "chdir": os.getcwd(),
        "output": f"{run.path}/slurm-%j.log",
        "open-mode": "append",
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": per_node * slurm.cpus_per_process,
        "gpus-per-node": slurm.gpus_per_node,
        "time": slurm.time_limit_min,
        "partition": slurm.partition,
        "account": slurm.account,
        "signal": f"B:USR1@{slurm.signal_s}",
    }
    directives = [f"--{name}={value}" for name, value in options.items() if value is not None]
    python = worker_command.python_environment(os.environ)
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {_directive(option)}" for option in [*directives, "--requeue", *slurm.options]),
        environment=shlex.join(f"{name}={value}" for name, value in python.items()),
        command=shlex.join([sys.executable, "-m", "launcher.cli", *arguments]),
    )


def _directive(option: str) -> str:
    """Quote an option as sbatch reads it: by double quotes alone."""
    return f'"{option}"' if any(character.isspace() for character in option) else option


def submit(script: str) -> str:
    """Hand a script file to sbatch and return the number of the job; ConfigError with what sbatch says."""
    try:
        done = subprocess.run(["sbatch", "--parsable", script], capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no sbatch in PATH. Run this on a login node of the cluster; the script is {script}."
        ) from None
    if done.returncode:
        raise ConfigError(
            f"sbatch does not take the script {script}: {' '.join(done.stderr.split())}. Mend cluster.slurm and run "
            "the same command again."
        )
    return done.stdout.strip().partition(";")[0]


class SlurmLauncher:
    """Starts a stage's processes on the nodes of the job that this process runs in."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        slots = tuple(range(cluster.processes // cluster.slurm.nodes))
        self.topology = Topology(tuple(Host(name, slots, len(slots)) for name in self._nodes()))

    def _nodes(self) -> list[str]:
        """Return the names of the job's nodes; before there is a job, stand-ins."""
        number = self._cluster.slurm.nodes
        if not inside_job():
            return [f"slurm-node-{index}" for index in range(number)]
        found = subprocess.run(["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True)
        nodes = found.stdout.split()
        if len(nodes) != number:
            raise ConfigError(
                f"cluster.slurm.nodes is {number}, but the SLURM job {os.environ['SLURM_JOB_ID']} has {len(nodes)} "
                "nodes. Make them equal."
            )
        return nodes

    def training(self, run: RunFolder, stage: str, port: int | None = None) -> Launch:
        """Return the one command of a training stage: an agent on every node."""
        port = port or agent_command.choose_port(self._cluster)
        master = self._cluster.master_address or self.topology.hosts[0].name
        per_node = len(self.topology.hosts[0].slots)
        command = agent_command.deepspeed_command(self.topology, "$SLURM_PROCID", run, stage, master, port)
        agent = agent_command.agent_command(command, per_node, self._cluster.threads)
        # The shell on the node puts its number in.
        line = " ".join(f'"{part}"' if part.endswith("=$SLURM_PROCID") else shlex.quote(part) for part in agent)
        arguments = [*self._srun("--kill-on-bad-exit=1", "--input=all"), "sh", "-c", f"exec {line}"]
        names = ",".join(host.name for host in self.topology.hosts)
        return Launch(
            "slurm",
            f"{master}:{port}",
            self.topology.placement(),
            [Command(names, arguments, self._environment(), secrets={})],
            {run.stage(stage).hostfile: self.topology.hostfile()},
        )

    def evaluation(self, run: RunFolder, stage: str) -> Launch:
        """Return the command of an evaluation: one process here, on the job's first node."""
        host = self.topology.hosts[0].name
        environment = worker_command.worker_environment(self._cluster, 1, worker_command.free_port())
        return Launch(
            "slurm", host, {host: [0]}, [Command(host, worker_command.evaluation_command(run, stage), environment)]
        )

    def end_elsewhere(self, run: RunFolder, stage: str, terminate_s: float) -> int:
        """End what is left of a stage on the job's nodes; return how many processes."""
        end = [
            sys.executable,
            "-m",
            "launcher.processes.watchdog",
            "end",
            str(run.path),
            stage,
            f"--terminate-s={terminate_s}",
        ]
        try:
            done = subprocess.run(
                [*self._srun("--overlap"), *end],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=ANSWER_S,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"srun starts nothing within {ANSWER_S:g} s. Look at the job with squeue.") from None
        if done.returncode:
            raise ConfigError(f"srun cannot start a process on every node: {' '.join(done.stderr.split())[-300:]}.")
        return sum(map(int, done.stdout.split()))

    def notify_followers(self, run: RunFolder) -> AbstractContextManager[None]:
        """Nobody waits elsewhere for the end of the run."""
        return nullcontext()

    def _srun(self, *options: str) -> list[str]:
        nodes, per_node = len(self.topology.hosts), len(self.topology.hosts[0].slots)
        cores = f"--cpus-per-task={per_node * self._cluster.slurm.cpus_per_process}"
        return ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", cores, *options]

    def _environment(self) -> dict[str, str]:
        """srun hands the whole environment on."""
        return {**os.environ, **worker_command.python_environment(os.environ)}
