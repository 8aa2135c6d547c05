"""Batches of a sampler, read ahead by a few threads.

What it promises, as an equation over what the iterators hand out, bit by bit:

    steps(0, n) == steps(0, k) + steps(k, n)                       for every k
    steps with any number of workers == steps without workers
    the lanes of r, r + W, ... in each process, put together == all lanes in one process

An utterance that cannot be read is skipped and named in its batch, so the others stay where they are; when too
many are broken the run stops with a `DataError`. A shard that is slow to read is named in the log with the time
waited, and one that is not read within the patience is a `DataError`, never a silent hang. The threads end with
the iterator.

Shapes: B batch, S samples, U tokens.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from data.augmentation import WaveformAugmentation, change_speed
from data.errors import DataError
from data.remote.settings import MAX_QUARANTINED
from data.sampling.mixture import MixtureSampler
from data.sampling.sampler import BatchSampler, BatchSpec
from data.shards.joined_split import SplitReader
from data.shards.reader import EncodedExample, UtteranceError
from data.shards.reading_threads import Inline, Threads
from data.shards.sidecars import Arrays, SidecarReader
from data.text.tokenizer import UNKNOWN, Tokenizer

# A waiting consumer says so this often in the log, and this often to whoever asked to know.
WAITING_LOG_S = 10.0
WAITING_POLL_S = 1.0
# One bad recording at the start of a run must not stop it: the share counts from this many broken ones on.
MIN_BROKEN = 10
# Broken utterances that are logged one by one; later ones only when their number doubles.
LOGGED_BROKEN = 10
# Unknown symbols that a message names; a text may have thousands.
MAX_NAMED_SYMBOLS = 20
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
class SidecarSource:
    """Sidecars that are read with each utterance, at the steps that `needed_at` names; without it at every step."""

    reader: SidecarReader
    needed_at: Callable[[int], bool] | None = None

    def is_needed(self, step: int) -> bool:
        return self.needed_at is None or self.needed_at(step)


@dataclass(frozen=True)
class _Prepared:
    """One utterance as it goes into a batch."""

    key: str
    text: str
    waveform: np.ndarray
    tokens: list[int]
    sidecars: dict[str, Arrays]


@dataclass(frozen=True)
class _PendingBatch:
    """A micro-batch whose utterances are being read."""

    spec: BatchSpec
    sidecars: list[str]  # names of those that are read with it
    utterances: list[Future[_Prepared]]


class Loader:
    """Reads, perturbs and tokenizes the micro-batches of some lanes; without a tokenizer there are no tokens.
    An utterance is treated as broken itself where its `sidecars` or a recording for its `augmentation` are, and with
    `only_known` where its text has a symbol that the tokenizer does not know.

    `workers` threads read ahead; 0 reads in the caller. With `connections`, so many further threads fetch what these
    decode: for a store whose answers take long. `max_broken_ratio` is the share of broken utterances above which the
    run stops, and `on_broken` is called with each; `patience_s` is how many seconds one utterance may take. While the
    caller waits for an utterance, `on_wait` is called about once a second.
    """

    def __init__(
        self,
        sampler: BatchSampler | MixtureSampler,
        reader: SplitReader,
        tokenizer: Tokenizer | None,
        lanes: Sequence[int],
        workers: int,
        *,
        augmentation: WaveformAugmentation | None = None,
        sidecars: Mapping[str, SidecarSource] | None = None,
        connections: int = 0,
        only_known: bool = False,
        max_broken_ratio: float = MAX_QUARANTINED,
        on_broken: Callable[[UtteranceError], None] | None = None,
        patience_s: float = 600.0,
        on_wait: Callable[[], None] | None = None,
    ):
        self.sampler = sampler
        self.reader = reader
        self.tokenizer = tokenizer
        self.lanes = tuple(lanes)
        self.workers = workers
        self.augmentation = augmentation
        self.sidecars = dict(sidecars or {})
        self.connections = connections
        self.only_known = only_known
        self.max_broken_ratio = max_broken_ratio
        self.on_broken = on_broken
        self.patience_s = patience_s
        self.on_wait = on_wait
        self.utterances_seen = 0
        self.utterances_broken = 0

    def steps(self, start: int, stop: int) -> Iterator[list[WaveformBatch]]:
        """The batches of steps start .. stop - 1, one list per step with a batch for each lane in order.

        DataError when too many utterances are broken or one is not read within the patience.
        """
        executor = Threads(self.workers) if self.workers else Inline()
        fetcher = None
        if self.workers and self.connections:
            fetcher = Threads(self.connections)
        # Reading ahead in the caller would only delay the first step.
        steps_ahead = STEPS_AHEAD if self.workers else 1
        pending: deque[list[_PendingBatch]] = deque()
        try:
            for step in range(start, stop):
                readers: dict[str, SidecarReader] = {}
                for name, source in self.sidecars.items():
                    if source.is_needed(step):
                        readers[name] = source.reader

                lane_batches: list[_PendingBatch] = []
                for lane in self.lanes:
                    spec = self.sampler.micro_batch(step, lane)
                    rows = zip(
                        spec.utterances.tolist(),
                        spec.speeds.tolist(),
                        spec.samples.tolist(),
                        strict=True,
                    )
                    utterances: list[Future[_Prepared]] = []
                    for utterance, speed, length in rows:
                        fetched = None
                        if fetcher is not None:
                            fetched = fetcher.submit(self.reader.fetch, utterance)
                        future = executor.submit(self._prepare, step, utterance, speed, length, readers, fetched)
                        utterances.append(future)
                    lane_batches.append(_PendingBatch(spec, list(readers), utterances))
                pending.append(lane_batches)
                if len(pending) == steps_ahead:
                    yield [self._collect(batch) for batch in pending.popleft()]
            while pending:
                yield [self._collect(batch) for batch in pending.popleft()]
        finally:
            if fetcher is not None:
                fetcher.close()
            executor.close()

    def _prepare(
        self,
        step: int,
        utterance: int,
        speed: float,
        length: int,
        readers: Mapping[str, SidecarReader],
        fetched: Future[EncodedExample] | None,
    ) -> _Prepared:
        if fetched is None:
            example = self.reader.read(utterance)
        else:
            example = self.reader.decode(utterance, fetched.result())
        tokens: list[int] = []
        if self.tokenizer is not None:
            tokens = self.tokenizer.encode(example.text)
            if self.only_known and UNKNOWN in tokens:
                unknown = "".join(self.tokenizer.unknown_characters(example.text))
                reason = f"its text has symbols that the tokenizer does not know: {unknown[:MAX_NAMED_SYMBOLS]!r}"
                raise self.reader.broken(utterance, reason, example.key)
        sidecars: dict[str, Arrays] = {}
        for name, reader in readers.items():
            sidecars[name] = reader.read(utterance, speed, example.key)
        waveform = change_speed(example.waveform, speed, length)
        if self.augmentation is not None:
            waveform = self.augmentation.apply(waveform, step, example.key)
        return _Prepared(
            key=example.key,
            text=example.text,
            waveform=waveform,
            tokens=tokens,
            sidecars=sidecars,
        )

    def _collect(self, batch: _PendingBatch) -> WaveformBatch:
        """Wait for the utterances of a micro-batch and pad those that could be read."""
        prepared: list[_Prepared] = []
        quarantined: list[str] = []
        for utterance, future in zip(batch.spec.utterances.tolist(), batch.utterances, strict=True):
            self.utterances_seen += 1
            try:
                prepared.append(self._wait(utterance, future))
            except UtteranceError as error:
                # Its batch is smaller by one; the other utterances stay where the sampler put them.
                quarantined.append(error.key)
                self._count_broken(error)

        samples = [len(one.waveform) for one in prepared]
        token_lengths = [len(one.tokens) for one in prepared]
        most_samples = max(samples, default=0)
        most_tokens = max(token_lengths, default=0)
        waveforms_BS = torch.zeros(len(prepared), most_samples)
        tokens_BU = torch.zeros(len(prepared), most_tokens, dtype=torch.int64)
        for row, one in enumerate(prepared):
            waveforms_BS[row, : len(one.waveform)] = torch.from_numpy(one.waveform)
            tokens_BU[row, : len(one.tokens)] = torch.tensor(one.tokens, dtype=torch.int64)

        # By the names of the step, so that a batch without an utterance has them too.
        sidecars: dict[str, list[Arrays]] = {}
        for name in batch.sidecars:
            sidecars[name] = [one.sidecars[name] for one in prepared]

        return WaveformBatch(
            step=batch.spec.step,
            lane=batch.spec.lane,
            keys=[one.key for one in prepared],
            waveforms_BS=waveforms_BS,
            samples_B=torch.tensor(samples, dtype=torch.int64),
            tokens_BU=tokens_BU,
            token_lengths_B=torch.tensor(token_lengths, dtype=torch.int64),
            texts=[one.text for one in prepared],
            quarantined=quarantined,
            sidecars=sidecars,
        )

    def _wait(self, utterance: int, future: Future[_Prepared]) -> _Prepared:
        """The result of a read, with a line in the log from time to time while it is not there."""
        began = time.monotonic()
        logged = began
        while not future.done():
            if time.monotonic() - began > self.patience_s:
                raise DataError(
                    f"Utterance {utterance} of {self.reader.shard(utterance)} did not arrive within "
                    f"{self.patience_s:.0f} s. Look whether the storage answers, then start the run again: "
                    "it goes on from its last checkpoint."
                )
            futures.wait([future], timeout=min(WAITING_POLL_S, WAITING_LOG_S, self.patience_s))
            if future.done():
                break
            if self.on_wait is not None:
                self.on_wait()
            now = time.monotonic()
            if now - logged >= WAITING_LOG_S:
                logged = now
                logger.warning("Waiting for shard %s, %.0f s.", self.reader.shard(utterance), now - began)
        return future.result()

    def _count_broken(self, error: UtteranceError) -> None:
        """Log a broken utterance at a bounded rate. DataError when there are too many of them."""
        self.utterances_broken += 1
        broken = self.utterances_broken
        if self.on_broken is not None:
            self.on_broken(error)
        is_power_of_two = broken & (broken - 1) == 0
        if broken <= LOGGED_BROKEN or is_power_of_two:
            logger.warning("Skipped broken utterance %d of %d: %s", broken, self.utterances_seen, error)
        if broken >= MIN_BROKEN and broken > self.max_broken_ratio * self.utterances_seen:
            raise DataError(
                f"{broken} of the first {self.utterances_seen} utterances are broken, more than the "
                f"{self.max_broken_ratio:.1%} that cluster.storage.max_quarantined allows. The last one: {error}"
            )
