"""Recognises a split with finished models, and counts errors with jiwer.

Character error rates count spaces, as jiwer does; rates are sums over the corpus, not means over utterances.
"""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch

from data.errors import DataError
from data.loader import MIN_BROKEN
from data.remote.settings import StorageConfig
from data.sampling.sampler import cut_batches
from data.shards.read_ahead import read_ahead
from data.shards.reader import Example, ShardReader, UtteranceError
from data.shards.writer import read_index
from launcher.devices import recognition_device
from launcher.inference.finished_model import FinishedModel
from launcher.inference.language_model import with_language_model
from launcher.inference.mixture_evaluation import join_evaluations
from launcher.planning.operations import operations_per_second
from launcher.processes.heartbeat import Heartbeat
from launcher.quarantine import QuarantineLog
from launcher.recipe import EvaluateStage
from launcher.run_folder import write_lines
from launcher.stages.context import StageContext
from model.costs.flops import count_parameters

# Padded audio per batch: enough to keep the cores busy, little enough for any machine.
BATCH_S = 60.0
NUM_EXAMPLES = 20

logger = logging.getLogger(__name__)


def evaluate(context: StageContext[EvaluateStage], heartbeat: Heartbeat) -> dict[str, Any]:
    """The evaluation of every model of a stage on its split, on the stage's device; see `evaluate_model`.

    The hypotheses of all utterances go into files of the stage, and some of them, as examples, into what is returned.
    """
    stage = context.stage
    device = recognition_device(stage.device)
    results = {}
    search = with_language_model(stage.search, context.recipe, context.run, heartbeat.tick)
    for position, name in enumerate(stage.models):
        heartbeat.beat(position, "evaluate")
        folder = context.run.stage(name).model
        model = FinishedModel.load(folder, search, device)
        # A long batch, or a wide beam, may take minutes.
        model.report_to(heartbeat.tick)
        evaluations = {}
        for label, split_folder in context.recipe.present_folders(context.run, stage.split).items():
            # A corpus without a mixture has no label; keys of two corpora may be the same.
            split_name = stage.split
            if label:
                split_name = f"{stage.split} of {label}"
            evaluations[label] = evaluate_model(
                model,
                split_folder,
                stage.split,
                on_batch=lambda num_done: heartbeat.beat(num_done, "evaluate"),
                on_read=heartbeat.tick,
                storage=context.recipe.cluster.storage,
                on_broken=QuarantineLog(context.folder.quarantine_file(0), split_name).add,
            )
        if "" in evaluations:
            result = evaluations[""]
        else:
            result = join_evaluations(stage.split, evaluations)
        rows = result.pop("hypotheses")
        heartbeat.tick()
        write_lines(context.folder.hypotheses_file(name), rows)
        # Spread over the whole split, which is sorted by key.
        stride = max(1, len(rows) // NUM_EXAMPLES)
        result["examples"] = rows[::stride][:NUM_EXAMPLES]
        results[name] = result
    return {"models": results}


def evaluate_model(
    model: FinishedModel,
    folder: Path | str,
    split: str,
    on_batch: Callable[[int], None],
    on_read: Callable[[], None] = lambda: None,
    *,
    storage: StorageConfig | None = None,
    on_broken: Callable[[UtteranceError], None] = lambda error: None,
) -> dict[str, Any]:
    """Parameter counts, error rates as fractions, real-time factor and hypotheses of one model on a split's folder.

    `on_batch` is given the number of utterances done, `on_read` is called for each recording that is read. DataError
    when the split has no transcripts. An utterance that cannot be read is named in the log, counted as `quarantined`,
    given to `on_broken` and not scored; more of them than `storage` allows are a DataError.
    """
    sample_rate_hz = model.features.config.sample_rate_hz
    reader = _SplitReader(folder, sample_rate_hz, storage or StorageConfig(), on_broken)
    keys: list[str] = []
    references: list[str] = []
    hypotheses: list[str] = []
    busy_s = 0.0
    audio_s = 0.0
    for batch in reader.batches(on_read):
        waveforms = []
        num_samples = 0
        for example in batch:
            keys.append(example.key)
            references.append(example.text)
            waveforms.append(example.waveform)
            num_samples += len(example.waveform)
        if not hypotheses:
            # The first call sets up threads and kernels, which is not the model's speed.
            model.recognise(waveforms)
            on_batch(0)
        started = time.perf_counter()
        hypotheses += model.recognise(waveforms)
        busy_s += time.perf_counter() - started
        audio_s += num_samples / sample_rate_hz
        on_batch(len(keys))

    # Sorted: batches go by length, and hypotheses of two evaluations are to be compared line by line.
    rows = []
    for key, reference, hypothesis in sorted(zip(keys, references, hypotheses, strict=True)):
        rows.append({"key": key, "reference": reference, "hypothesis": hypothesis})
    operations = operations_per_second(model.recognizer, model.features.config)
    return {
        **count_parameters(model.recognizer).as_dict(),
        "encoder_operations_per_s": operations.encoder,
        "operations_per_s": operations.forward,
        split: {
            "cer": jiwer.cer(references, hypotheses),
            "wer": jiwer.wer(references, hypotheses),
            "utterances": len(keys),
            "quarantined": reader.num_broken,
            "seconds": round(audio_s, 3),
            "rtf": busy_s / audio_s,
            "threads": torch.get_num_threads(),
            "device": model.device.type,
            "search": model.search.config.model_dump(mode="json"),
        },
        "hypotheses": rows,
    }


class _SplitReader:
    """Reads the utterances of a split that have a transcript; counts and names those that are broken."""

    def __init__(
        self,
        folder: Path | str,
        sample_rate_hz: int,
        storage: StorageConfig,
        on_broken: Callable[[UtteranceError], None],
    ):
        """DataError when the split has no transcripts."""
        self._folder = folder
        self._sample_rate_hz = sample_rate_hz
        self._max_broken_ratio = storage.max_quarantined
        self._on_broken = on_broken
        index = read_index(folder, max_damaged=storage.max_quarantined)
        self._reader = ShardReader(index, storage)
        self._num_transcribed = int(np.count_nonzero(self._reader.index.text_length))
        self.num_broken = 0
        if self._num_transcribed == 0:
            raise DataError(
                f"None of the {len(self._reader.index)} utterances at {folder} has a transcript: no error rate can be "
                "measured. Name a split with transcripts."
            )

    def batches(self, on_read: Callable[[], None]) -> Iterator[list[Example]]:
        """The utterances that can be read, batch by batch; DataError when none can be, or too many cannot."""
        last_error = None
        any_read = False
        batches = list(_batches(self._reader, self._sample_rate_hz))
        utterances = read_ahead(self._reader, chain.from_iterable(batches))
        for batch in batches:
            examples = []
            for example in islice(utterances, len(batch)):
                on_read()
                if isinstance(example, UtteranceError):
                    last_error = example
                    self._count_broken(example)
                else:
                    examples.append(example)
            if examples:
                any_read = True
                yield examples
        if not any_read:
            raise DataError(f"None of the utterances at {self._folder} could be read. The last one: {last_error}")

    def _count_broken(self, error: UtteranceError) -> None:
        num_transcribed = self._num_transcribed
        self.num_broken += 1
        self._on_broken(error)
        logger.warning("Skipped broken utterance %d of %d: %s", self.num_broken, num_transcribed, error)
        # Error rates of the others would not be those of the split. A few may break anywhere, and of a small split one
        # is a large share.
        if self.num_broken >= MIN_BROKEN and self.num_broken > self._max_broken_ratio * num_transcribed:
            raise DataError(
                f"{self.num_broken} of the {num_transcribed} utterances with a transcript are broken, more than the "
                f"{self._max_broken_ratio:.1%} that cluster.storage.max_quarantined allows. The last one: {error}"
            )


def _batches(reader: ShardReader, sample_rate_hz: int) -> Iterator[list[int]]:
    """Utterances of about equal length together, longest first, BATCH_S of padded audio at a time; those without a
    transcript are excluded."""
    index = reader.index
    transcribed = np.flatnonzero(index.text_length)
    samples = index.samples[transcribed]
    # Stable, so that equal lengths come in the same order on every machine.
    longest_first = np.argsort(-samples, kind="stable")
    order = transcribed[longest_first]
    # The first utterance of a batch is its longest: the others are padded to it.
    batch_samples = int(BATCH_S * sample_rate_hz)
    # Shards of other versions may hold an utterance without samples.
    capacities = np.maximum(1, batch_samples // np.maximum(1, samples[longest_first]))
    for start, stop in pairwise(cut_batches(capacities)):
        yield order[start:stop].tolist()
