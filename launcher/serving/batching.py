"""Recordings of several requests that are recognised together.

A batch is run when it is full, or its first recording has waited long enough; while one is computed, the next gathers.
Texts, times and tokens are those of each recording alone, for an encoder sees no padding; numbers of fp32 may differ in
their last digits, for products of matrices of other sizes are summed up in another order.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch

from launcher.inference.finished_model import FinishedModel
from launcher.inference.transcriber import BATCH_S
from launcher.serving.expert_choices import ExpertChoices, expert_choices
from model.search import Hypothesis


class AbandonedError(Exception):
    """Nobody waits for the request any longer: its time is over, its client has gone, or the server ends."""


# Told apart by identity: they are kept in a set.
@dataclass(eq=False)
class Work:
    """What belongs to one request on its way through threads. `abandon` ends it where it looks next."""

    wants_experts: bool = False
    experts: list[ExpertChoices] = field(default_factory=list)
    _abandoned: threading.Event = field(default_factory=threading.Event)

    def abandon(self) -> None:
        self._abandoned.set()

    def check(self) -> None:
        if self._abandoned.is_set():
            raise AbandonedError


@dataclass
class _Waiting:
    """A recording, or a segment of one, that waits for its batch."""

    waveform: np.ndarray
    work: Work
    since_s: float
    result: Future[list[Hypothesis]]


# The number of recordings in a batch, and the seconds that its first one has waited.
OnBatch: TypeAlias = Callable[[int, float], None]


class Batcher:
    """Recognises what threads hand to it with one model, in batches. `compute` has the one thread that computes."""

    def __init__(
        self, model: FinishedModel, compute: ThreadPoolExecutor, size: int, wait_s: float, on_batch: OnBatch
    ) -> None:
        self.model = model
        self.compute = compute
        self._size = size
        self._wait_s = wait_s
        self._on_batch = on_batch
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        # A daemon: what it waits for may never come when the server ends.
        self._thread = threading.Thread(target=self._run, name="chorus-batcher", daemon=True)
        self._thread.start()

    def recognise(self, waveforms: list[np.ndarray], work: Work) -> list[list[Hypothesis]]:
        """The hypotheses of each waveform; waits for them. AbandonedError when the request is over by then."""
        results = []
        for waveform in waveforms:
            waiting = _Waiting(waveform, work, time.monotonic(), Future())
            results.append(waiting.result)
            with self._changed:
                if self._is_closed:
                    raise AbandonedError
                self._queue.append(waiting)
                self._changed.notify()
        return [result.result() for result in results]

    def close(self) -> None:
        """Give up what waits."""
        with self._changed:
            self._is_closed = True
            for waiting in self._queue:
                waiting.result.set_exception(AbandonedError())
            self._queue.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if not batch:
                return
            self._on_batch(len(batch), time.monotonic() - batch[0].since_s)
            try:
                self.compute.submit(self._recognise_batch, batch).result()
            # The executor takes nothing more when the server ends.
            except RuntimeError:
                for waiting in batch:
                    if not waiting.result.done():
                        waiting.result.set_exception(AbandonedError())

    def _next_batch(self) -> list[_Waiting]:
        """The recordings of the next batch, in the order in which they came; none when the batcher is closed."""
        with self._changed:
            while not self._queue and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return []
            full_at_s = self._queue[0].since_s + self._wait_s
            while len(self._queue) < self._size and not self._is_closed:
                remaining_s = full_at_s - time.monotonic()
                if remaining_s <= 0:
                    break
                self._changed.wait(remaining_s)

            batch: list[_Waiting] = []
            num_longest = 0
            max_samples = BATCH_S * self.model.features.config.sample_rate_hz
            while self._queue and len(batch) < self._size:
                num_longest = max(num_longest, len(self._queue[0].waveform))
                # Memory is that of the padded batch; a recording that alone is longer goes alone.
                if batch and num_longest * (len(batch) + 1) > max_samples:
                    break
                batch.append(self._queue.popleft())
            return batch

    def _recognise_batch(self, batch: list[_Waiting]) -> None:
        waited_for = []
        for waiting in batch:
            try:
                waiting.work.check()
            except AbandonedError as error:
                waiting.result.set_exception(error)
            else:
                waited_for.append(waiting)
        if not waited_for:
            return
        try:
            hypotheses_of = self._hypotheses(waited_for)
        except Exception as error:
            if len(waited_for) == 1:
                waited_for[0].result.set_exception(error)
                return
            # What is wrong with one recording, or with their number, must not be the others' answer.
            for waiting in waited_for:
                self._recognise_batch([waiting])
            return
        for waiting, hypotheses in zip(waited_for, hypotheses_of, strict=True):
            waiting.result.set_result(hypotheses)

    @torch.inference_mode()
    def _hypotheses(self, batch: list[_Waiting]) -> list[list[Hypothesis]]:
        model = self.model
        with model.autocast():
            output = model.encode([waiting.waveform for waiting in batch])
            hypotheses_of = model.search(output)
        if any(waiting.work.wants_experts for waiting in batch):
            choices_of = expert_choices(model, output.encoder)
            for waiting, choices in zip(batch, choices_of, strict=True):
                if waiting.work.wants_experts:
                    waiting.work.experts.append(choices)
        return hypotheses_of


class BatchedModel(FinishedModel):
    """A finished model as one request sees it: what it recognises goes into batches with that of others."""

    def __init__(self, batcher: Batcher, work: Work):
        model = batcher.model
        super().__init__(model.recognizer, model.features, model.tokenizer, model.search)
        self.autocast_dtype = model.autocast_dtype
        self._batcher = batcher
        self._work = work

    def hypotheses(self, waveforms: list[np.ndarray]) -> list[list[Hypothesis]]:
        self._work.check()
        return self._batcher.recognise(waveforms, self._work)
