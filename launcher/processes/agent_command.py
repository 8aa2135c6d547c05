"""The commands of one host among many: its agent, DeepSpeed's launcher under it, and the environment both need.

DeepSpeed's own ways over several hosts are not used: pdsh forwards little of the environment and is ended by killing
every DeepSpeed job of that interpreter on the hosts.
"""

import random
import re
import sys
from collections.abc import Mapping

from data.redaction import has_credentials
from launcher.errors import ConfigError
from launcher.processes import worker_command
from launcher.processes.process_group import Command, Launch
from launcher.processes.run_processes import token_environment
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Topology
from launcher.run_folder import RunFolder

AGENT_MODULE = "launcher.processes.agent"
WATCHDOG_MODULE = "launcher.processes.watchdog"
# These stand on command lines, where every user of a host sees them: they say which device and network are used.
SHOWN = ("DS_ACCELERATOR", "LD_LIBRARY_PATH")
SHOWN_PREFIXES = ("GLOO_", "NCCL_", "TORCH_NCCL_")
SECRET_PREFIXES = ("WANDB_",)
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL|AUTH", re.IGNORECASE)
# Below the range that systems hand out by themselves.
PORTS = range(20000, 32000)


def deepspeed_command(
    topology: Topology, node_rank: int, run: RunFolder, stage: str, master: str, port: int
) -> list[str]:
    """Return the command that starts one host's processes of a training stage, on that host."""
    executable, *arguments = deepspeed_words(topology, run, stage, master, port)
    return [executable, f"--node_rank={node_rank}", *arguments]


def deepspeed_words(topology: Topology, run: RunFolder, stage: str, master: str, port: int) -> list[str]:
    """Return the command of every host; behind its first word belongs `--node_rank=` with the number of the host."""
    command = [worker_command.deepspeed_executable(), f"--hostfile={run.stage(stage).hostfile}"]
    include = topology.include()
    if include:
        command.append(f"--include={include}")
    return [
        *command,
        "--no_ssh",
        f"--master_addr={master}",
        f"--master_port={port}",
        "--no_local_rank",
        "--module",
        worker_command.WORKER_MODULE,
        str(run.path),
        stage,
    ]


def agent_command(command: list[str], processes: int, threads: int | None) -> list[str]:
    """Return the command of a host's agent; like `command` it ends in RUN_DIR STAGE."""
    options = [f"--processes={processes}"]
    if threads:
        options.append(f"--threads={threads}")
    # The dashes keep the agent from taking the options of DeepSpeed's launcher for its own.
    return [sys.executable, "-u", "-m", AGENT_MODULE, *options, "--", *command]


def end_command(run: RunFolder, stage: str, terminate_s: float) -> list[str]:
    """Return the command that ends a stage's processes on the host where it runs, and prints how many there were."""
    option = f"--terminate-s={terminate_s}"
    return [sys.executable, "-m", WATCHDOG_MODULE, "end", str(run.path), stage, option]


def evaluation_here(kind: str, cluster: ClusterConfig, topology: Topology, run: RunFolder, stage: str) -> Launch:
    """Return an evaluation as one process on this host, the first of the topology."""
    host = topology.hosts[0].name
    arguments = worker_command.evaluation_command(run, stage)
    environment = worker_command.worker_environment(cluster, 1, worker_command.free_port()) | token_environment(run)
    return Launch(kind, host, {host: [0]}, [Command(host, arguments, environment)])


def passed_environment(cluster: ClusterConfig, environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what processes on other hosts get of this one's environment: to be shown, and secret.

    Secret is all that a user named, whatever it is called: a proxy or a database is named by a URL with a password.
    """
    shown = worker_command.python_environment(environment)
    secrets = {}
    for name, value in environment.items():
        if name.startswith(SECRET_PREFIXES):
            secrets[name] = value
        elif name in SHOWN or name.startswith(SHOWN_PREFIXES):
            if SECRET_NAME.search(name) or has_credentials(value):
                secrets[name] = value
            else:
                shown[name] = value

    for name in cluster.environment:
        if name not in environment:
            raise ConfigError(
                f"cluster.environment names {name}, which is not set here. Set it, or take it out of the recipe."
            )
        # Python needs these before the agent can read what is secret.
        if name not in ("PYTHONPATH", "LD_LIBRARY_PATH"):
            shown.pop(name, None)
            secrets[name] = environment[name]
    return shown, secrets


def master_address(cluster: ClusterConfig, topology: Topology) -> str:
    """Return the address at which every host finds the first process."""
    if cluster.master_address:
        return cluster.master_address
    # Processes of one host meet where no other machine can join them (training/parallel.py).
    if len(topology.hosts) == 1:
        return "127.0.0.1"
    return topology.hosts[0].name


def choose_port(cluster: ClusterConfig) -> int:
    """Return the port of the first process; a drawn one that is taken there costs a restart with another."""
    # No secret: the port stands on command lines.
    return cluster.master_port or random.choice(PORTS)  # noqa: S311
