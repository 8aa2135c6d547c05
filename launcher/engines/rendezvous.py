"""Nodes of a job wait for each other before the run begins, through files in the run folder.

Engines start nodes minutes apart. Every node but the first renews a file, RUN/nodes/node-II.ready.json, as long as it
follows; the first starts nothing before all of them do. A file that is not renewed is left from an earlier start.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.errors import DistributedError
from launcher.processes.shared_folder import read_own
from launcher.processes.stop_request import StopRequest
from launcher.run_folder import RunFolder, write_json

RENEW_S = 2.0
POLL_S = 0.2
# Set by the engine's job description: a file that says that this node is ready, to be looked at by a probe.
READY_FILE_VARIABLE = "CHORUS_READY_FILE"


def ready_file(run: RunFolder, node: int) -> Path:
    return run.order_file(node).with_suffix(".ready.json")


@contextmanager
def announced(run: RunFolder, node: int) -> Iterator[None]:
    """Say that this node follows, until the block is left."""
    path = ready_file(run, node)
    path.parent.mkdir(parents=True, exist_ok=True)
    session = uuid.uuid4().hex
    ended = threading.Event()

    def renew() -> None:
        count = 0
        while not ended.is_set():
            # A disk that is full or away for a moment: the next renewal may succeed.
            with suppress(OSError):
                write_json(path, {"session": session, "renewed": count})
            count += 1
            ended.wait(RENEW_S)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    mark_ready()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_for_nodes(run: RunFolder, nodes: int, deadline_s: float, stop: StopRequest) -> None:
    """Wait until every other node follows; DistributedError names those that do not within the deadline."""
    earlier = {}
    for node in range(1, nodes):
        earlier[node] = read_own(ready_file(run, node))
    missing = set(earlier)
    until = time.monotonic() + deadline_s
    while missing:
        for node in sorted(missing):
            if read_own(ready_file(run, node)) != earlier[node]:
                missing.discard(node)
        stop.check()
        if missing and time.monotonic() > until:
            numbers = ", ".join(str(node) for node in sorted(missing))
            raise DistributedError(
                f"Of the {nodes} nodes of the job, these did not start within {deadline_s:g} s (--join-timeout-s): "
                f"{numbers}. Look at their logs, and whether they see {run.path} as this node does."
            )
        time.sleep(POLL_S)
    mark_ready()


def mark_ready() -> None:
    """Write the file that a probe of the engine looks for, where one is named."""
    path = os.environ.get(READY_FILE_VARIABLE)
    if path:
        Path(path).touch()
