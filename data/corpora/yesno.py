"""yesno: one man saying yes and no in Hebrew, eight words a recording; `1_0_0_1_1_0_1_1.wav` says which.

Sixty recordings at 8 kHz. As elsewhere, those that begin with no are train and those that begin with yes are test;
every sixth of train is dev, which the corpus does not have.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from data.audio import Clip
from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector, find_folder

WORDS = {"0": "no", "1": "yes"}
DEV_EVERY = 6


class YesnoConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where yesno lies."""

    name: Literal["yesno"] = "yesno"
    shard_seconds: float = Field(default=120.0, gt=0, le=1e6, description="audio per shard in seconds")
    root: Path = Field(description="the folder waves_yesno, or the one that it was unpacked in")


def select(config: YesnoConfig, seed: int) -> Selection:
    """All recordings, each in its split. Nothing is random here: `seed` is not used.

    Raises DataError when the corpus is not there.
    """
    folder = find_folder(config.root, ("waves_yesno",), "*.wav", "yesno")
    rows = RowCollector(config, "he")
    num_train = 0
    for path in sorted(folder.glob("*.wav")):
        if not re.fullmatch("[01](_[01])*", path.stem):
            rows.reject(f"{path.name} is not named by the words in it, as 0_1_1_0_0_1_0_1.wav", key=path.stem)
            continue
        words = path.stem.split("_")
        split = "test"
        if words[0] == "0":
            num_train += 1
            split = "train"
            # Of the names in their order, which all machines sort alike.
            if num_train % DEV_EVERY == 0:
                split = "dev"
        text = " ".join(WORDS[word] for word in words)
        rows.add(path.stem, Clip(path), text, split, speaker="yesno")
    return rows.selection()


CORPUS = Corpus(YesnoConfig, select)
