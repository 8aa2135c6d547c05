"""Whether shards are what was written, and what in them a user should know before training on them."""

from collections.abc import Mapping
from pathlib import Path

from data.shard_tools.findings import Finding
from data.shard_tools.leakage import check_duplicates, check_leakage
from data.shard_tools.speech_checks import check_speech
from data.shard_tools.survey import OnProgress, Survey, survey
from data.shard_tools.text_checks import (
    EncoderFrames,
    FewestFrames,
    character_frames,
    check_characters_of_splits,
    check_texts,
)

# The split whose characters a model learns.
TRAIN = "train"


def verify(
    splits: Mapping[str, Path],
    *,
    encoder_frames: EncoderFrames,
    fewest_frames: FewestFrames = character_frames,
    held_out_speakers: bool = False,
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> list[Finding]:
    """Read these splits whole; returns what is broken and what is odd, empty where there is nothing to say.

    `encoder_frames` and `fewest_frames` decide which texts CTC cannot write: without a tokenizer a character is a
    token.
    """
    surveys: list[Survey] = []
    findings: list[Finding] = []
    for folder in splits.values():
        one = survey(folder, workers, on_progress)
        surveys.append(one)
        findings += one.findings
        findings += check_speech(one)
        findings += check_texts(one, fewest_frames, encoder_frames)
        findings += check_duplicates(one)
    findings += check_characters_of_splits(surveys, TRAIN)
    findings += check_leakage(surveys, held_out_speakers)
    return findings
