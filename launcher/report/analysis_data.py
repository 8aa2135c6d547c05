"""Reads what evaluations keep for the report beside their numbers: the hardest utterances, and the experts' choices.

The files may come from anybody. What is not as `launcher.inference.analysis` writes it is left out, and named.

Shapes: C classes of frames, E experts.
"""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.files import is_file_name
from launcher.run_files import ANALYSIS_FORMAT
from launcher.run_folder import MAX_COUNT, RunFolder, is_number, read_json

AUDIO_TYPES = ("audio/mpeg", "audio/flac")
BASE64 = re.compile("[A-Za-z0-9+/]*={0,2}")
PROPERTIES = ("letter", "language", "position", "loudness")
# Bounds of a page: what is beyond them was not written by Chorus.
MAX_CLASSES = 64
MAX_EXPERTS = 1024
MAX_LAYERS = 1000
MAX_UTTERANCES = 50
MAX_TEXT_CHARACTERS = 20_000
MAX_WORDS = 2000
# Of all players of a page together, as base64.
MAX_AUDIO_CHARACTERS = 3 * 10**6


@dataclass(frozen=True)
class TimedWord:
    """A word that a model wrote: when, in seconds, None where that is not known, and how sure the model is."""

    text: str
    start_s: float | None
    end_s: float | None
    confidence: float


@dataclass(frozen=True)
class HardUtterance:
    """One of the utterances with most errors: its recording as a `data:` URL, empty where it has none, and the words
    of each model."""

    corpus: str
    key: str
    reference: str
    seconds: float
    audio_seconds: float
    audio_url: str
    texts: dict[str, str]
    words: dict[str, list[TimedWord]]


@dataclass(frozen=True)
class Choices:
    """How often the frames of each class chose each expert of a layer: [C, E]."""

    classes: tuple[str, ...]
    counts_CE: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ExpertUse:
    """What the experts of a model were chosen for: layer, property, choices."""

    model: str
    num_utterances: int
    seconds: float
    layers: dict[str, dict[str, Choices]]


@dataclass
class Analysis:
    """All that a run's evaluations have kept for the report."""

    utterances: list[HardUtterance]
    experts: list[ExpertUse]


def read_analysis(run: RunFolder, evaluations: Sequence[str], models: Sequence[str], gaps: list[str]) -> Analysis:
    """The first analysis of each model, and the hardest utterances of the first evaluation that has some."""
    analysis = Analysis(utterances=[], experts=[])
    for name in evaluations:
        if not analysis.utterances:
            path = run.stage(name).hardest_file
            analysis.utterances = _read(path, gaps, _parse_utterances) or []
    for model in models:
        if not is_file_name(model):
            continue
        for name in evaluations:
            path = run.stage(name).experts_file(model)
            use = _read(path, gaps, lambda record, model=model: _parse_experts(model, record))
            if use is not None:
                analysis.experts.append(use)
                break
    return analysis


def _read(path: Path, gaps: list[str], parse: Callable[[dict[str, Any]], Any]) -> Any:
    """What `parse` makes of a file, None where there is none, or one of another version or another program."""
    place = "/".join(path.parts[-4:])
    try:
        record = read_json(path)
        if record is None:
            return None
        if not isinstance(record, dict) or type(record.get("format")) is not int:
            raise ValueError("it is no analysis")
        if record["format"] > ANALYSIS_FORMAT:
            raise ValueError(f"it has format {record['format']}, and this version reads {ANALYSIS_FORMAT}")
        return parse(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        gaps.append(f"{place} could not be read: {' '.join(str(problem).split())[:300]}.")
        return None


def _parse_utterances(record: dict[str, Any]) -> list[HardUtterance]:
    utterances = []
    characters_left = MAX_AUDIO_CHARACTERS
    for row in record["utterances"][:MAX_UTTERANCES]:
        texts = {}
        words = {}
        for model, hypothesis in row["models"].items():
            texts[model] = _text(hypothesis["text"])
            words[model] = [_parse_word(word) for word in hypothesis["words"][:MAX_WORDS]]
        audio_url = ""
        audio = row.get("audio")
        # Each character is looked at: the URL stands in an attribute of the page.
        is_audio = row.get("audio_type") in AUDIO_TYPES and isinstance(audio, str) and BASE64.fullmatch(audio)
        if is_audio and audio and len(audio) <= characters_left:
            base64.b64decode(audio, validate=True)
            audio_url = f"data:{row['audio_type']};base64,{audio}"
            characters_left -= len(audio)
        utterance = HardUtterance(
            corpus=_text(row["corpus"]),
            key=_text(row["key"]),
            reference=_text(row["reference"]),
            seconds=_number(row["seconds"]),
            audio_seconds=_number(row["audio_seconds"]),
            audio_url=audio_url,
            texts=texts,
            words=words,
        )
        utterances.append(utterance)
    return utterances


def _parse_word(row: dict[str, Any]) -> TimedWord:
    start_s = None
    end_s = None
    if row["start_s"] is not None and row["end_s"] is not None:
        start_s = _number(row["start_s"])
        end_s = max(_number(row["end_s"]), start_s)
    return TimedWord(_text(row["word"]), start_s, end_s, min(1.0, _number(row["confidence"])))


def _parse_experts(model: str, record: dict[str, Any]) -> ExpertUse:
    layers = {}
    for layer, properties in list(record["layers"].items())[:MAX_LAYERS]:
        layers[layer] = {}
        for name in PROPERTIES:
            if name not in properties:
                continue
            classes = tuple(_text(label) for label in properties[name]["classes"])
            counts = properties[name]["counts"]
            for row in counts:
                for count in row:
                    if type(count) is not int or not 0 <= count <= MAX_COUNT:
                        raise ValueError(f"{layer} has {str(count)[:40]} as a number of choices")
            # ValueError where rows differ in length.
            counts_CE = np.array(counts, dtype=np.float64)
            if counts_CE.ndim != 2 or len(counts_CE) != len(classes) or not 2 <= len(classes) <= MAX_CLASSES:
                raise ValueError(f"{layer} has {len(classes)} classes of {name} and counts of shape {counts_CE.shape}")
            if not 2 <= counts_CE.shape[1] <= MAX_EXPERTS:
                raise ValueError(f"{layer} has {counts_CE.shape[1]} experts")
            layers[layer][name] = Choices(classes, counts_CE)
    return ExpertUse(model, int(_number(record["utterances"])), _number(record["seconds"]), layers)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]} stands where a text belongs")
    return value[:MAX_TEXT_CHARACTERS]


def _number(value: Any) -> float:
    if not is_number(value) or value < 0:
        raise ValueError(f"{str(value)[:40]} stands where a number belongs")
    return float(value)
