"""Starts real training processes on this machine, without a launcher between.

Within pytest they are forked from a process that has imported torch and DeepSpeed already, see `rank_server.py`.
`fresh` starts an interpreter for each, as a launcher does; so do benchmarks, which measure the time and memory of it.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


class ForkedRank:
    """A rank of the server, with the part of subprocess.Popen that tests use."""

    def __init__(self, server: "Server", pid: int):
        self.pid = pid
        self._server = server

    @property
    def returncode(self) -> int | None:
        return self._server.codes.get(self)

    def poll(self) -> int | None:
        self._server.read_reports(timeout_s=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left_s = None if until is None else until - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise subprocess.TimeoutExpired(f"rank of process {self.pid}", timeout or 0)
            self._server.read_reports(left_s)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that ranks are forked from; it ends with this one."""

    def __init__(self) -> None:
        environment = {**os.environ, **_SHARED}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("rank_server.py"))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._reports = self._process.stdout.fileno()
        self._unread = b""
        self._running: dict[int, ForkedRank] = {}
        self._started: list[int] = []
        self.codes: dict[ForkedRank, int] = {}
        self.threads = 0
        while not self.threads:
            self.read_reports(None)
        atexit.register(self._close)

    def _close(self) -> None:
        self._requests.close()
        self._process.wait()

    def start(self, arguments: list[str], environment: dict[str, str], log: Path) -> ForkedRank:
        request = {"arguments": arguments, "environment": environment, "log": str(log), "folder": str(ROOT)}
        self._requests.write(json.dumps(request).encode() + b"\n")
        self._requests.flush()
        while not self._started:
            self.read_reports(None)
        return self._running[self._started.pop()]

    def read_reports(self, timeout_s: float | None) -> None:
        """Take in what the server has reported, waiting for one report up to `timeout_s`, for ever if None."""
        ready, _, _ = select.select([self._reports], [], [], timeout_s)
        if not ready:
            return
        received = os.read(self._reports, 65536)
        assert received, "The process that ranks are forked from has ended."
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "threads" in report:
                self.threads = report["threads"]
            elif "code" in report:
                self.codes[self._running.pop(report["pid"])] = report["code"]
            else:
                self._running[report["pid"]] = ForkedRank(self, report["pid"])
                self._started.append(report["pid"])


_SHARED = {
    "PYTHONPATH": str(ROOT),
    "MASTER_ADDR": "127.0.0.1",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "WANDB_MODE": "disabled",
}


@cache
def _server() -> Server:
    return Server()


def start(arguments: list[str], world: int, log: Path, fresh: bool = False) -> list:
    """`python ARGUMENTS` as `world` ranks of one process group over loopback; their output goes to `log`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {**os.environ, **_SHARED, "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    shared.pop("CHORUS_LAUNCHER_PID", None)
    environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    forked = "pytest" in sys.modules and not fresh
    if forked and _server().threads == 1:
        return [_server().start(arguments, environment, log) for environment in environments]
    with log.open("ab") as output:
        return [
            subprocess.Popen([sys.executable, *arguments], env=environment, stdout=output, stderr=output, cwd=ROOT)
            for environment in environments
        ]


def run(arguments: list[str], world: int, log: Path, timeout_s: float = 120, fresh: bool = False) -> None:
    """Start the ranks and wait; the log is shown when one of them fails."""
    processes = start(arguments, world, log, fresh)
    try:
        codes = [process.wait(timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world, log.read_text(errors="replace")[-6000:]
