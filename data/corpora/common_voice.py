"""Common Voice: sentences read by volunteers, `LANGUAGE/clips/*.mp3` listed in `train.tsv`, `dev.tsv`, `test.tsv`.

Columns change between releases and are read by their names. Training may take `validated` or `other` instead of
`train`, which hold more recordings: their rows that share a recording, a speaker or a sentence with dev or test are
rejected.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from data.audio import Clip
from data.corpora.corpus import Corpus, Selection
from data.corpora.published import PublishedCorpusConfig, RowCollector, choose_language
from data.errors import DataError
from data.manifests.rows import Row, read_rows
from data.text.transcripts import split_key

TrainList = Literal["train", "validated", "other"]
# Of these columns a row needs its recording and its sentence; older releases lack some of the others.
REQUIRED = (("path",), ("sentence",))


class CommonVoiceConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where a release of Common Voice lies, which language, and what is trained on."""

    name: Literal["common_voice"] = "common_voice"
    root: Path = Field(description="the folder of a language, with clips in it, or the release that holds it")
    language: str = Field(default="", max_length=100, description="as the folder is called: it, zh-CN; none: the only")
    train: tuple[TrainList, ...] = Field(
        default=("train",),
        min_length=1,
        description="lists that make up train. validated and other hold more: their rows that share a recording, "
        "speaker or sentence with dev or test are rejected",
    )

    @model_validator(mode="after")
    def _no_list_within_another(self) -> "CommonVoiceConfig":
        if "train" in self.train and "validated" in self.train:
            raise ValueError("train names train and validated, which holds all of train; leave one out")
        return self


class HeldOut(NamedTuple):
    """What must not be trained on, each with the split that it belongs to."""

    recordings: dict[str, str]
    speakers: dict[str, str]
    sentences: dict[str, str]


def select(config: CommonVoiceConfig, seed: int) -> Selection:
    """The rows of the chosen lists. Nothing is random here: `seed` is not used.

    Raises DataError when the language or a list is not there, or a list lacks a column.
    """
    folder = _language_folder(config)
    rows = RowCollector(config, config.language or folder.name)
    held_out = HeldOut({}, {}, {})
    for split in ("dev", "test"):
        path = folder / f"{split}.tsv"
        # The smallest languages have too few sentences for one or the other.
        if not path.is_file():
            continue
        for row in read_rows(path, REQUIRED):
            _add(row, split, path, rows)
            if isinstance(row.content, dict):
                held_out.recordings[row.content["path"]] = split
                held_out.speakers[row.content.get("client_id", "")] = split
                held_out.sentences[split_key(row.content["sentence"])] = split
    # Of releases without the column.
    held_out.speakers.pop("", None)
    for name in config.train:
        path = folder / f"{name}.tsv"
        if not path.is_file():
            raise DataError(f"There is no {path}; unpack it from the release, or set corpus.train to other lists.")
        for row in read_rows(path, REQUIRED):
            problem = ""
            # The lists of a release are disjoint, and held-out sentences may recur in train by design.
            if name != "train":
                problem = _held_out_problem(row, held_out)
            if problem:
                rows.reject(problem, line=row.line, place=path)
            else:
                _add(row, "train", path, rows)
    return rows.selection()


CORPUS = Corpus(CommonVoiceConfig, select)


def _language_folder(config: CommonVoiceConfig) -> Path:
    if (config.root / "clips").is_dir():
        return config.root
    return choose_language(
        config.root,
        config.language,
        {path.parent.name: path.parent for path in config.root.glob("*/clips")},
        absent="no release of Common Voice: neither it nor a folder in it has clips and lists such as train.tsv",
    )


def _held_out_problem(row: Row, held_out: HeldOut) -> str:
    """Why a row must not be trained on; empty where it may."""
    if isinstance(row.content, str):
        return ""
    speaker = row.content.get("client_id", "")
    if row.content["path"] in held_out.recordings:
        return f"its recording belongs to {held_out.recordings[row.content['path']]}"
    if speaker in held_out.speakers:
        return f"its speaker belongs to {held_out.speakers[speaker]}"
    sentence = split_key(row.content["sentence"])
    if sentence in held_out.sentences:
        return f"its sentence belongs to {held_out.sentences[sentence]}"
    return ""


def _add(row: Row, split: str, path: Path, rows: RowCollector) -> None:
    if isinstance(row.content, str):
        rows.reject(row.content, line=row.line, place=path)
        return
    name = row.content["path"]
    if not name:
        rows.reject("it names no audio file", line=row.line, place=path)
        return
    # Early releases leave the ending out.
    if "." not in name:
        name += ".mp3"
    rows.add(
        Path(name).stem,
        Clip(path.parent / "clips" / name),
        row.content["sentence"],
        split,
        speaker=row.content.get("client_id", ""),
        line=row.line,
        place=path,
    )
