"""Several processes on this machine, each with a model, that are dealt tasks; results in the order of the tasks.

A process runs a module that calls `launcher.inference.worker_process.serve`, and speaks JSON over its standard input
and output, a message a line. One that is lost loses the task that it had: that is named, and another process takes its
place.
"""

import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self, TypeAlias

from data.errors import DataError
from data.files import parse_json
from launcher.errors import CheckpointError, ConfigError
from launcher.processes.worker_command import PACKAGES

# What a process is to do: plain values, of which `name` says what is lost with it.
Task: TypeAlias = Mapping[str, Any]
# Which task, how much of it is done, and how much there is.
OnProgress: TypeAlias = Callable[[int, float, float], None]
# The result of a task, or why there is none.
Outcome: TypeAlias = dict[str, Any] | DataError
END_S = 10.0
REFUSALS = {error.__name__: error for error in (ConfigError, CheckpointError, DataError)}


class _RefusedError(Exception):
    """A process cannot open the model, or work with it: so no task can be done."""

    def __init__(self, cause: Exception):
        super().__init__(str(cause))
        self.cause = cause


class WorkerPool:
    """`jobs` processes of a module, each with these settings, as a context."""

    def __init__(self, module: str, settings: Mapping[str, Any], jobs: int):
        # The cores are shared out, unless the user has said how many threads there shall be.
        threads = max(1, (os.cpu_count() or 1) // jobs)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        # Without a folder of the user's in front, whose modules would be imported instead of ours.
        environment |= {"PYTHONPATH": str(PACKAGES), "PYTHONSAFEPATH": "1"}
        self._jobs = jobs
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = []
        for _ in range(jobs):
            worker = _Worker(module, settings, environment)
            self._workers.append(worker)
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, tasks: Sequence[Task], on_progress: OnProgress = lambda *_: None) -> Iterator[Outcome]:
        """The outcome of each task, in their order. What a process says of model and settings is raised."""
        executor = ThreadPoolExecutor(self._jobs)
        try:
            futures = [executor.submit(self._run_one, number, task, on_progress) for number, task in enumerate(tasks)]
            for future in futures:
                yield future.result()
        except _RefusedError as refused:
            raise refused.cause from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _run_one(self, number: int, task: Task, on_progress: OnProgress) -> Outcome:
        worker = self._idle.get()
        try:
            if worker.is_lost:
                worker.start()
            return worker.run(task, lambda done, total: on_progress(number, done, total))
        except DataError as error:
            return error
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, and the task that it has."""

    def __init__(self, module: str, settings: Mapping[str, Any], environment: Mapping[str, str]):
        self._module = module
        self._settings = settings
        self._environment = environment
        self.start()

    def start(self) -> None:
        self.is_lost = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A key that interrupts the command ends it, and with it this process.
            start_new_session=True,
            env=self._environment,
        )
        self._send(self._settings)

    def run(self, task: Task, on_progress: Callable[[float, float], None]) -> dict[str, Any]:
        """The result of a task. DataError when there is none, or the process is lost with it."""
        self._send(task)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = parse_json(line)
            kind = message["kind"]
            if kind == "progress":
                on_progress(message["done"], message["total"])
            elif kind == "result":
                return message["result"]
            elif kind == "error":
                raise DataError(message["reason"])
            else:
                raise _RefusedError(REFUSALS[message["error"]](message["reason"]))
        self.is_lost = True
        code = self._process.wait()
        ended = f"with code {code}"
        if code < 0:
            ended = f"by signal {-code}"
        raise DataError(
            f"{task['name']} cannot be recognised: the process that did so was ended {ended}. If memory ran out, give "
            "fewer --jobs."
        )

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        line = json.dumps(message) + "\n"
        # Of a process that is lost, the end of its output tells.
        with suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()

    def end(self) -> None:
        """Let the process go, and end it where it does not by itself."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._process.kill()
        self._process.wait()
