"""Batches of a sampler, read ahead by a few threads.

What it promises, as an equation over what the iterators hand out, bit by bit:

    steps(0, n) == steps(0, k) + steps(k, n)                       for every k
    steps with any number of workers == steps without workers
    the lanes of r, r + W, ... in each process, put together == all lanes in one process

An utterance that cannot be read is left out of its batch and named in it, so the others stay where they
are; when too many are broken the run stops with a `DataError`. A reader that is slow is named in the log
with the time waited, and one that does not answer within the patience is a `DataError`, never a silent
hang. The threads end with the iterator.

Shapes: B batch, S samples, U tokens.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.augment import change_speed
from data.errors import DataError
from data.reader import ShardReader, UtteranceError
from data.sampler import BatchSampler, BatchSpec
from data.sidecars import Arrays, SidecarReader
from data.tokenizer import Tokenizer

# A waiting consumer says so this often.
WAITING_LOG_S = 10.0
# One bad recording at the start of a run must not stop it: the ratio counts from this many broken ones on.
MIN_BROKEN = 10
# Broken utterances that are logged one by one; later ones only when their number doubles.
LOGGED_BROKEN = 10
# Steps prepared ahead of the consumer.
STEPS_AHEAD = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WaveformBatch:
    """The micro-batch of one lane, ready for the model; B may be 0."""

    step: int
    lane: int
    keys: list[str]
    waveforms_BS: Tensor  # float32, zero beyond `samples_B`
    samples_B: Tensor  # int64
    tokens_BU: Tensor  # int64, zero beyond `token_lengths_B`
    token_lengths_B: Tensor  # int64
    texts: list[str]
    quarantined: list[str]  # keys of utterances of this micro-batch that could not be read
    sidecars: dict[str, list[Arrays]] = field(default_factory=dict)  # by name, one per utterance


@dataclass(frozen=True)
class _Prepared:
    key: str
    text: str
    waveform: np.ndarray
    tokens: list[int]
    sidecars: dict[str, Arrays]


@dataclass(frozen=True)
class Sidecars:
    """What is read with each utterance, at the steps where `counts`."""

    reader: SidecarReader
    counts: Callable[[int], bool] = lambda step: True


class Loader:
    """Reads, perturbs and tokenizes the micro-batches of some lanes; without a tokenizer there are no tokens.
    An utterance whose `sidecars` are broken is treated as one that is broken itself.

    `workers` threads read ahead; 0 reads in the caller. `max_broken_ratio` is the share of broken
    utterances above which the run stops, `patience_s` how many seconds one utterance may take.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        reader: ShardReader,
        tokenizer: Tokenizer | None,
        lanes: Sequence[int],
        workers: int,
        *,
        sidecars: Mapping[str, Sidecars] | None = None,
        max_broken_ratio: float = 0.01,
        patience_s: float = 600.0,
    ):
        self.sampler = sampler
        self.reader = reader
        self.tokenizer = tokenizer
        self.lanes = tuple(lanes)
        self.workers = workers
        self.sidecars = dict(sidecars or {})
        self.max_broken_ratio = max_broken_ratio
        self.patience_s = patience_s
        self.utterances_seen = 0
        self.utterances_broken = 0

    def steps(self, start: int, stop: int) -> Iterator[list[WaveformBatch]]:
        """The batches of steps start .. stop - 1, one list per step with a batch for each lane in order.

        DataError when too many utterances are broken or the reader does not answer.
        """
        executor = _Threads(self.workers) if self.workers else _Inline()
        pending: deque[tuple[list[BatchSpec], list[list[Future[_Prepared]]]]] = deque()
        ahead = STEPS_AHEAD if self.workers else 1
        coming = iter(range(start, stop))
        try:
            while True:
                while len(pending) < ahead and (step := next(coming, None)) is not None:
                    pending.append(self._submit(step, executor))
                if not pending:
                    return
                micro_batches, futures = pending.popleft()
                yield [self._collect(*lane) for lane in zip(micro_batches, futures, strict=True)]
        finally:
            executor.close()

    def _submit(self, step: int, executor: _Threads | _Inline) -> tuple[list[BatchSpec], list[list[Future[_Prepared]]]]:
        micro_batches = [self.sampler.micro_batch(step, lane) for lane in self.lanes]
        wanted = {name: one.reader for name, one in self.sidecars.items() if one.counts(step)}
        futures = [
            [
                executor.submit(self._prepare, int(utterance), float(speed), int(length), wanted)
                for utterance, speed, length in zip(batch.utterances, batch.speeds, batch.samples, strict=True)
            ]
            for batch in micro_batches
        ]
        return micro_batches, futures

    def _prepare(self, utterance: int, speed: float, length: int, wanted: Mapping[str, SidecarReader]) -> _Prepared:
        example = self.reader.read(utterance)
        waveform = change_speed(example.waveform, speed, length)
        tokens = self.tokenizer.encode(example.text) if self.tokenizer is not None else []
        sidecars = {name: reader.read(utterance, speed, example.key) for name, reader in wanted.items()}
        return _Prepared(example.key, example.text, waveform, tokens, sidecars)

    def _collect(self, micro_batch: BatchSpec, futures: list[Future[_Prepared]]) -> WaveformBatch:
        prepared: list[_Prepared] = []
        quarantined: list[str] = []
        for utterance, future in zip(micro_batch.utterances.tolist(), futures, strict=True):
            self.utterances_seen += 1
            try:
                prepared.append(self._wait(utterance, future))
            except UtteranceError as error:
                quarantined.append(error.key)
                self._count_broken(error)
        names = [name for name, one in self.sidecars.items() if one.counts(micro_batch.step)]
        return _collate(micro_batch, prepared, quarantined, names)

    def _wait(self, utterance: int, future: Future[_Prepared]) -> _Prepared:
        began = time.monotonic()
        while not future.done():
            waited_s = time.monotonic() - began
            if waited_s > self.patience_s:
                raise DataError(
                    f"Utterance {utterance} of {self.reader.shard(utterance)} did not arrive within "
                    f"{self.patience_s:.0f} s. Look whether the storage answers, then start the run again: "
                    "it goes on from its last checkpoint."
                )
            try:
                return future.result(timeout=min(WAITING_LOG_S, self.patience_s))
            except TimeoutError:
                waited_s = time.monotonic() - began
                logger.warning("Waiting for shard %s, %.0f s.", self.reader.shard(utterance), waited_s)
        return future.result()

    def _count_broken(self, error: UtteranceError) -> None:
        self.utterances_broken += 1
        broken = self.utterances_broken
        if broken <= LOGGED_BROKEN or broken & (broken - 1) == 0:
            logger.warning("Left out, number %d of %d: %s", broken, self.utterances_seen, error)
        if broken >= MIN_BROKEN and broken > self.max_broken_ratio * self.utterances_seen:
            raise DataError(
                f"{broken} of the first {self.utterances_seen} utterances could not be read, more than the "
                f"{self.max_broken_ratio:.1%} that a run may leave out. The last one: {error}"
            )


def _collate(
    micro_batch: BatchSpec, prepared: list[_Prepared], quarantined: list[str], sidecars: list[str]
) -> WaveformBatch:
    samples = [len(one.waveform) for one in prepared]
    token_lengths = [len(one.tokens) for one in prepared]
    waveforms_BS = torch.zeros(len(prepared), max(samples, default=0))
    tokens_BU = torch.zeros(len(prepared), max(token_lengths, default=0), dtype=torch.int64)
    for row, one in enumerate(prepared):
        waveforms_BS[row, : len(one.waveform)] = torch.from_numpy(one.waveform)
        tokens_BU[row, : len(one.tokens)] = torch.tensor(one.tokens, dtype=torch.int64)
    return WaveformBatch(
        step=micro_batch.step,
        lane=micro_batch.lane,
        keys=[one.key for one in prepared],
        waveforms_BS=waveforms_BS,
        samples_B=torch.tensor(samples, dtype=torch.int64),
        tokens_BU=tokens_BU,
        token_lengths_B=torch.tensor(token_lengths, dtype=torch.int64),
        texts=[one.text for one in prepared],
        quarantined=quarantined,
        sidecars={name: [one.sidecars[name] for one in prepared] for name in sidecars},
    )


class _Inline:
    """Runs each task when it is submitted."""

    def submit(self, task: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        _run(future, task, arguments)
        return future

    def close(self) -> None:
        pass


class _Threads:
    """Runs tasks in threads that do not keep the process alive.

    The standard library's executor joins its threads when the interpreter ends: a reader that never answers
    would hang the process that has just reported it.
    """

    def __init__(self, workers: int):
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._count = workers
        for number in range(workers):
            threading.Thread(target=self._work, name=f"loader-{number}", daemon=True).start()

    def submit(self, task: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((future, task, arguments))
        return future

    def close(self) -> None:
        """Lets each thread end after the task it is at; tasks that wait are dropped."""
        self._closed.set()
        for _ in range(self._count):
            self._tasks.put((Future(), lambda: None, ()))

    def _work(self) -> None:
        while True:
            future, task, arguments = self._tasks.get()
            if self._closed.is_set():
                return
            _run(future, task, arguments)


def _run(future: Future[Any], task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        future.set_result(task(*arguments))
    except BaseException as error:
        future.set_exception(error)
