"""Signs of life: each process says, about once a second, at which step it is and in which section."""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import psutil

from data.files import replacing
from launcher.processes.watchdog import is_running
from launcher.run_folder import StageFolder

INTERVAL_S = 1.0
LAUNCHER_CHECK_S = 1.0


class Heartbeat:
    """Writes this process's heartbeat file whenever work moves on, never from a thread of its own: a process that
    hangs must fall silent. Whatever takes long calls `tick` as it gets on."""

    def __init__(self, stage: StageFolder, rank: int):
        self.path = stage.heartbeat_file(rank)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {"rank": rank, "pid": os.getpid(), "host": socket.gethostname()}
        self.step = 0
        self.section = ""
        self.written = 0.0

    def beat(self, step: int, section: str) -> None:
        """Report that this process is at `step` and enters `section`; at most one write a second within a section."""
        # By a clock that nobody sets: one that is set back would silence this process.
        now = time.monotonic()
        if section == self.section and now - self.written < INTERVAL_S:
            return
        self.step = step
        self.section = section
        self.written = now
        self.record |= {"step": step, "section": section, "time": time.time()}
        self._write()

    def tick(self) -> None:
        """Report that this process gets on with what it reported last. Cheap: it mostly only looks at the clock."""
        self.beat(self.step, self.section)

    def leave(self, exit_code: int) -> None:
        """Report that this process ends because of an error, and with which exit code."""
        self.record["exit_code"] = exit_code
        self._write()

    def _write(self) -> None:
        # Not flushed to the disk: a heartbeat only matters while the machine lives.
        with replacing(self.path, durable=False) as temporary:
            temporary.write_text(json.dumps(self.record))


def leave_with_launcher() -> None:
    """End this process when the launcher that started it is gone, as after a kill that nothing can catch."""
    launcher = os.environ.get("CHORUS_LAUNCHER_PID")
    if launcher is None:
        return
    process = None
    # It may have been killed while this process was being started, which nobody would then watch.
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(launcher))

    def watch_launcher() -> None:
        # Of the process that it is now: its number may be given again. And whoever started it may never collect it.
        while process is not None and is_running(process):
            time.sleep(LAUNCHER_CHECK_S)
        # The main thread may hang in a collective, where no exception and no signal handler of Python's would run.
        os._exit(1)

    # A daemon: it must not keep a process alive whose work is done.
    threading.Thread(target=watch_launcher, name="launcher-watch", daemon=True).start()
