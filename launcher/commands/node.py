"""`chorus node`: one node of a job that an engine started; it takes its place from the engine's variables.

The first node decides and the others follow its orders, which are files in the run folder. A job that comes back with
fewer nodes or GPUs goes on with them: where a run takes place changes nothing that is computed.
"""

import argparse
import math
import os
import sys

from launcher.commands.run import bring_to_end
from launcher.commands.store_options import run_path
from launcher.devices import accelerator, num_gpus
from launcher.engines.placement import Placement, read_placement
from launcher.engines.rendezvous import announced, mark_ready, wait_for_nodes
from launcher.errors import ConfigError
from launcher.executor import Executor, claim_folder
from launcher.monitoring.progress import Display, open_display
from launcher.processes.shared_folder import Follower, SharedFolderLauncher
from launcher.processes.stop_request import StopRequest
from launcher.processes.worker_command import check_evaluation_devices, check_machine
from launcher.recipe import Recipe, check_inputs, load_recipe
from launcher.recipe.former_defaults import former_defaults_of, with_former_defaults
from launcher.recipe.hostfile import Host, Topology
from launcher.remote_run import is_run_url
from launcher.run_files import read_state
from launcher.run_folder import TRAINING_KINDS, RunFolder
from launcher.stages.pipeline import Pipeline
from launcher.stages.start_checks import check_start
from launcher.tracking import check_tracking


def node(options: argparse.Namespace, stop: StopRequest) -> int:
    display = open_display(sys.stdout)
    with stop.interrupting():
        placement = read_placement(os.environ, options.engine)
        recipe = place_recipe(options.recipe, options.set, placement, options.processes_per_node, display)
        folder = RunFolder(run_path(options, recipe.name))
        check_inputs(recipe)
        check_machine(recipe.cluster)
        _check_gpus(recipe.cluster.processes // placement.nodes)
        check_tracking(recipe.tracking)
    if options.run_dir is None or not is_run_url(options.run_dir):
        return _run_node(options, stop, display, placement, recipe, folder)

    if placement.nodes > 1:
        raise ConfigError(
            f"--run-dir is {options.run_dir}, and the {placement.nodes} nodes of the job speak through files of the "
            "run folder, which a store does not show at once. Give a folder on a volume that all nodes see."
        )
    # fsspec takes long to import.
    from launcher.remote_run.stored_run import StoredRun

    stored_run = StoredRun(options.run_dir, folder, recipe, stop, display.say)
    with stored_run.connected(set(), options.upload_timeout_s):
        return _run_node(options, stop, display, placement, recipe, folder)


def _run_node(
    options: argparse.Namespace,
    stop: StopRequest,
    display: Display,
    placement: Placement,
    recipe: Recipe,
    folder: RunFolder,
) -> int:
    with stop.interrupting():
        state = read_state(folder) or {"stages": {}}
        begun_with = former_defaults_of(record["settings"] for record in state["stages"].values())
        recipe = with_former_defaults(recipe, begun_with)
        if folder.path.exists():
            claim_folder(recipe, folder)
        check_start(recipe, folder)
        if placement.node_rank == 0:
            check_evaluation_devices(recipe)

    if placement.nodes == 1:
        mark_ready()
        return bring_to_end(recipe, folder, Executor(recipe, folder, stop, display), display)

    launcher = SharedFolderLauncher(recipe.cluster, _topology(recipe, placement.nodes))
    trains = _has_training_left(recipe, folder)
    if placement.node_rank == 0:
        if trains:
            display.say(f"Waits for the other {placement.nodes - 1} nodes of the job.")
            with stop.interrupting():
                wait_for_nodes(folder, placement.nodes, options.join_timeout_s, stop)
        return bring_to_end(recipe, folder, Executor(recipe, folder, stop, display, launcher), display)

    # A node that an engine starts again after the end of the run would wait for a first node that has gone.
    if not trains:
        display.say("Every training is done; this node is not needed.")
        return 0
    follower = Follower(recipe, launcher, folder, placement.node_rank, stop, display)
    with announced(folder, placement.node_rank):
        follower.follow()
    return 0


def place_recipe(
    name: str, overrides: list[str], placement: Placement, processes_per_node: int | None, display: Display | None
) -> Recipe:
    """Return a recipe as it runs on the nodes of a job; ConfigError when it cannot.

    Without a number of processes from the command line or the engine, each GPU gets one; on processors the recipe's
    own number is shared among the nodes. Where that does not divide the lanes, fewer processes run on each node, and
    the experts are spread over no more processes than divide both: `display` is told.
    """
    recipe = load_recipe(name, overrides)
    # A job is only as large as its nodes: what the recipe says of hosts is for `chorus run`.
    if recipe.cluster.launcher is not None or recipe.cluster.hostfile is not None:
        raise ConfigError(
            "`chorus node` takes its hosts from the engine, and the recipe or --set gives cluster.launcher or "
            "cluster.hostfile. Leave them out, or start `chorus run`."
        )
    nodes = placement.nodes
    per_node = processes_per_node or placement.processes_per_node
    if per_node is None and accelerator() == "cuda":
        per_node = num_gpus()
    if per_node is None:
        per_node = max(1, recipe.cluster.processes // nodes)
    # What divides the lanes of every stage.
    lanes = math.gcd(*(recipe.batches_of(stage).lanes for stage in recipe.training_stages()))
    usable = per_node
    while usable > 1 and lanes and lanes % (nodes * usable):
        usable -= 1
    processes = nodes * usable
    if lanes and lanes % processes:
        raise ConfigError(
            f"The job has {nodes} nodes, which do not divide the {lanes} lanes of the recipe's stages (batches.lanes). "
            "Give it another number of nodes."
        )
    expert_parallel = math.gcd(recipe.cluster.expert_parallel, processes)
    if display is not None and usable < per_node:
        display.say(f"{usable} of {per_node} processes on each node: {nodes * per_node} do not divide {lanes} lanes.")
    if display is not None and expert_parallel < recipe.cluster.expert_parallel:
        display.say(
            f"One set of experts is spread over {expert_parallel} processes instead of "
            f"{recipe.cluster.expert_parallel} (cluster.expert_parallel): there are {processes}."
        )

    kind = "node" if nodes > 1 else "local"
    settings = [f"cluster.launcher={kind}", f"cluster.processes={processes}"]
    settings.append(f"cluster.expert_parallel={expert_parallel}")
    if nodes > 1:
        address = recipe.cluster.master_address or placement.master_address
        if address is None:
            raise ConfigError(
                f"{placement.engine} does not say where the first of {nodes} nodes is. Hand on MASTER_ADDR, the name "
                "or address of the first node (mpirun -x MASTER_ADDR), or set cluster.master_address."
            )
        # Quoted: an address of IPv6 has colons, which YAML would read.
        settings.append(f'cluster.master_address="{address}"')
        if placement.master_port is not None and recipe.cluster.master_port is None:
            settings.append(f"cluster.master_port={placement.master_port}")
    return load_recipe(name, [*overrides, *settings])


def _topology(recipe: Recipe, nodes: int) -> Topology:
    slots = tuple(range(recipe.cluster.processes // nodes))
    # Names for messages: only the first node's address is known to all, and used.
    return Topology(tuple(Host(f"node-{rank}", slots, len(slots)) for rank in range(nodes)))


def _has_training_left(recipe: Recipe, folder: RunFolder) -> bool:
    for stage, status in Pipeline(recipe, folder).statuses():
        if stage.kind in TRAINING_KINDS and not status.done:
            return True
    return False


def _check_gpus(processes: int) -> None:
    if accelerator() == "cuda" and processes > num_gpus():
        raise ConfigError(
            f"Each node of the job is to have {processes} processes, one per GPU, and this one sees {num_gpus()} GPUs. "
            "Ask the engine for as many GPUs as processes, or pass --processes-per-node."
        )
