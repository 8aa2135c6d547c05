"""Starts real training processes on this machine, without a launcher between."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(arguments: list[str], world: int, log: Path) -> list[subprocess.Popen]:
    """`python ARGUMENTS` as `world` ranks of one process group over loopback; their output goes to `log`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
    }
    shared.pop("CHORUS_LAUNCHER_PID", None)
    with log.open("ab") as output:
        return [
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=output,
                stderr=output,
                cwd=ROOT,
            )
            for rank in range(world)
        ]


def run(arguments: list[str], world: int, log: Path, timeout_s: float = 120) -> None:
    """Start the ranks and wait; the log is shown when one of them fails."""
    processes = start(arguments, world, log)
    try:
        codes = [process.wait(timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world, log.read_text(errors="replace")[-6000:]
