"""A run as a SLURM job: the batch script and its submission outside a job, one `srun` for each attempt inside.

The script runs the same `chorus run` on the job's first node. SLURM sends it SIGUSR1 before the time limit: the run
saves, leaves with 75, and the job is queued again, as often as needed. A job that was cancelled is not.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from launcher.errors import ConfigError
from launcher.processes import agent_command, worker_command
from launcher.processes.process_group import Command, Launch
from launcher.processes.remote_answer import last_words, read_number
from launcher.processes.run_processes import token_environment
from launcher.recipe import ClusterConfig, Recipe
from launcher.recipe.hostfile import Host, Topology
from launcher.recipe.slurm import UNQUOTABLE
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


def batch_script(
    recipe: Recipe,
    run: RunFolder,
    arguments: list[str],
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Return the script that runs `chorus ARGUMENTS` as a job, `name` or that of the recipe, with further variables."""
    slurm = recipe.cluster.slurm
    per_node = recipe.cluster.processes // slurm.nodes
    options = {
        "job-name": name or recipe.name,
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
    sbatch_options = [f"--{name}={value}" for name, value in options.items() if value is not None]
    sbatch_options += ["--requeue", *slurm.options]
    directives = [_directive(option) for option in sbatch_options]

    variables = {**(environment or {}), **worker_command.python_environment(os.environ)}
    return SCRIPT.format(
        directives="\n".join(directives),
        environment=shlex.join([f"{name}={value}" for name, value in variables.items()]),
        command=shlex.join([sys.executable, "-m", "launcher.cli", *arguments]),
    )


def _directive(option: str) -> str:
    """Return the line of a batch script that gives sbatch an option; ConfigError where none can."""
    # Versions of sbatch differ in how quotes and backslashes within a value are undone, so none are written.
    if UNQUOTABLE.search(option):
        raise ConfigError(
            f"{option!r} cannot be written into a batch script: sbatch reads line ends, quotes, backslashes and # in "
            "its own way. Start from a folder, and give a --run-dir, without such characters."
        )
    if any(character.isspace() for character in option):
        option = f'"{option}"'
    return f"#SBATCH {option}"


def submit(script: str) -> str:
    """Hand a script file to sbatch and return the number of the job; ConfigError with what sbatch says."""
    try:
        # Each cluster has its commands elsewhere in PATH.
        result = subprocess.run(["sbatch", "--parsable", script], capture_output=True, text=True)  # noqa: S607
    except FileNotFoundError:
        raise ConfigError(
            f"There is no sbatch in PATH. Run this on a login node of the cluster; the script is {script}."
        ) from None
    if result.returncode:
        raise ConfigError(
            f"sbatch does not take the script {script}: {' '.join(result.stderr.split())}. Mend cluster.slurm and run "
            "the same command again."
        )
    # With several clusters, sbatch prints "NUMBER;CLUSTER".
    return result.stdout.strip().partition(";")[0]


class SlurmLauncher:
    """Starts a stage's processes on the nodes of the job that this process runs in."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        num_nodes = cluster.slurm.nodes
        if inside_job():
            # The variable SLURM_JOB_NODELIST is compressed ("node[01-04]"); scontrol writes it out.
            command = ["scontrol", "show", "hostnames"]
            # Each cluster has its commands elsewhere in PATH.
            try:
                result = subprocess.run(command, capture_output=True, text=True, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise ConfigError(
                    f"The nodes of the SLURM job {os.environ['SLURM_JOB_ID']} cannot be told: {error}. Start inside of "
                    "an allocation, or unset SLURM_JOB_ID."
                ) from None
            names = result.stdout.split()
            if len(names) != num_nodes:
                raise ConfigError(
                    f"cluster.slurm.nodes is {num_nodes}, but the SLURM job {os.environ['SLURM_JOB_ID']} has "
                    f"{len(names)} nodes. Make them equal."
                )
        else:
            # Before there is a job, stand-ins.
            names = [f"slurm-node-{index}" for index in range(num_nodes)]

        slots = tuple(range(cluster.processes // num_nodes))
        hosts = [Host(name, slots, len(slots)) for name in names]
        self.topology = Topology(tuple(hosts))

    def training(self, run: RunFolder, stage: str, port: int | None = None) -> Launch:
        """Return the one command of a training stage: an agent on every node."""
        port = port or agent_command.choose_port(self._cluster)
        master = agent_command.master_address(self._cluster, self.topology)
        per_node = len(self.topology.hosts[0].slots)
        executable, *arguments = agent_command.deepspeed_words(self.topology, run, stage, master, port)
        agent = agent_command.agent_command([executable], per_node, self._cluster.threads)
        # srun starts the same line everywhere. The shell of each node puts its number in; it reads nothing else of it.
        line = f'exec {shlex.join(agent)} "--node_rank=$SLURM_PROCID" {shlex.join(arguments)}'
        # --input=all: every agent is held by its standard input, so each gets a copy of ours.
        srun = self._srun("--kill-on-bad-exit=1", "--input=all")
        command = [*srun, "sh", "-c", line]
        names = ",".join(host.name for host in self.topology.hosts)
        return Launch(
            "slurm",
            f"{master}:{port}",
            self.topology.placement(),
            [Command(names, command, self._environment() | token_environment(run), secrets={})],
            {run.stage(stage).hostfile: self.topology.hostfile()},
        )

    def evaluation(self, run: RunFolder, stage: str) -> Launch:
        """Return the command of an evaluation: one process here, on the job's first node."""
        return agent_command.evaluation_here("slurm", self._cluster, self.topology, run, stage)

    def end_elsewhere(self, run: RunFolder, stage: str, terminate_s: float) -> int:
        """End what is left of a stage on the job's nodes; return how many processes."""
        # --overlap: a step that is still there holds the cores, and this one must not wait for them.
        command = [*self._srun("--overlap"), *agent_command.end_command(run, stage, terminate_s)]
        try:
            result = subprocess.run(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=ANSWER_S,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"srun starts nothing within {ANSWER_S:g} s. Look at the job with squeue.") from None
        if result.returncode:
            reason = last_words(result.stderr)
            raise ConfigError(f"srun cannot start a process on every node: {reason}.")
        try:
            return read_number(result.stdout.splitlines())
        except ValueError as error:
            raise ConfigError(f"srun ran {command[-1]} on every node, but {error}. Look at the nodes' logs.") from None

    def notify_followers(self, run: RunFolder) -> AbstractContextManager[None]:
        """Nobody waits elsewhere for the end of the run."""
        return nullcontext()

    def _srun(self, *options: str) -> list[str]:
        nodes = len(self.topology.hosts)
        per_node = len(self.topology.hosts[0].slots)
        # Since SLURM 22.05 srun does not take --cpus-per-task from the batch script.
        cores = f"--cpus-per-task={per_node * self._cluster.slurm.cpus_per_process}"
        return ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", cores, *options]

    def _environment(self) -> dict[str, str]:
        """srun hands the whole environment on."""
        return {**os.environ, **worker_command.python_environment(os.environ)}
