"""Aelita, the corpus that comes with Chorus: 1.5 hours of one man reading Russian.

620 sentences with fixed splits. A recogniser is evaluated on whole sentences (mean 8.9 s), so `dev` and `test`
are never cut. For `train`, most sentences are also aligned phrase by phrase, and a small model learns sooner from
short pieces: the training split is the union of the chosen cuts. A sentence without alignment enters whole.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from data.audio import Clip, Utterance, audio_seconds
from data.corpora.corpus import BaseCorpusConfig, Corpus, Selection
from data.errors import DataError
from data.rejected_rows import RejectedRows
from data.seeds import derive_seed

ROOT = Path(__file__).parents[1] / "embedded" / "aelita"
# Phrases are cut tightly around the speech; this much of the pause is kept on each side.
MARGIN_S = 0.1

Cut = Literal["sentences", "phrases", "spans"]
Phrase = dict[str, Any]


class AelitaConfig(BaseCorpusConfig, frozen=True, extra="forbid"):
    """Which pieces of the training sentences are used."""

    name: Literal["aelita"] = "aelita"
    shard_seconds: float = Field(default=120.0, gt=0, le=1e6, description="audio per shard in seconds")
    cuts: tuple[Cut, ...] = Field(
        default=("phrases", "spans"),
        min_length=1,
        description="training pieces: whole sentences, single phrases, seeded runs of consecutive phrases",
    )
    span_s: float = Field(default=8.0, ge=2, le=3600, description="longest run of phrases in seconds")


def select(config: AelitaConfig, seed: int) -> Selection:
    """The utterances of train, dev and test; `seed` decides where runs of phrases begin and end."""
    phrases: dict[str, list[Phrase]] = {}
    for phrase in _read("phrases.jsonl"):
        phrases.setdefault(phrase["sentence"], []).append(phrase)

    utterances: list[Utterance] = []
    for sentence in _read("transcripts.jsonl"):
        aligned = phrases.get(sentence["id"], [])
        # 39 of the 499 training sentences have no alignment.
        is_cut = sentence["split"] == "train" and len(aligned) > 0
        if not is_cut or "sentences" in config.cuts:
            clip = Clip(ROOT / sentence["audio"])
            utterances.append(_utterance(sentence["id"], clip, sentence["text"], sentence["split"]))
        if is_cut:
            utterances.extend(_pieces(sentence, aligned, config, seed))
    return Selection(utterances, RejectedRows())


CORPUS = Corpus(AelitaConfig, select)


def _read(name: str) -> list[dict[str, Any]]:
    try:
        with (ROOT / name).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError as error:
        raise DataError(f"The embedded corpus is not at {ROOT} ({name} is missing); install Chorus again.") from error


def _utterance(key: str, clip: Clip, text: str, split: str) -> Utterance:
    return Utterance(key=key, clips=(clip,), text=text, split=split, speaker="nsh", language="ru")


def _pieces(sentence: dict[str, Any], phrases: list[Phrase], config: AelitaConfig, seed: int) -> Iterator[Utterance]:
    """The phrases and spans of one sentence that the configuration asks for, each once."""
    # A set: a span of one phrase is that phrase.
    runs: set[tuple[int, int]] = set()
    if "phrases" in config.cuts:
        for number in range(len(phrases)):
            runs.add((number, number))
    if "spans" in config.cuts:
        # A generator per sentence: the spans of one do not depend on which others there are.
        span_seed = derive_seed(seed, "spans", sentence["id"])
        runs.update(_spans(phrases, config.span_s, span_seed))
    if "sentences" in config.cuts:
        # All phrases together are the whole sentence, which is there already.
        runs.discard((0, len(phrases) - 1))

    path = ROOT / sentence["audio"]
    bounds_s = [0.0]
    for left, right in itertools.pairwise(phrases):
        # A margin ends in the middle of a pause at the latest, so that neighbours never share audio.
        bounds_s.append((left["end_s"] + right["start_s"]) / 2)
    bounds_s.append(audio_seconds(path))

    for first, last in sorted(runs):
        speech_start_s = phrases[first]["start_s"]
        speech_end_s = phrases[last]["end_s"]
        start_s = max(bounds_s[first], speech_start_s - MARGIN_S)
        end_s = min(bounds_s[last + 1], speech_end_s + MARGIN_S)
        seconds = round(end_s - start_s, 4)
        text = " ".join(phrase["text"] for phrase in phrases[first : last + 1])
        key = f"{sentence['id']}_{first:02d}-{last:02d}"
        yield _utterance(key, Clip(path, start_s, seconds), text, sentence["split"])


def _spans(phrases: list[Phrase], span_s: float, seed: int) -> Iterator[tuple[int, int]]:
    """Runs (first, last) that cover the sentence once, each of up to a drawn share of `span_s`.

    A phrase longer than that stands alone.
    """
    generator = np.random.default_rng(seed)
    first = 0
    while first < len(phrases):
        share = generator.uniform(0.5, 1.0)
        # Both margins are part of the span.
        max_s = span_s * share - 2 * MARGIN_S
        start_s = phrases[first]["start_s"]
        last = first
        for following in range(first + 1, len(phrases)):
            if phrases[following]["end_s"] - start_s > max_s:
                break
            last = following
        yield first, last
        first = last + 1
