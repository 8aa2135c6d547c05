"""What a report shows of an evaluation beside its numbers: the hardest utterances, and what experts are chosen for.

Both are small files in the evaluation's folder, made after its results. They cost seconds, change no result, and can be
made later, too (`chorus report RUN --analyse`).
"""

import base64
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np
import numpy.typing as npt
import soundfile

from data.shards.index import ShardIndex, read_index
from data.shards.reader import Example, ShardReader, UtteranceError
from launcher.devices import recognition_device
from launcher.errors import exit_code
from launcher.inference.expert_choices import ExpertChoices
from launcher.inference.finished_model import FinishedModel
from launcher.inference.hypotheses import count_all_errors, read_hypotheses
from launcher.inference.transcripts import word_row
from launcher.inference.words import hypothesis_words
from launcher.recipe import EvaluateStage
from launcher.run_files import ANALYSIS_FORMAT
from launcher.run_folder import write_json
from launcher.stages.context import StageContext

NUM_HARDEST = 12
# Of an utterance on the page, and of the frames whose experts are counted.
MAX_AUDIO_S = 30.0
MAX_EXPERTS_S = 300.0
# LAME's rates, and those that MPEG audio has; other recordings stay FLAC.
MP3_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
# soundfile's scale from best to smallest: about 30 kbit/s of speech at 16 kHz.
MP3_COMPRESSION = 0.8

logger = logging.getLogger(__name__)

# Label of the corpus, "" without a mixture, and key.
Place = tuple[str, str]


@dataclass
class _Split:
    """The split of one corpus: its index and a reader."""

    index: ShardIndex
    reader: ShardReader


def analyse_evaluation(context: StageContext[EvaluateStage], on_progress: Callable[[], None] = lambda: None) -> None:
    """Write what a report shows of a finished evaluation.

    ConfigError, DataError or CheckpointError where hypotheses, shards or a model cannot be read.
    """
    stage = context.stage
    splits = {}
    for label, folder in context.recipe.present_folders(context.run, stage.split).items():
        # What is missing of a shard is left out below.
        index = read_index(folder, check_shards=False)
        splits[label] = _Split(index, ShardReader(index, context.recipe.cluster.storage))

    errors: dict[Place, int] = {}
    references: dict[Place, str] = {}
    for name in stage.models:
        on_progress()
        rows = read_hypotheses(context.folder.hypotheses_file(name))
        character_errors, _ = count_all_errors(rows, jiwer.process_characters)
        for row, num_errors in zip(rows, character_errors, strict=True):
            place = (row.get("corpus", ""), row["key"])
            errors[place] = errors.get(place, 0) + num_errors
            references[place] = row["reference"]
    # Those that the error rates owe most to; sorted, so that equal ones come in the same order everywhere.
    wrong = [place for place, num_errors in errors.items() if num_errors]
    hardest = sorted(wrong, key=lambda place: (-errors[place], place))[:NUM_HARDEST]

    examples = _read_places(splits, hardest)
    utterances = []
    for place in hardest:
        if place not in examples:
            continue
        label, key = place
        rate_hz = splits[label].index.sample_rate_hz
        utterance = {"corpus": label, "key": key, "reference": references[place], "models": {}}
        utterances.append(utterance | _sound(examples[place].waveform, rate_hz))

    device = recognition_device(stage.device)
    for name in stage.models:
        model = FinishedModel.load(context.run.stage(name).model, stage.search, device)
        model.report_to(on_progress)
        for utterance in utterances:
            waveform = examples[utterance["corpus"], utterance["key"]].waveform
            ((best, *_),) = model.hypotheses([waveform])
            words = hypothesis_words(best, model.tokenizer, model.frame_s, utterance["seconds"])
            utterance["models"][name] = {
                "text": model.tokenizer.decode(best.tokens),
                "words": [word_row(word) for word in words],
            }
        if model.recognizer.encoder.config.experts is None:
            continue
        choices = ExpertChoices(model)
        for example in _sample(splits, references):
            on_progress()
            choices.add(example)
        record = {
            "format": ANALYSIS_FORMAT,
            "split": stage.split,
            "utterances": choices.num_utterances,
            "seconds": round(choices.seconds, 3),
            "layers": choices.counts(),
        }
        write_json(context.folder.experts_file(name), record)
    write_json(context.folder.hardest_file, {"format": ANALYSIS_FORMAT, "split": stage.split, "utterances": utterances})


def analyse_if_possible(context: StageContext[EvaluateStage], on_progress: Callable[[], None] = lambda: None) -> None:
    """As `analyse_evaluation`, of an evaluation whose results are written: what keeps it from being made is logged."""
    try:
        analyse_evaluation(context, on_progress)
    # Hours of recognition do not fail of what a page shows beside their results.
    except Exception as error:
        is_unexpected = exit_code(error) == 1
        logger.warning("The evaluation is not analysed for the report: %s", error, exc_info=is_unexpected)


def _read_places(splits: Mapping[str, _Split], places: list[Place]) -> dict[Place, Example]:
    """The utterances of these places, but for those that cannot be read."""
    examples = {}
    for label, split in splits.items():
        wanted = {key for corpus, key in places if corpus == label}
        # One pass over the keys, which are stored front to back and may be millions.
        for position, key in enumerate(split.index.keys()):
            if key not in wanted:
                continue
            try:
                examples[label, key] = split.reader.read(position)
            except UtteranceError:
                # The evaluation has read it: its shard is gone since, and the report has one utterance less.
                continue
    return examples


def _sample(splits: Mapping[str, _Split], evaluated: Mapping[Place, str]) -> Iterator[Example]:
    """Utterances that were evaluated, MAX_EXPERTS_S of them in all, spread over every split."""
    for label, split in splits.items():
        index = split.index
        seconds_U = index.samples / index.sample_rate_hz
        limit_s = MAX_EXPERTS_S / len(splits)
        stride = max(1, round(float(seconds_U.sum()) / limit_s))
        total_s = 0.0
        for position, key in enumerate(index.keys()):
            if position % stride or (label, key) not in evaluated:
                continue
            total_s += float(seconds_U[position])
            # Of a split with a few long recordings, one at least.
            if total_s > limit_s and total_s > seconds_U[position]:
                break
            try:
                yield split.reader.read(position)
            except UtteranceError:
                continue


def _sound(waveform: npt.NDArray[np.float32], rate_hz: int) -> dict[str, Any]:
    """The first MAX_AUDIO_S of an utterance as a browser plays them, and how long all of it is."""
    cut = waveform[: round(MAX_AUDIO_S * rate_hz)]
    output = io.BytesIO()
    kind = "audio/flac"
    if rate_hz in MP3_RATES_HZ and "MP3" in soundfile.available_formats():
        kind = "audio/mpeg"
        soundfile.write(output, cut, rate_hz, format="MP3", compression_level=MP3_COMPRESSION)
    else:
        soundfile.write(output, cut, rate_hz, format="FLAC")
    return {
        "seconds": round(len(waveform) / rate_hz, 3),
        "audio_seconds": round(len(cut) / rate_hz, 3),
        "audio_type": kind,
        "audio": base64.b64encode(output.getvalue()).decode("ascii"),
    }
