"""The commands of one host among many: its agent, DeepSpeed's launcher under it, and the environment both need.

DeepSpeed's own ways over several hosts are not used: pdsh forwards little of the environment and is ended by killing
every DeepSpeed job of that interpreter on the hosts.
"""

import random
import re
import sys
from collections.abc import Mapping

from launcher.errors import ConfigError
from launcher.processes import worker_command
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Topology
from launcher.run_folder import RunFolder

AGENT_MODULE = "launcher.processes.agent"
PASSED = ("DS_ACCELERATOR", "LD_LIBRARY_PATH")
PASSED_PREFIXES = ("GLOO_", "NCCL_", "TORCH_NCCL_", "WANDB_")
# These are seen by every user of a host when they stand on a command line.
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
# Below the range that systems hand out by themselves.
PORTS = range(20000, 32000)


def deepspeed_command(
    topology: Topology, node_rank: int | str, run: RunFolder, stage: str, master: str, port: int
) -> list[str]:
    """Return the command that starts one host's processes of a training stage, on that host."""
    include = topology.include()
    return [
        worker_command.deepspeed_executable(),
        f"--hostfile={run.stage(stage).hostfile}",
        *([f"--include={include}"] if include else []),
        "--no_ssh",
        f"--node_rank={node_rank}",
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
    options = [f"--processes={processes}", *([f"--threads={threads}"] if threads else [])]
    return [sys.executable, "-u", "-m", AGENT_MODULE, *options, "--", *command]


def passed_environment(cluster: ClusterConfig, environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what processes on other hosts get of this one's environment: to be shown, and secret."""
    missing = [name for name in cluster.environment if name not in environment]
    if missing:
        raise ConfigError(
            f"cluster.environment names {missing[0]}, which is not set here. Set it, or take it out of the recipe."
        )
    names = {name for name in environment if name in PASSED or name.startswith(PASSED_PREFIXES)}
    chosen = {name: environment[name] for name in sorted(names | set(cluster.environment))}
    shown = {name: value for name, value in chosen.items() if not SECRET.search(name)}
    secrets = {name: value for name, value in chosen.items() if SECRET.search(name)}
    return worker_command.python_environment(environment) | shown, secrets


def choose_port(cluster: ClusterConfig) -> int:
    """Return the port of the first process; a drawn one that is taken there costs a restart with another."""
    return cluster.master_port or random.choice(PORTS)
