"""The prompts of the Asterisk telephone exchange: English, Spanish, French, Italian and Russian, one voice each.

A voice is a folder of recordings, such as `it_IT_m_Carlo`, or `it` of an archive; `core-sounds-it.txt` or `.txt.gz`
lists `NAME: TEXT`. Wherever both lie in the folder that the packages were unpacked in, they are read. Rows are dealt to
train, dev and test by a hash of their text, as the prompts have no splits.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from data.audio import Clip
from data.corpora.corpus import Corpus, Selection
from data.corpora.hashed_splits import split_by_hash
from data.corpora.published import PublishedCorpusConfig, RowCollector, what_lies_in
from data.errors import DataError
from data.manifests.rows import read_lines
from data.text.transcripts import split_key

Language = Literal["en", "es", "fr", "it", "ru"]
# All of a text in brackets is about a sound: (silence), [beep].
SOUNDS = re.compile(r"\s*(\(.*\)|\[.*\]|<.*>)\s*")


class AsteriskConfig(PublishedCorpusConfig, frozen=True, extra="forbid"):
    """Where the prompts lie, and which languages of them."""

    name: Literal["asterisk"] = "asterisk"
    shard_seconds: float = Field(default=120.0, gt=0, le=1e6, description="audio per shard in seconds")
    root: Path = Field(description="the folder that packages or archives of the prompts were unpacked in")
    languages: tuple[Language, ...] = Field(default=(), description="languages; none: all that are there")
    dev_fraction: float = Field(default=0.05, ge=0, lt=0.5, description="share of the texts that go to dev")
    test_fraction: float = Field(default=0.05, ge=0, lt=0.5, description="share of the texts that go to test")


def select(config: AsteriskConfig, seed: int) -> Selection:
    """The prompts of the chosen languages. Nothing is random here: `seed` is not used.

    Raises DataError when the list or the voice of a language is not there.
    """
    lists: dict[str, Path] = {}
    # The list of a package lies with its documentation, that of an archive with the recordings.
    for path in sorted(config.root.rglob("core-sounds-*.txt*")):
        match = re.fullmatch(r"core-sounds-([a-z]{2})\.txt(\.gz)?", path.name)
        if match is not None:
            lists.setdefault(match[1], path)
    languages = config.languages or tuple(sorted(lists))
    if not lists:
        raise DataError(
            f"There is no core-sounds-LANGUAGE.txt, nor .txt.gz, in {config.root}, with one of en, es, fr, it and ru. "
            f"{what_lies_in(config.root)} Unpack the prompts and set corpus.root to their folder."
        )
    missing = sorted(set(languages) - set(lists))
    if missing:
        raise DataError(
            f"There is no core-sounds-{missing[0]}.txt, nor .txt.gz, in {config.root}; it has the lists of "
            f"{', '.join(sorted(lists))}. Unpack the prompts there, with their list."
        )
    rows = RowCollector(config, "")
    for language in languages:
        voices = _voices(config.root, language)
        if not voices:
            raise DataError(
                f"There are no recordings of {language} in {config.root}, in a folder called {language} or "
                f"{language}_VOICE; unpack them there, as g722 or wav."
            )
        for voice in voices:
            _add_voice(voice, language, lists[language], config, rows)
    return rows.selection()


CORPUS = Corpus(AsteriskConfig, select)


def _voices(root: Path, language: str) -> list[Path]:
    voices: dict[Path, Path] = {}
    for folder in [root, *sorted(root.rglob(f"{language}*"))]:
        is_voice = folder.name == language or folder.name.startswith(f"{language}_")
        if not is_voice or not folder.is_dir() or not _recordings(folder):
            continue
        # Where the exchange is installed, `en` is a link to the voice that it speaks with: its prompts are not two.
        place = folder.resolve()
        if place not in voices or not folder.is_symlink():
            voices[place] = folder
    return sorted(voices.values())


def _recordings(voice: Path) -> dict[str, Path]:
    """The recordings of a voice by their names, which may lie in folders: digits/1."""
    recordings: dict[str, Path] = {}
    # The last takes the place of the others: G.722 has 16 kHz, wav has 8.
    for suffix in ("wav", "g722"):
        for path in sorted(voice.rglob(f"*.{suffix}")):
            name = path.relative_to(voice).with_suffix("")
            recordings[name.as_posix()] = path
    return recordings


def _add_voice(voice: Path, language: str, texts: Path, config: AsteriskConfig, rows: RowCollector) -> None:
    recordings = _recordings(voice)
    for line, content in enumerate(read_lines(texts), 1):
        name, _, text = content.strip().partition(":")
        name = name.strip()
        if not name or name.startswith(";"):
            continue
        key = f"{voice.name}_{name}"
        path = recordings.pop(name, None)
        problem = ""
        if path is None:
            problem = f"there is no audio file of {name!r} in {voice.name}"
        elif SOUNDS.fullmatch(text):
            problem = f"is marked as no speech: {text.strip()!r}"
        if path is None or problem:
            rows.reject(problem, line=line, place=texts, key=key)
        else:
            words = split_key(text)
            split = split_by_hash(words, config.dev_fraction, config.test_fraction)
            rows.add(
                key,
                Clip(path),
                text,
                split,
                speaker=voice.name,
                language=language,
                line=line,
                place=texts,
            )
    for name, path in recordings.items():
        rows.reject(f"{name}{path.suffix} has no line there", place=texts, key=f"{voice.name}_{name}")
