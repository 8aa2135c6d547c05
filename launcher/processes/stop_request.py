"""Signals as a request to stop, to `chorus run` or to any of its processes.

Imported before anything heavy, so that no signal comes too early.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.errors import Preempted


class StopRequest:
    """Takes SIGINT, SIGTERM, SIGUSR1 and the end of the terminal (SIGHUP) as a request to stop.

    It only counts, so that what is under way can be saved; inside `interrupting()` it raises Preempted.
    """

    # SIGUSR1 is what SLURM sends before the time limit, as our batch script asks it to.
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.count = 0
        self._raises = False

    @contextmanager
    def installed(self) -> Iterator["StopRequest"]:
        former_handlers = {}
        for number in self.SIGNALS:
            # `nohup` asks for that.
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            former_handlers[number] = signal.signal(number, self._on_signal)
        try:
            yield self
        finally:
            for number, handler in former_handlers.items():
                signal.signal(number, handler)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Work in this process that can be abandoned at any moment."""
        self._raises = True
        try:
            # A signal that came before this block counts as one inside it.
            self.check()
            yield
            # What a signal raised may have been lost: in a callback from C it is printed and forgotten.
            self.check()
        finally:
            self._raises = False

    def request(self) -> None:
        """Ask for a stop as a signal does, from any thread."""
        self.count += 1

    def check(self) -> None:
        if self.count:
            raise Preempted("The run was asked to stop.")

    def _on_signal(self, number: int, frame: object) -> None:
        self.count += 1
        if self._raises:
            raise Preempted("The run was asked to stop.")
