"""What the texts of a split say about it: none, more than CTC can write, characters that hardly anybody uses."""

import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from data.shard_tools.findings import Finding, Item, collect
from data.shard_tools.survey import Survey

# "A handful of rows".
MAX_RARE_ROWS = 3
# Keys that are listed of one character, and those that its sentence names.
MAX_KEYS = 100
MAX_NAMED = 3

FewestFrames = Callable[[Sequence[str]], npt.NDArray[np.int32]]
"""From texts to the fewest frames in which CTC can write each."""
EncoderFrames = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
"""From samples at the rate of the shards to frames of the encoder."""


def character_frames(texts: Sequence[str]) -> npt.NDArray[np.int32]:
    """The fewest frames in which CTC can write each text with a token per character."""
    frames = np.zeros(len(texts), dtype=np.int32)
    for position, text in enumerate(texts):
        # Between two equal tokens CTC needs a blank: a frame more for every repeat.
        repeats = 0
        for character, following in pairwise(text):
            if character == following:
                repeats += 1
        frames[position] = len(text) + repeats
    return frames


def check_texts(survey: Survey, fewest_frames: FewestFrames, encoder_frames: EncoderFrames) -> list[Finding]:
    """The warnings about the transcripts of a split."""
    empty: list[Item] = []
    for row in survey.rows:
        if not row.text.strip():
            empty.append(Item((row.key,), f"{row.key} has no text"))
    findings = collect("empty-text", survey.split, empty)
    findings += collect("infeasible-text", survey.split, _infeasible(survey, fewest_frames, encoder_frames))

    rare: list[Item] = []
    of_one_speaker: list[Item] = []
    speakers = {row.speaker for row in survey.rows if row.speaker}
    for character, utterances in sorted(uses_of_characters(survey).items()):
        case = _case_of_character(survey, character, utterances)
        # Of a split of a few utterances all characters are rare.
        if len(utterances) <= MAX_RARE_ROWS < len(survey.rows):
            rare.append(case)
            continue
        # With two speakers, half of what is rare is of one of them by chance.
        users = {survey.rows[utterance].speaker for utterance in utterances}
        if len(speakers) > 2 and len(users) == 1 and "" not in users:
            (speaker,) = users
            of_one_speaker.append(Item(case.keys, f"{case.detail}, all of speaker {speaker}"))
    findings += collect("rare-character", survey.split, rare)
    findings += collect("one-speaker-character", survey.split, of_one_speaker)
    return findings


def _case_of_character(survey: Survey, character: str, utterances: Sequence[int]) -> Item:
    keys = tuple(survey.rows[utterance].key for utterance in utterances[:MAX_KEYS])
    names = ", ".join(keys[:MAX_NAMED])
    others = len(utterances) - MAX_NAMED
    if others > 0:
        names += f" and {others} more"
    place = f"in {len(utterances)} of {len(survey.rows)} utterances"
    return Item(keys, f"{describe_character(character)} {place} ({names})")


def check_characters_of_splits(surveys: Sequence[Survey], train: str) -> list[Finding]:
    """Characters of the other splits that the split `train` does not have; nothing without that split."""
    known: set[str] = set()
    for survey in surveys:
        if survey.split == train:
            for row in survey.rows:
                known.update(row.text)
    findings: list[Finding] = []
    for survey in surveys:
        if not known or survey.split == train:
            continue
        unseen: list[Item] = []
        for character, utterances in sorted(uses_of_characters(survey).items()):
            if character not in known:
                unseen.append(_case_of_character(survey, character, utterances))
        findings += collect("unseen-character", survey.split, unseen)
    return findings


def uses_of_characters(survey: Survey) -> dict[str, list[int]]:
    """The utterances of each character, by their positions."""
    uses: dict[str, list[int]] = {}
    for utterance, row in enumerate(survey.rows):
        for character in set(row.text):
            uses.setdefault(character, []).append(utterance)
    return uses


def describe_character(character: str) -> str:
    """A character, its number and its name: many look alike, and some like nothing."""
    name = unicodedata.name(character, "without a name")
    return f"{character!r} (U+{ord(character):04X}, {name.lower()})"


def _infeasible(survey: Survey, fewest_frames: FewestFrames, encoder_frames: EncoderFrames) -> list[Item]:
    if survey.index is None or not survey.rows:
        return []
    needed = fewest_frames([row.text for row in survey.rows])
    frames = encoder_frames(survey.index.samples)
    items: list[Item] = []
    for utterance in np.flatnonzero(needed > frames).tolist():
        key = survey.rows[utterance].key
        detail = f"{key}: {needed[utterance]} frames are needed for its text, its audio has {frames[utterance]}"
        items.append(Item((key,), detail))
    return items
