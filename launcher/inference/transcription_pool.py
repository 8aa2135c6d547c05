"""Recordings recognised by several processes on this machine, each with the model; results in the order of recordings.

The processes run `transcription_worker`, and speak JSON over their standard input and output, a message a line. One
that is lost loses the recording that it had: that is named, and another process takes its place.
"""

import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from data.errors import DataError
from data.files import parse_json
from launcher.errors import CheckpointError, ConfigError
from launcher.inference.recording_sources import RecordingSource
from launcher.processes.worker_command import PACKAGES

WORKER_COMMAND = (sys.executable, "-m", "launcher.inference.transcription_worker")
# Which recording, the seconds of it that are done, and those that there are.
OnProgress: TypeAlias = Callable[[int, float, float], None]
# A row of a transcript, or why there is none.
Outcome: TypeAlias = dict[str, Any] | DataError
END_S = 10.0
REFUSALS = {error.__name__: error for error in (ConfigError, CheckpointError, DataError)}


@dataclass(frozen=True)
class WorkerSettings:
    """What a process needs to recognise as another one does: plain values, which go through JSON."""

    model: str
    search: dict[str, Any]
    device: str
    cut: str
    dtype: str


class _RefusedError(Exception):
    """A process cannot open the model, or search with it: so no recording can be recognised."""

    def __init__(self, cause: Exception):
        super().__init__(str(cause))
        self.cause = cause


class TranscriptionPool:
    """`jobs` processes with a model each, as a context."""

    def __init__(self, settings: WorkerSettings, jobs: int):
        # The cores are shared out, unless the user has said how many threads there shall be.
        threads = max(1, (os.cpu_count() or 1) // jobs)
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._settings = settings
        self._jobs = jobs
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(settings, self._environment) for _ in range(jobs)]
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> "TranscriptionPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def transcribe(self, sources: Sequence[RecordingSource], on_progress: OnProgress) -> Iterator[Outcome]:
        """The outcome of each recording, in their order. What a process says of model and search is raised."""
        executor = ThreadPoolExecutor(self._jobs)
        try:
            futures = [
                executor.submit(self._transcribe_one, number, source, on_progress)
                for number, source in enumerate(sources)
            ]
            for future in futures:
                yield future.result()
        except _RefusedError as refused:
            raise refused.cause from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _transcribe_one(self, number: int, source: RecordingSource, on_progress: OnProgress) -> Outcome:
        worker = self._idle.get()
        try:
            if worker.is_lost:
                worker.start(self._environment)
            return worker.transcribe(source, lambda done_s, seconds: on_progress(number, done_s, seconds))
        except DataError as error:
            return error
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, and the recording that it has."""

    def __init__(self, settings: WorkerSettings, environment: dict[str, str]):
        self._settings = settings
        self.start(environment)

    def start(self, environment: dict[str, str]) -> None:
        self.is_lost = False
        self._process = subprocess.Popen(
            WORKER_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A key that interrupts the command ends it, and with it this process.
            start_new_session=True,
            # Without a folder of the user's in front, whose modules would be imported instead of ours.
            env={**environment, "PYTHONPATH": str(PACKAGES), "PYTHONSAFEPATH": "1"},
        )
        self._send(vars(self._settings))

    def transcribe(self, source: RecordingSource, on_progress: Callable[[float, float], None]) -> dict[str, Any]:
        """The row of a recording. DataError when it cannot be recognised, or the process is lost with it."""
        self._send({"name": source.name, "output": str(source.output)})
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = parse_json(line)
            kind = message["kind"]
            if kind == "progress":
                on_progress(message["done_s"], message["seconds"])
            elif kind == "row":
                return message["row"]
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
            f"{source.name} cannot be recognised: the process that did so was ended {ended}. If memory ran out, give "
            "fewer --jobs."
        )

    def _send(self, message: dict[str, Any]) -> None:
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
