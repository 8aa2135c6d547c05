"""AISHELL-1: read Mandarin, `wav/{train,dev,test}/SPEAKER/*.wav` with one list of transcripts for all splits.

The corpus comes as one archive per speaker, to be unpacked where it lies. The transcripts have spaces between words,
which are removed. Some recordings have no transcript, and are rejected rows.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.audio import Clip
from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector, find_folder, name_and_text
from data.errors import DataError
from data.manifests.rows import read_lines

SPLITS = ("train", "dev", "test")
# A recording is BAC009S0002W0122: its speaker is S0002.
SPEAKER = slice(6, 11)


class AishellConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where AISHELL-1 lies."""

    name: Literal["aishell"] = "aishell"
    root: Path = Field(description="the folder data_aishell, or the one that it was unpacked in")


def select(config: AishellConfig, seed: int) -> Selection:
    """The utterances of train, dev and test. Nothing is random here: `seed` is not used.

    Raises DataError when the corpus is not there or its archives are still packed.
    """
    folder = find_folder(config.root, ("data_aishell",), "transcript/aishell_transcript*.txt", "AISHELL-1")
    transcripts = next(folder.glob("transcript/aishell_transcript*.txt"))
    recordings = _recordings(folder / "wav")
    speakers = {path.parent.name for _, path in recordings.values()}
    without_text = set(recordings)
    rows = RowCollector(config, "zh")
    for line, content in enumerate(read_lines(transcripts), 1):
        name, text = name_and_text(content)
        if not name:
            continue
        if name in recordings:
            split, path = recordings[name]
            without_text.discard(name)
            rows.add(name, Clip(path), text, split, speaker=path.parent.name, line=line, place=transcripts)
            continue
        reason = f"there is no audio file {name}.wav in {' or '.join(SPLITS)}"
        # A speaker whose archive was forgotten looks like many recordings that are missing.
        archive = folder / "wav" / f"{name[SPEAKER]}.tar.gz"
        if archive.is_file() and name[SPEAKER] not in speakers:
            reason = f"{archive.name}, which holds {name}.wav, is not unpacked"
        rows.reject(reason, line=line, place=transcripts, key=name)
    for name in sorted(without_text):
        rows.reject(f"{name}.wav has no line there", place=transcripts, key=name)
    return rows.selection()


CORPUS = Corpus(AishellConfig, select)


def _recordings(wav: Path) -> dict[str, tuple[str, Path]]:
    """The split and path of every recording by its name. DataError when there is none."""
    recordings: dict[str, tuple[str, Path]] = {}
    for split in SPLITS:
        for path in sorted((wav / split).glob("*/*.wav")):
            recordings[path.stem] = (split, path)
    if not recordings:
        problem = f"There are no recordings in {wav}/train, dev and test"
        if next(wav.glob("*.tar.gz"), None) is not None:
            problem = f"The archives in {wav} are not unpacked"
        raise DataError(f"{problem}. Run: cd {wav} && for archive in *.tar.gz; do tar xzf $archive; done")
    return recordings
