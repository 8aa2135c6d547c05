"""Threads that read shards, and do not keep a process alive that has nothing else to do."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """A call whose result or error goes into a future."""

    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def run(self) -> None:
        try:
            self.future.set_result(self.function(*self.arguments))
        # Whatever it is, the consumer raises it: a thread that dies silently would leave it waiting.
        except BaseException as error:
            self.future.set_exception(error)


class Inline:
    """Runs each task when it is submitted."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        task = Task(Future(), function, arguments)
        task.run()
        return task.future

    def close(self) -> None:
        pass


class Threads:
    """Runs tasks in threads that do not keep the process alive.

    The standard library's executor joins its threads when the interpreter ends: a reader that never answers
    would hang the process that has just reported it.
    """

    def __init__(self, workers: int):
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._workers = workers
        for number in range(workers):
            threading.Thread(target=self._work, name=f"reader-{number}", daemon=True).start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        task = Task(Future(), function, arguments)
        self._tasks.put(task)
        return task.future

    def close(self) -> None:
        """Lets each thread end after the task it is at; tasks that wait are dropped."""
        self._closed.set()
        # Whoever waits for one of them waits no longer.
        with suppress(queue.Empty):
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    task.future.cancel()
        # One for each thread, to wake those that wait for a task.
        for _ in range(self._workers):
            self._tasks.put(None)

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            if task is None:
                return
            if self._closed.is_set():
                task.future.cancel()
                return
            task.run()
