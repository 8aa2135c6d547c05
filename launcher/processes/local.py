"""All processes on this machine, through the `deepspeed` command."""

from contextlib import AbstractContextManager, nullcontext

from launcher.processes import worker_command
from launcher.processes.process_group import Command, Launch
from launcher.processes.run_processes import token_environment
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import Host, Topology
from launcher.run_folder import RunFolder


class LocalLauncher:
    """Starts a stage's processes here."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        slots = tuple(range(cluster.processes))
        self.topology = Topology((Host("localhost", slots, len(slots)),))

    def training(self, run: RunFolder, stage: str, port: int | None = None) -> Launch:
        """Return the command of a training stage."""
        processes = self._cluster.processes
        port = port or self._cluster.master_port or worker_command.free_port()
        arguments = worker_command.training_command(processes, run, stage, port)
        environment = worker_command.worker_environment(self._cluster, processes, port) | token_environment(run)
        command = Command("localhost", arguments, environment)
        return Launch("local", f"127.0.0.1:{port}", self.topology.placement(), [command])

    def evaluation(self, run: RunFolder, stage: str) -> Launch:
        """Return the command of an evaluation: one process."""
        arguments = worker_command.evaluation_command(run, stage)
        environment = worker_command.worker_environment(self._cluster, 1, worker_command.free_port())
        environment |= token_environment(run)
        command = Command("localhost", arguments, environment)
        return Launch("local", "localhost", {"localhost": [0]}, [command])

    def end_elsewhere(self, run: RunFolder, stage: str, terminate_s: float) -> int:
        """There is no elsewhere."""
        return 0

    def notify_followers(self, run: RunFolder) -> AbstractContextManager[None]:
        """Nobody waits elsewhere for the end of the run."""
        return nullcontext()
