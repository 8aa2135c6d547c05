"""What the readers of published corpora share: where a corpus lies, what is done to its texts, and the account of rows.

A row is what a corpus lists with a transcript, or a recording that should have one. Every row is an utterance or is
rejected with its reason. Nothing but lists of transcripts is opened here: a recording that is missing or broken is
noticed where it is decoded, in parallel, and is then a rejected row too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from data.audio import Clip, RejectedRow, Utterance, is_key_character
from data.corpora.corpus import BaseCorpusConfig, Selection
from data.corpora.rejections import describe_rejections
from data.errors import DataError
from data.manifests.rows import MAX_LINES, NOT_UTF8, UNDECODED
from data.rejected_rows import RejectedRows
from data.text.transcripts import RULES_VERSION, join_han, normalize_text

# Languages that are written without spaces, in the codes of the corpora; a space there is an annotator's.
HAN_LANGUAGES = ("zh", "cmn", "yue", "nan", "ja")
# What the names of lists of transcripts end in, in all published corpora; beside them lie recordings and archives.
LIST_SUFFIXES = (".txt", ".txt.gz", ".tsv", ".stm", ".json")
# Three times the largest corpus that there is; as many as a manifest may have.
MAX_ROWS = MAX_LINES
# Of the languages that a folder holds, which may be a hundred.
MAX_NAMES_CHARACTERS = 400
MAX_NAMES_SEEN = 8
REMEDY = "Unpack the corpus and set corpus.root to its folder; docs/corpora.md shows the layout."


class PublishedCorpusConfig(BaseCorpusConfig, frozen=True, extra="forbid"):
    """The fields that all published corpora share; each adds a `name` and its own."""

    root: Path = Field(description="the folder of the unpacked corpus")
    normalize: Literal["lower", "none"] = Field(
        default="lower", description="lower: texts in lower case; none: as published"
    )
    punctuation: Literal["remove", "keep"] = Field(
        default="remove",
        description="remove: punctuation and symbols become spaces, except an apostrophe between letters",
    )

    # Names of what is done to texts of this corpus alone; docs/corpora.md says what they mean.
    own_text_rules: ClassVar[tuple[str, ...]] = ()

    @property
    def text_rules(self) -> dict[str, Any]:
        """The version of the rules of `data.text.transcripts`, the choices among them, and this corpus's own rules."""
        return {
            "version": RULES_VERSION,
            "normalize": self.normalize,
            "punctuation": self.punctuation,
            "spaces": f"none beside Han and kana in {', '.join(HAN_LANGUAGES)}",
            "own": list(self.own_text_rules),
        }


class RowCollector:
    """Collects the rows of one corpus; each is used or rejected."""

    def __init__(self, config: PublishedCorpusConfig, language: str) -> None:
        self._config = config
        self._language = language
        # By split: a name may recur in another one.
        self._line_of_key: dict[tuple[str, str], int] = {}
        self._utterances: list[Utterance] = []
        self._rejected = RejectedRows()
        self._num_rows = 0

    def add(
        self,
        name: str,
        clip: Clip,
        text: str,
        split: str,
        *,
        speaker: str = "",
        language: str = "",
        line: int = 0,
        place: Path | None = None,
    ) -> None:
        """Use a row, its text normalised; reject it when its text has no words or its split has its name already.

        `language` is that of the row where a corpus has several; `line` and `place` say where the row is listed.
        """
        self._count_row()
        key = key_of(name)
        language = language or self._language
        normalized = self._normalized(text, language)
        reason = self._problem(split, key, text, normalized)
        if UNDECODED.search(name + text + speaker):
            reason = NOT_UTF8
            key = ""
        if reason:
            self._reject(reason, line, place, key, clip)
            return
        self._line_of_key[split, key] = line
        utterance = Utterance(
            key=key,
            clips=(clip,),
            text=normalized,
            split=split,
            speaker=speaker,
            language=language,
            line=line,
        )
        self._utterances.append(utterance)

    def reject(
        self, reason: str, *, line: int = 0, place: Path | None = None, key: str = "", clip: Clip | None = None
    ) -> None:
        """Count a row that cannot be used."""
        self._count_row()
        self._reject(reason, line, place, key, clip)

    def _reject(self, reason: str, line: int, place: Path | None, key: str, clip: Clip | None) -> None:
        path = ""
        # Names of files may be in any encoding, and what is recorded of a row is UTF-8.
        if clip is not None and not UNDECODED.search(str(clip.path)):
            path = str(clip.path.absolute())
        if place is not None:
            reason = f"{place.relative_to(self._config.root)}: {reason}"
        reason = reason.encode("utf-8", "backslashreplace").decode()
        self._rejected.append(RejectedRow(line, reason, key_of(key), path))

    def _count_row(self) -> None:
        self._num_rows += 1
        if self._num_rows > MAX_ROWS:
            raise DataError(
                f"The lists at {self._config.root} have more than {MAX_ROWS} rows, and what is used of them is held in "
                "memory; divide the corpus into several."
            )

    def selection(self) -> Selection:
        """All rows. DataError when none can be used."""
        if self._utterances:
            return Selection(self._utterances, self._rejected)
        if self._rejected:
            raise DataError(
                f"None of the {len(self._rejected)} rows of {self._config.root} can be used, "
                f"{describe_rejections(self._rejected)}."
            )
        raise DataError(f"{self._config.root} lists no recordings; docs/corpora.md shows the layout that is read.")

    def _problem(self, split: str, key: str, text: str, normalized: str) -> str:
        """Why a row cannot be used; empty where it can."""
        if not key:
            return "it has no name"
        if "\ufffd" in text:
            return f"its text holds U+FFFD, which stands for a character that was lost: {text[:80]!r}"
        if not text.strip():
            return "its text is empty"
        if not any(character.isalnum() for character in normalized):
            return f"nothing is left of its text {text[:80]!r}"
        if (split, key) in self._line_of_key:
            line = self._line_of_key[split, key]
            return f"key {key} is already that of {f'line {line}' if line else 'another row'}"
        return ""

    def _normalized(self, text: str, language: str) -> str:
        text = normalize_text(
            text,
            lower=self._config.normalize == "lower",
            punctuation=self._config.punctuation == "keep",
            language=language,
        )
        if language.replace("_", "-").split("-")[0] in HAN_LANGUAGES:
            text = join_han(text)
        return text


def may_list_transcripts(name: str) -> bool:
    """Whether a file of a corpus may hold transcripts, by its name: what it says depends on the content of these."""
    return name.endswith(LIST_SUFFIXES)


def name_and_text(line: str) -> tuple[str, str]:
    """The first word of a line of a list, and what follows it; both empty in a blank line."""
    # Whatever blank parts them: lists that were edited have a tab where the corpus has a space, or the other way.
    words = line.split(maxsplit=1)
    return "".join(words[:1]), "".join(words[1:]).strip()


def key_of(name: str) -> str:
    """The name of a row as a key, which cannot hold every character."""
    characters: list[str] = []
    for character in name:
        if is_key_character(character):
            characters.append(character)
        else:
            characters.append("_")
    return "".join(characters)


def choose_language(root: Path, language: str, folders: Mapping[str, Path], absent: str) -> Path:
    """The folder of a language: that of `language`, or the only one where none is given.

    `folders` are those in `root`, by language. DataError when it cannot be told which is meant; `absent` is what is
    said of a root without any.
    """
    if language in folders:
        return folders[language]
    if len(folders) == 1 and not language:
        return next(iter(folders.values()))
    if not folders:
        raise DataError(f"{root} is {absent}. {what_lies_in(root)} {REMEDY}")
    names = ", ".join(sorted(folders))[:MAX_NAMES_CHARACTERS]
    if not language:
        raise DataError(f"{root} has several languages: {names}. Set corpus.language to one of them.")
    raise DataError(f"{root} has {names}, and corpus.language is {language!r}; set it to one of them.")


def find_folder(root: Path, names: tuple[str, ...], inside: str, corpus: str) -> Path:
    """The folder of a corpus: the folder in `root` that has one of the names, or `root`, whichever has something that
    matches the pattern `inside`. DataError when neither has."""
    # The named one first: where several corpora lie in `root`, another may look like this one.
    candidates = [*(root / name for name in names), root]
    for folder in candidates:
        if folder.is_dir() and next(folder.glob(inside), None) is not None:
            return folder
    raise DataError(f"{root} is not {corpus}: nothing in it is called {inside}. {what_lies_in(root)} {REMEDY}")


def what_lies_in(folder: Path) -> str:
    """A sentence about what was seen in place of a corpus."""
    if not folder.exists():
        return "It does not exist."
    if not folder.is_dir():
        return "It is no folder."
    names = sorted(path.name for path in folder.iterdir())
    if len(names) > MAX_NAMES_SEEN:
        names[MAX_NAMES_SEEN:] = [f"{len(names) - MAX_NAMES_SEEN} others"]
    return f"It holds {', '.join(names)[:MAX_NAMES_CHARACTERS] or 'nothing'}."
