"""Where the time goes between the start of a stage's processes and the end of its first step.

`chorus run RECIPE --profile-start` shows it. Each process notes its parts one after the other, with the wall time and
the CPU time of all its threads: on a busy machine the second is what a part costs. Nothing is noted after the first
step, and nothing is written unless it was asked for.
"""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from launcher.run_folder import read_json, write_json

# When the launcher started the stage's command, in seconds since the epoch.
STARTED_VARIABLE = "CHORUS_STAGE_STARTED"


@dataclass(frozen=True)
class StartPart:
    """One part of a start: `cpu_s` are the seconds of all threads."""

    name: str
    wall_s: float
    cpu_s: float


class StartProfile:
    """The parts of one process's start, in their order."""

    def __init__(self) -> None:
        self.parts: list[StartPart] = []
        self._wall_s = time.perf_counter()
        self._cpu_s = 0.0

    def begin(self) -> None:
        """Note what was before the first line of the worker: the commands that started it, and Python itself."""
        started = os.environ.get(STARTED_VARIABLE)
        # Other hosts' clocks differ, so only a launcher of this machine says when it started.
        if started is None:
            return
        cpu_s = time.process_time() + _ancestors_cpu_s()
        self.parts.append(StartPart("commands", time.time() - float(started), cpu_s))
        self._wall_s = time.perf_counter()
        self._cpu_s = time.process_time()

    def mark(self, name: str) -> None:
        """Note that the part of this name is over."""
        wall_s = time.perf_counter()
        cpu_s = time.process_time()
        self.parts.append(StartPart(name, wall_s - self._wall_s, cpu_s - self._cpu_s))
        self._wall_s = wall_s
        self._cpu_s = cpu_s

    def write(self, file: Path) -> None:
        """Leave the parts where `read_start_profile` reads them."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"parts": [asdict(part) for part in self.parts]})


def _ancestors_cpu_s() -> float:
    """CPU time of the processes between the launcher and this one; 0 where the launcher is no ancestor."""
    launcher = os.environ.get("CHORUS_LAUNCHER_PID")
    total_s = 0.0
    for ancestor in psutil.Process().parents():
        if str(ancestor.pid) == launcher:
            return total_s
        times = ancestor.cpu_times()
        total_s += times.user + times.system
    return 0.0


def read_start_profile(file: Path) -> list[StartPart]:
    """Return the parts that a process left; none where it came to no first step."""
    if not file.exists():
        return []
    record: dict[str, Any] = read_json(file)
    return [StartPart(**part) for part in record["parts"]]


def describe_start(parts: list[StartPart]) -> str:
    """Return the parts as lines, with their sum as the last."""
    rows = [*parts, StartPart("until the first step", sum(p.wall_s for p in parts), sum(p.cpu_s for p in parts))]
    heading = "start of the first process"
    width = max(len(heading), *(len(part.name) for part in rows))
    lines = [f"{heading:<{width}}  wall s   CPU s"]
    for part in rows:
        lines.append(f"{part.name:<{width}}  {part.wall_s:6.2f}  {part.cpu_s:6.2f}")
    return "\n".join(lines)


# One process starts once. Its parts lie in several rooms, which have nothing else in common.
start_profile = StartProfile()
