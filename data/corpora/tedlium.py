"""TEDLIUM 3: English talks, segments of long SPHERE files listed in STM, `legacy/{train,dev,test}/{sph,stm}`.

Its `legacy` division is the one that results are reported on. Suffixes stand apart from their words (`it 's`) and are
joined to them; segments that are marked as not to be scored are rejected rows.
"""

import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from data.audio import Clip
from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector, find_folder
from data.manifests.rows import read_lines

NOT_SCORED = "ignore_time_segment_in_scoring"
# Not before every apostrophe: 'em and 'cause are words.
SUFFIXES = re.compile(r"(?<=\w) +(?='(?:s|re|ve|ll|d|m|t|all)\b)", re.IGNORECASE)
# Which of the pronunciations of a dictionary was said, in texts of earlier releases: read(2).
PRONUNCIATIONS = re.compile(r"\(\d+\)")


class TedliumConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where TEDLIUM 3 lies."""

    own_text_rules: ClassVar[tuple[str, ...]] = ("joined_suffixes", "pronunciation_numbers")

    name: Literal["tedlium"] = "tedlium"
    root: Path = Field(description="the folder TEDLIUM_release-3, or the one that it was unpacked in")


def select(config: TedliumConfig, seed: int) -> Selection:
    """The segments of train, dev and test. Nothing is random here: `seed` is not used.

    Raises DataError when the corpus is not there or nothing in it can be used.
    """
    folder = find_folder(config.root, ("TEDLIUM_release-3",), "legacy/*/stm", "TEDLIUM 3") / "legacy"
    rows = RowCollector(config, "en")
    for split in ("train", "dev", "test"):
        lists = folder / split / "stm"
        without_text = {path.stem for path in (folder / split / "sph").glob("*.sph")}
        # Sorted, so that the order does not depend on the file system.
        for stm in sorted(lists.glob("*.stm")):
            for line, content in enumerate(read_lines(stm), 1):
                # STM has comments.
                if not content.strip() or content.startswith(";;"):
                    continue
                recording = content.split()[0]
                without_text.discard(recording)
                _add(content, line, stm, split, rows)
        for name in sorted(without_text):
            rows.reject(f"{name}.sph has no line there", place=lists, key=name)
    return rows.selection()


CORPUS = Corpus(TedliumConfig, select)


def _add(content: str, line: int, stm: Path, split: str, rows: RowCollector) -> None:
    # RECORDING CHANNEL SPEAKER START END <LABELS> TEXT
    fields = content.split(maxsplit=5)
    try:
        recording, _, speaker, start, end = fields[:5]
        start_s = float(start)
        end_s = float(end)
        # In hundredths of a second, as elsewhere; of what is no number or endless there are none.
        start_cs = round(start_s * 100)
        end_cs = round(end_s * 100)
    except (ValueError, OverflowError):
        reason = f"not a line of STM, RECORDING CHANNEL SPEAKER START END <LABELS> TEXT: {content.strip()[:80]!r}"
        rows.reject(reason, line=line, place=stm)
        return

    key = f"{recording}-{start_cs:07d}-{end_cs:07d}"
    text = "".join(fields[5:])
    if text.startswith("<"):
        text = text.partition(">")[2]
    if text.strip() == NOT_SCORED:
        rows.reject("it is not to be scored", line=line, place=stm, key=key)
        return
    text = PRONUNCIATIONS.sub("", text)
    text = SUFFIXES.sub("", text)
    path = stm.parent.parent / "sph" / f"{recording}.sph"
    # Hundredths have no exact difference.
    seconds = round(end_s - start_s, 6)
    clip = Clip(path, start_s, seconds)
    rows.add(key, clip, text, split, speaker=speaker, line=line, place=stm)
