"""Which launcher a recipe asks for."""

from contextlib import AbstractContextManager
from typing import Protocol

from launcher.errors import ConfigError
from launcher.processes.local import LocalLauncher
from launcher.processes.process_group import Launch
from launcher.processes.shared_folder import SharedFolderLauncher
from launcher.processes.slurm import SlurmLauncher
from launcher.processes.ssh import SshLauncher
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Topology, read_topology
from launcher.run_folder import RunFolder


class Launcher(Protocol):
    """Says what to start here so that a stage's processes run where they should."""

    topology: Topology

    def training(self, run: RunFolder, stage: str, port: int | None = None) -> Launch: ...

    def evaluation(self, run: RunFolder, stage: str) -> Launch: ...

    def end_elsewhere(self, run: RunFolder, stage: str, terminate_s: float) -> int: ...

    def notify_followers(self, run: RunFolder) -> AbstractContextManager[None]: ...


def make_launcher(cluster: ClusterConfig) -> Launcher:
    """Return the launcher of a resolved recipe; ConfigError when its hostfile cannot be used."""
    if cluster.kind == "local":
        return LocalLauncher(cluster)
    if cluster.kind == "slurm":
        return SlurmLauncher(cluster)
    if cluster.kind == "node":
        raise ConfigError(
            "cluster.launcher is node, which only `chorus node` can use: it takes the nodes from the variables of its "
            "engine. Start it in a job, or pass --launcher local."
        )

    # The recipe's checks refuse the kinds below without a hostfile.
    assert cluster.hostfile
    topology = read_topology(cluster.hostfile, cluster.include, cluster.exclude)
    if cluster.kind == "no_ssh":
        return SharedFolderLauncher(cluster, topology)
    return SshLauncher(cluster, topology)
