"""GigaSpeech: English podcasts, audiobooks and YouTube, segments of long Opus files listed in `GigaSpeech.json`.

Punctuation is spelt as tags (`<COMMA>`), which are removed or, with `punctuation: keep`, become the marks they stand
for. Segments of silence, music, noise and other languages consist of a tag alone; they are rejected rows.
"""

import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector
from data.corpora.segment_list import read_segments

MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NO_SPEECH = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")


class GigaSpeechConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where GigaSpeech lies, and how much of it is trained on."""

    own_text_rules: ClassVar[tuple[str, ...]] = ("punctuation_tags", "no_speech_tags")

    name: Literal["gigaspeech"] = "gigaspeech"
    root: Path = Field(description="the folder with GigaSpeech.json and audio")
    train: Literal["XL", "L", "M", "S", "XS"] = Field(
        default="XL", description="subset of train: XL 10,000 h, L 2,500 h, M 1,000 h, S 250 h, XS 10 h"
    )


def select(config: GigaSpeechConfig, seed: int) -> Selection:
    """The segments of the chosen subset as train, and of DEV and TEST. Nothing is random here: `seed` is not used.

    Raises DataError when the list is not there or cannot be read to its end.
    """
    path = config.root / "GigaSpeech.json"
    splits = {f"{{{config.train}}}": "train", "{DEV}": "dev", "{TEST}": "test"}
    rows = RowCollector(config, "en")
    for segment in read_segments(path, "text_tn", rows):
        split = ""
        for subset, name in splits.items():
            if subset in segment.subsets:
                split = name
        if not split:
            continue
        tags = [tag for tag in NO_SPEECH if tag in segment.text]
        if tags:
            rows.reject(f"it is marked as no speech, {', '.join(tags)}", place=path, key=segment.name)
            continue
        text = segment.text
        # Otherwise they are removed with all other tags.
        if config.punctuation == "keep":
            for tag, mark in MARKS.items():
                text = re.sub(f" *{tag}", mark, text)
        rows.add(segment.name, segment.clip, text, split, speaker=segment.speaker, place=path)
    return rows.selection()


CORPUS = Corpus(GigaSpeechConfig, select)
