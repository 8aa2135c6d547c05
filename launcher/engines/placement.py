"""Which node of a job this is, from the variables that its engine sets: SLURM, Kubeflow or torchrun, SkyPilot, MPI.

An engine starts one `chorus node` on each node, and that starts the node's processes. Variables that are missing, are
no number, or contradict each other are ConfigErrors: a node that took another's place would train something else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import ConfigError
from launcher.recipe.cluster import ADDRESS

NUMBER = re.compile("[0-9]{1,5}")
MAX_NODES = 65_536
# What stands between brackets of SLURM's lists of nodes: "[01-04,09]".
BRACKETS = re.compile(r"\[([^]]*)\]")
# Of a value that is quoted in a message.
MAX_QUOTED_CHARACTERS = 60


@dataclass(frozen=True)
class Placement:
    """The place of one node in a job. What an engine does not say is None."""

    engine: str
    node_rank: int
    nodes: int
    master_address: str | None = None
    master_port: int | None = None
    processes_per_node: int | None = None


def read_placement(environment: Mapping[str, str], engine: str | None = None) -> Placement:
    """Return this node's place; `engine` chooses whose variables count where several are set.

    ConfigError: no engine's variables are set, some are missing or wrong, or those of two engines disagree.
    """
    if engine is not None:
        placement = READERS[engine](environment)
        if placement is None:
            raise ConfigError(
                f"--engine is {engine}, but none of its variables is set here. Start `chorus node` in a job of that "
                "engine, one on each node."
            )
        return placement

    placements = []
    for reader in READERS.values():
        placement = reader(environment)
        if placement is not None:
            placements.append(placement)
    if not placements:
        raise ConfigError(
            "`chorus node` finds no variables of an engine: neither SLURM_STEP_NUM_NODES (srun), PET_NNODES or "
            "WORLD_SIZE (Kubeflow, torchrun), SKYPILOT_NODE_RANK, nor OMPI_COMM_WORLD_RANK or PMI_RANK (MPI) is set. "
            "Start it in a job, one on each node; `chorus run` is for one machine and for hostfiles."
        )
    first = placements[0]
    for other in placements[1:]:
        # An engine may start another's job, and then both number the nodes alike.
        if (other.node_rank, other.nodes) != (first.node_rank, first.nodes):
            raise ConfigError(
                f"Two engines disagree on which node this is: {_describe(first)}, and {_describe(other)}. Say with "
                f"--engine {first.engine} or --engine {other.engine} which of them started `chorus node`, or unset "
                "the variables of the other."
            )
    for placement in placements:
        if placement.master_address is not None:
            return placement
    return first


def _describe(placement: Placement) -> str:
    return f"by {placement.engine} it is node {placement.node_rank} of {placement.nodes}"


def _read_torchrun(environment: Mapping[str, str]) -> Placement | None:
    """Kubeflow gives each pod torchrun's options as variables; torchrun itself, and PyTorchJob, give ranks."""
    if "PET_NNODES" in environment or "PET_NODE_RANK" in environment:
        nodes = _number(environment, "PET_NNODES", 1, MAX_NODES)
        placement = _placed("torchrun", environment, "PET_NODE_RANK", nodes)
        return Placement(
            placement.engine,
            placement.node_rank,
            nodes,
            _address(environment, "PET_MASTER_ADDR", nodes),
            _port(environment, "PET_MASTER_PORT"),
            _processes(environment, "PET_NPROC_PER_NODE"),
        )
    if "TORCHELASTIC_RUN_ID" in environment:
        _check_one_each(environment, "LOCAL_WORLD_SIZE", "torchrun with --nproc-per-node=1")
        nodes = _number(environment, "GROUP_WORLD_SIZE", 1, MAX_NODES)
        placement = _placed("torchrun", environment, "GROUP_RANK", nodes)
        # MASTER_PORT is torchrun's own: it listens there itself.
        return Placement(placement.engine, placement.node_rank, nodes, _address(environment, "MASTER_ADDR", nodes))
    if "WORLD_SIZE" in environment or "RANK" in environment:
        if "LOCAL_WORLD_SIZE" in environment:
            _check_one_each(environment, "LOCAL_WORLD_SIZE", "one process on each node")
        nodes = _number(environment, "WORLD_SIZE", 1, MAX_NODES)
        placement = _placed("torchrun", environment, "RANK", nodes)
        return Placement(
            placement.engine,
            placement.node_rank,
            nodes,
            _address(environment, "MASTER_ADDR", nodes),
            _port(environment, "MASTER_PORT"),
        )
    return None


def _read_skypilot(environment: Mapping[str, str]) -> Placement | None:
    if "SKYPILOT_NODE_RANK" not in environment and "SKYPILOT_NODE_IPS" not in environment:
        return None
    addresses = _text(environment, "SKYPILOT_NODE_IPS").split()
    nodes = len(addresses)
    if "SKYPILOT_NUM_NODES" in environment:
        announced = _number(environment, "SKYPILOT_NUM_NODES", 1, MAX_NODES)
        if announced != nodes:
            raise ConfigError(
                f"SKYPILOT_NUM_NODES is {announced}, but SKYPILOT_NODE_IPS has {nodes} addresses. They are set by "
                "SkyPilot for every node of a task: unset what you set yourself."
            )
    placement = _placed("skypilot", environment, "SKYPILOT_NODE_RANK", nodes)
    processes = None
    # 0 where a task asked for no accelerators.
    if environment.get("SKYPILOT_NUM_GPUS_PER_NODE", "0") != "0":
        processes = _processes(environment, "SKYPILOT_NUM_GPUS_PER_NODE")
    master = _check_address("SKYPILOT_NODE_IPS", addresses[0])
    return Placement("skypilot", placement.node_rank, nodes, master, processes_per_node=processes)


def _read_slurm(environment: Mapping[str, str]) -> Placement | None:
    # A batch script has the variables of the job too, but only what srun starts is one of several.
    if "SLURM_STEP_NUM_NODES" not in environment and "SLURM_STEP_NODELIST" not in environment:
        return None
    nodes = _number(environment, "SLURM_STEP_NUM_NODES", 1, MAX_NODES)
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 1, 2**20)
    if tasks != nodes:
        raise ConfigError(
            f"SLURM_STEP_NUM_TASKS is {tasks} and SLURM_STEP_NUM_NODES {nodes}: `chorus node` is started once on each "
            "node, and starts the processes itself. Pass --ntasks-per-node=1 to srun."
        )
    placement = _placed("slurm", environment, "SLURM_NODEID", nodes)
    master = _check_address("SLURM_STEP_NODELIST", _first_host(_text(environment, "SLURM_STEP_NODELIST")))
    processes = None
    if "SLURM_GPUS_ON_NODE" in environment:
        processes = _processes(environment, "SLURM_GPUS_ON_NODE")
    return Placement("slurm", placement.node_rank, nodes, master, processes_per_node=processes)


def _read_mpi(environment: Mapping[str, str]) -> Placement | None:
    """Open MPI's variables, or those of PMI (MPICH, Intel MPI); neither says where the first node is."""
    names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
    if names[0] not in environment and names[1] not in environment:
        names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS")
    rank_name, size_name, local_name = names
    if rank_name not in environment and size_name not in environment:
        return None
    nodes = _number(environment, size_name, 1, MAX_NODES)
    if local_name in environment:
        _check_one_each(environment, local_name, "mpirun with one process on each node (--map-by ppr:1:node)")
    placement = _placed("mpi", environment, rank_name, nodes)
    master = None
    if "MASTER_ADDR" in environment:
        master = _address(environment, "MASTER_ADDR", nodes)
    return Placement("mpi", placement.node_rank, nodes, master, _port(environment, "MASTER_PORT"))


# In the order in which they count where they agree.
READERS = {"torchrun": _read_torchrun, "skypilot": _read_skypilot, "slurm": _read_slurm, "mpi": _read_mpi}


def _placed(engine: str, environment: Mapping[str, str], name: str, nodes: int) -> Placement:
    """Return the place of a node whose number is in a variable; ConfigError when there is no such node."""
    return Placement(engine, _number(environment, name, 0, nodes - 1), nodes)


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise ConfigError(
            f"{name} is not set, but other variables of its engine are. The engine sets it for each node: start "
            "`chorus node` by it directly, and hand its variables on into containers."
        )
    return value


def _number(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = _text(environment, name)
    if not NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise ConfigError(
            f"{name} is {text[:MAX_QUOTED_CHARACTERS]!r}; `chorus node` needs a whole number from {least} to {most} "
            "there. The engine sets it: unset what you set yourself, and give the job a fixed number of nodes."
        )
    return int(text)


def _processes(environment: Mapping[str, str], name: str) -> int | None:
    # Words that torchrun has for "as many as there are devices".
    if environment.get(name, "auto").strip() in ("auto", "gpu", "cpu"):
        return None
    return _number(environment, name, 1, MAX_NODES)


def _port(environment: Mapping[str, str], name: str) -> int | None:
    if name not in environment:
        return None
    return _number(environment, name, 1, 65_535)


def _address(environment: Mapping[str, str], name: str, nodes: int) -> str | None:
    # Processes of one node meet on its own loopback.
    if nodes == 1:
        return None
    return _check_address(name, _text(environment, name))


def _check_address(name: str, value: str) -> str:
    if not ADDRESS.fullmatch(value):
        raise ConfigError(
            f"{name} says that the first node is at {value[:MAX_QUOTED_CHARACTERS]!r}, which is neither a host name "
            "nor an address. The engine sets it: unset what you set yourself."
        )
    return value


def _check_one_each(environment: Mapping[str, str], name: str, how: str) -> None:
    number = _number(environment, name, 1, MAX_NODES)
    if number != 1:
        raise ConfigError(
            f"{name} is {number}: `chorus node` is started once on each node, and starts the processes itself. Use "
            f"{how}."
        )


def _first_host(nodelist: str) -> str:
    """Return the first name of SLURM's compressed list, such as gpu01 of "gpu[01-04,09],cpu1"."""

    def first_of(match: re.Match[str]) -> str:
        return re.split("[-,]", match[1])[0]

    # Brackets hold commas: they are replaced before the list is cut.
    return BRACKETS.sub(first_of, nodelist).partition(",")[0]
