"""Utterances of several sets recognised with a finished model, in this process or spread over several.

Utterances of about equal length are a batch, and batches are dealt to whichever process is free: what is recognised
does not depend on how many there are. A recording that cannot be read is named, and the others of its batch are
recognised.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.redaction import redact
from launcher.devices import recognition_device
from launcher.evaluation.conditions import Condition, conditions
from launcher.evaluation.sets import Entry, EvaluationSet, Place, Waveform, open_set
from launcher.inference.finished_model import FinishedModel
from launcher.inference.precision import Dtype, set_dtype
from launcher.inference.words import hypothesis_words
from launcher.inference.worker_pool import WorkerPool
from launcher.recipe.search import read_search

# Padded audio per batch: enough to keep the cores busy, little enough for any machine.
BATCH_S = 60.0
WORKER_MODULE = "launcher.evaluation.recognition_worker"
# Frames of an estimate of the noise, and the share of them that is taken for noise alone.
SNR_FRAME_S = 0.025
NOISE_SHARE = 0.1
# Above this, and where the quietest frames are digital silence, a number would say nothing.
MAX_SNR_DB = 60.0


@dataclass(frozen=True)
class Settings:
    """How a process recognises as another does: plain values, which are sent to it."""

    model: str
    search: dict[str, Any]
    device: str
    dtype: Dtype
    places: tuple[Place, ...]
    noise: str | None = None


@dataclass(frozen=True)
class Batch:
    """Utterances of one set, by their positions; `condition` is the number of one, None for recordings as they are."""

    number: int
    positions: tuple[int, ...]
    condition: int | None = None


@dataclass(frozen=True)
class Row:
    """What was recognised of an utterance. `words` are those of the text with their confidences; `snr_db` is an
    estimate from the recording as it is."""

    number: int
    position: int
    text: str
    words: tuple[tuple[str, float], ...]
    seconds: float
    snr_db: float


@dataclass
class Outcome:
    """What became of a batch: its rows, and why there are none of some positions. `busy_s` is the time that features,
    encoder and search took."""

    batch: Batch
    rows: list[Row] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)
    busy_s: float = 0.0


class Recogniser:
    """The model and the sets in one process."""

    def __init__(self, settings: Settings, sets: Sequence[EvaluationSet] | None = None):
        """CheckpointError, ConfigError or DataError when the model, the search or a set cannot be opened."""
        search = read_search(settings.search, "The search")
        self.model = FinishedModel.load(Path(settings.model), search, recognition_device(settings.device))
        set_dtype(self.model, settings.dtype)
        self.sets = sets or [open_set(place) for place in settings.places]
        self.sample_rate_hz = self.model.features.config.sample_rate_hz
        self._noise = settings.noise
        self._conditions: list[Condition] | None = None
        self._is_warm = False

    def recognise(self, batch: Batch) -> Outcome:
        outcome = Outcome(batch)
        positions = []
        waveforms: list[Waveform] = []
        snrs_db = []
        for position in batch.positions:
            try:
                waveform, snr_db = self._read(batch, position)
            except DataError as error:
                outcome.broken.append((position, redact(str(error))))
                continue
            positions.append(position)
            waveforms.append(waveform)
            snrs_db.append(snr_db)
        if not waveforms:
            return outcome
        if not self._is_warm:
            # The first call sets up threads and kernels, which is not the model's speed.
            self.model.hypotheses(waveforms)
            self._is_warm = True
        started = time.perf_counter()
        hypotheses = self.model.hypotheses(waveforms)
        outcome.busy_s = time.perf_counter() - started
        tokenizer = self.model.tokenizer
        for position, waveform, snr_db, found in zip(positions, waveforms, snrs_db, hypotheses, strict=True):
            seconds = len(waveform) / self.sample_rate_hz
            words = hypothesis_words(found[0], tokenizer, self.model.frame_s, seconds)
            confidences = tuple((word.text, word.confidence) for word in words)
            text = tokenizer.decode(found[0].tokens)
            outcome.rows.append(Row(batch.number, position, text, confidences, seconds, snr_db))
        return outcome

    def latencies(self, batches: Sequence[Batch]) -> list[tuple[float, float]]:
        """Seconds of each utterance, and those that it takes to recognise it alone. Broken ones are passed over."""
        measured = []
        for batch in batches:
            for position in batch.positions:
                try:
                    waveform, _ = self._read(batch, position)
                except DataError:
                    continue
                # Another length may set up other kernels, which a service would have done long ago.
                self.model.hypotheses([waveform])
                started = time.perf_counter()
                self.model.hypotheses([waveform])
                elapsed_s = time.perf_counter() - started
                measured.append((len(waveform) / self.sample_rate_hz, elapsed_s))
        return measured

    def _read(self, batch: Batch, position: int) -> tuple[Waveform, float]:
        """The recording under the batch's condition, and the ratio of signal to noise that it has by itself."""
        opened = self.sets[batch.number]
        waveform = opened.read(position, self.sample_rate_hz)
        snr_db = estimate_snr_db(waveform, self.sample_rate_hz)
        if batch.condition is None:
            return waveform, snr_db
        if self._conditions is None:
            self._conditions = conditions(self.sample_rate_hz, self._noise)
        effect = self._conditions[batch.condition].effect
        return effect(waveform, opened.entries[position].key), snr_db


def estimate_snr_db(waveform: Waveform, sample_rate_hz: int) -> float:
    """The power of all frames less that of the quietest tenth, over the latter, in dB.

    A rough estimate: it takes the quietest frames for noise alone, so that speech without a pause seems noisier than it
    is.
    """
    frame_samples = round(SNR_FRAME_S * sample_rate_hz)
    num_frames = len(waveform) // frame_samples
    if num_frames < 1 / NOISE_SHARE:
        return MAX_SNR_DB
    frames = waveform[: num_frames * frame_samples].reshape(num_frames, frame_samples)
    powers = np.sort(np.square(frames, dtype=np.float64).mean(axis=1))
    noise = powers[: int(num_frames * NOISE_SHARE)].mean()
    signal = powers.mean() - noise
    if signal <= 0:
        return 0.0
    if noise <= signal * 10 ** (-MAX_SNR_DB / 10):
        return MAX_SNR_DB
    return float(10 * np.log10(signal / noise))


def make_batches(
    number: int, entries: Sequence[Entry], positions: Iterable[int], condition: int | None = None
) -> list[Batch]:
    """Utterances of about equal length together, longest first, BATCH_S of padded audio at a time."""
    # Stable, so that equal lengths come in the same order on every machine.
    order = sorted(positions, key=lambda position: -entries[position].seconds)
    batches = []
    current: list[int] = []
    for position in order:
        # The first of a batch is its longest: the others are padded to it. One whose length is not known is alone.
        longest_s = entries[current[0]].seconds if current else 0.0
        is_full = longest_s * (len(current) + 1) > BATCH_S or entries[position].seconds == 0
        if current and is_full:
            batches.append(Batch(number, tuple(current), condition))
            current = []
        current.append(position)
    if current:
        batches.append(Batch(number, tuple(current), condition))
    return batches


class RecogniserPool:
    """`jobs` processes with a recogniser each, or this process for one; a context."""

    def __init__(self, settings: Settings, sets: Sequence[EvaluationSet], jobs: int):
        self._recogniser = None
        self._workers = None
        if jobs == 1:
            self._recogniser = Recogniser(settings, sets)
            return
        # What is wrong with the model is said before any process starts.
        FinishedModel.load(Path(settings.model), read_search(settings.search, "The search"))
        self._workers = WorkerPool(WORKER_MODULE, asdict(settings), jobs)

    def __enter__(self) -> "RecogniserPool":
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers is not None:
            self._workers.__exit__()

    def recognise(self, batches: Sequence[Batch]) -> Iterator[Outcome]:
        """The outcome of each batch, in their order. A process that is lost loses the utterances of its batch."""
        if self._recogniser is not None:
            for batch in batches:
                yield self._recogniser.recognise(batch)
            return
        assert self._workers is not None
        results = self._workers.run([_task([batch]) for batch in batches])
        for batch, result in zip(batches, results, strict=True):
            if isinstance(result, DataError):
                yield Outcome(batch, broken=[(position, str(result)) for position in batch.positions])
            else:
                yield _read_outcome(batch, result["outcomes"][0])

    def latencies(self, batches: Sequence[Batch]) -> list[tuple[float, float]]:
        """See `Recogniser.latencies`: by one process, while the others have nothing to do; none where it is lost."""
        if self._recogniser is not None:
            return self._recogniser.latencies(batches)
        assert self._workers is not None
        (result,) = self._workers.run([_task(batches, is_timed=True)])
        if isinstance(result, DataError):
            return []
        return [(seconds, elapsed_s) for seconds, elapsed_s in result["latencies"]]


def _task(batches: Sequence[Batch], is_timed: bool = False) -> dict[str, Any]:
    """What a process is told to do; see `launcher/evaluation/recognition_worker.py`."""
    return {"name": "Its batch", "batches": [asdict(batch) for batch in batches], "is_timed": is_timed}


def _read_outcome(batch: Batch, values: dict[str, Any]) -> Outcome:
    """The outcome that another process has sent, in which tuples have become lists."""
    outcome = Outcome(batch, busy_s=values["busy_s"])
    for row in values["rows"]:
        words = tuple((text, confidence) for text, confidence in row["words"])
        outcome.rows.append(Row(**{**row, "words": words}))
    for position, reason in values["broken"]:
        outcome.broken.append((position, reason))
    return outcome
