"""WenetSpeech: Mandarin podcasts and YouTube, segments of long Opus files listed in `WenetSpeech.json`.

Its transcripts come from captions and from recognisers, each with a confidence: 0.95 and above in the subsets S, M and
L, less in W. The two test sets are splits of their own, as results are reported.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector
from data.corpora.segment_list import read_segments

TEST_SPLITS = {"DEV": "dev", "TEST_NET": "test_net", "TEST_MEETING": "test_meeting"}


class WenetSpeechConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where WenetSpeech lies, and how much of it is trained on."""

    name: Literal["wenetspeech"] = "wenetspeech"
    root: Path = Field(description="the folder with WenetSpeech.json and audio")
    train: tuple[Literal["S", "M", "L", "W"], ...] = Field(
        default=("L",),
        min_length=1,
        description="subsets of train: L 10,000 h, in it M 1,000 h and S 100 h; W 2,400 h of weak labels",
    )
    min_confidence: float = Field(default=0.0, ge=0, le=1, description="segments of train below it are rejected")


def select(config: WenetSpeechConfig, seed: int) -> Selection:
    """The segments of the chosen subsets as train, and of DEV and the test sets. Nothing is random here: `seed` is not
    used.

    Raises DataError when the list is not there or cannot be read to its end.
    """
    path = config.root / "WenetSpeech.json"
    rows = RowCollector(config, "zh")
    for segment in read_segments(path, "text", rows):
        split = ""
        if segment.subsets & set(config.train):
            split = "train"
        # Last: nothing that is tested on is trained on, whatever else a list says of it.
        for subset, name in TEST_SPLITS.items():
            if subset in segment.subsets:
                split = name
        if not split:
            continue
        if split == "train" and segment.confidence < config.min_confidence:
            reason = f"its confidence of {segment.confidence:g} is below min_confidence {config.min_confidence:g}"
            rows.reject(reason, place=path, key=segment.name)
            continue
        rows.add(segment.name, segment.clip, segment.text, split, speaker=segment.speaker, place=path)
    return rows.selection()


CORPUS = Corpus(WenetSpeechConfig, select)
