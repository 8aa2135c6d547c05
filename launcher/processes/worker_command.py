"""How a stage's processes are started on this machine: the command line and the environment of each.

Training goes through the `deepspeed` command, evaluation is one plain process. What differs between one host and many
is in `agent_command.py`. Refused: more processes than there are GPUs, and a port that is taken.
"""

import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.devices import ON_PROCESSORS, accelerator, describe_gpus, num_gpus, recognition_device
from launcher.errors import ConfigError
from launcher.processes.start_profile import STARTED_VARIABLE
from launcher.recipe import ClusterConfig, EvaluateStage, Recipe
from launcher.run_folder import RunFolder

# The folder that holds the packages data, launcher and model.
PACKAGES = Path(__file__).parents[2]
WORKER_MODULE = "launcher.worker"
# What says which process this one is among those of MPI, of torchrun or of another launcher. DeepSpeed compares
# OMPI_COMM_WORLD_LOCAL_RANK with its own numbers, PyTorch waits for the store of a TORCHELASTIC_ agent, and a RANK from
# outside is no rank of ours.
PLACE_PREFIXES = (
    "OMPI_",
    "PMI_",
    "PMIX_",
    "MPI_",
    "I_MPI_",
    "MV2_",
    "HYDI_",
    "HYDRA_",
    "PALS_",
    "TORCHELASTIC_",
    "PET_",
)
PLACE_NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "CROSS_RANK",
    "CROSS_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
# Entries of CUDA_VISIBLE_DEVICES that stand for no GPU.
HIDES_GPUS = ("-1", "NoDevFiles")
# Processes that an earlier launcher left behind let go of its port within about a second.
PORT_WAIT_S = 3.0
PORT_POLL_S = 0.2


def check_machine(cluster: ClusterConfig) -> None:
    """Refuse more processes than there are GPUs (processors may hold any number), and a port that is taken: both
    ConfigError."""
    if cluster.kind != "local":
        # `chorus doctor --hostfile` looks at other hosts.
        return
    port = cluster.master_port
    until = time.monotonic() + PORT_WAIT_S
    while port is not None:
        try:
            with socket.create_server(("", port)):
                break
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"cluster.master_port is {port}, and no process can listen on it here: {error.strerror}. Choose "
                    "another port, or leave cluster.master_port out: a free one is taken then. `ss -ltnp` shows which "
                    "program has it."
                ) from None
        time.sleep(PORT_POLL_S)

    if accelerator() == "cpu":
        return
    gpus = num_gpus()
    if cluster.processes > gpus:
        raise ConfigError(
            f"cluster.processes is {cluster.processes}, but PyTorch sees {describe_gpus(gpus)} here, and every process "
            f"needs one. Pass --processes {gpus} (with --set cluster.expert_parallel=N, N a divisor of it), or train "
            f"on the processors with {ON_PROCESSORS}."
        )


def check_evaluation_devices(recipe: Recipe) -> None:
    """Refuse (ConfigError) an evaluation on a GPU that this machine, where all evaluations run, does not have."""
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            recognition_device(stage.device)


def free_port() -> int:
    """Return a TCP port that nothing listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def training_command(processes: int, run: RunFolder, stage: str, port: int) -> list[str]:
    """Return the command that starts the processes of a training stage on this machine."""
    return [
        deepspeed_executable(),
        # DeepSpeed would otherwise read /job/hostfile where there is one.
        "--hostfile=/dev/null",
        _device_option(processes, os.environ),
        "--no_local_rank",
        f"--master_port={port}",
        "--module",
        WORKER_MODULE,
        str(run.path),
        stage,
    ]


def evaluation_command(run: RunFolder, stage: str) -> list[str]:
    """Return the command of an evaluation: one process."""
    return [sys.executable, "-u", "-m", WORKER_MODULE, str(run.path), stage]


def worker_environment(cluster: ClusterConfig, processes: int, port: int) -> dict[str, str]:
    """Return the environment of a stage's processes, derived from this one's."""
    threads = cluster.threads or max(1, num_cores() // processes)
    return {
        **inherited_environment(os.environ),
        **python_environment(os.environ),
        # More threads than cores would make the processes wait for each other.
        "OMP_NUM_THREADS": str(threads),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # With which a worker notices that its launcher is gone (heartbeat.py).
        "CHORUS_LAUNCHER_PID": str(os.getpid()),
        STARTED_VARIABLE: str(time.time()),
        # DeepSpeed would decide for itself, and look for accelerators that Chorus does not know.
        "DS_ACCELERATOR": accelerator(),
    }


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a stage's processes may inherit: all but those of another launcher's processes."""
    inherited = {}
    for name, value in environment.items():
        if name in PLACE_NAMES or name.startswith(PLACE_PREFIXES):
            continue
        # Empty, it means the same as no variable to us, and nothing that DeepSpeed knows.
        if name == "DS_ACCELERATOR" and not value:
            continue
        inherited[name] = value
    return inherited


def python_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which `python -m` finds Chorus from any folder."""
    search_path = [str(PACKAGES)]
    if environment.get("PYTHONPATH"):
        search_path.append(environment["PYTHONPATH"])
    return {
        "PYTHONPATH": os.pathsep.join(search_path),
        # `python -m` would put the current folder first, where a user may keep a package named data or model.
        "PYTHONSAFEPATH": "1",
        # What a process prints is in its log when it is killed.
        "PYTHONUNBUFFERED": "1",
    }


def shown(command: list[str]) -> str:
    """Return a command as it would be typed."""
    return shlex.join([Path(command[0]).name, *command[1:]])


def _device_option(processes: int, environment: Mapping[str, str]) -> str:
    """Return DeepSpeed's option for the processes of this host.

    It keeps to the GPUs of CUDA_VISIBLE_DEVICES, which `--num_gpus` alone would ignore.
    """
    visible = []
    for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(","):
        if device.strip() in HIDES_GPUS:
            # CUDA sees those before it alone.
            break
        if device.strip():
            visible.append(device.strip())
    if accelerator() == "cpu" or not visible:
        return f"--num_gpus={processes}"
    if not all(device.isdigit() for device in visible):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is {environment['CUDA_VISIBLE_DEVICES']!r}; the deepspeed command "
            "understands only numbers there. Give the GPUs by their index, such as "
            "CUDA_VISIBLE_DEVICES=0,1."
        )
    return f"--include=localhost:{','.join(visible[:processes])}"


def deepspeed_executable() -> str:
    """Return the path of the `deepspeed` command; ConfigError when there is none."""
    beside_python = Path(sys.executable).with_name("deepspeed")
    if beside_python.is_file():
        return str(beside_python)
    in_path = shutil.which("deepspeed")
    if not in_path:
        raise ConfigError(
            f"There is no `deepspeed` command beside {sys.executable} nor in PATH. Install Chorus with its "
            f"dependencies in this environment: pip install chorus-asr."
        )
    return in_path


def num_cores() -> int:
    """Return how many processor cores this process may use."""
    # The affinity counts the cores of a container or of a SLURM task, cpu_count() those of the machine. macOS has none.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
