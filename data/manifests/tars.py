"""WebDataset tars of others as rows: `KEY.flac` (or wav, mp3, opus, ...) with `KEY.txt` or `KEY.json` beside it.

One row per key, whose recording is the whole member; it is read where it lies. Members of other kinds, such as features
and pickles, are named in the log and never opened. A tar that breaks off gives the rows before that, and one that says
so.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.containers.members import Member
from data.containers.tar_members import TarMember, list_members
from data.files import open_regular
from data.manifests.columns import whole_recording
from data.manifests.rows import NOT_UTF8, Columns, Row, json_columns
from data.manifests.splits import split_in_name

# The endings of recordings, in the order in which one of several is taken.
AUDIO = (
    *("flac", "wav", "opus", "ogg", "mp3", "aiff", "aif", "au", "sph", "w64", "caf", "g722"),
    # Not read here, which their rows say.
    *("m4a", "aac", "wma", "amr", "webm"),
)
TEXTS = ("txt", "json")
MAX_TEXT_BYTES = 2**20
# Kinds of members that one line of the log names.
MAX_NAMED = 20

logger = logging.getLogger(__name__)


def tars_at(path: Path) -> list[Path]:
    """The tars in a folder, in order; hidden files are half written."""
    return [tar for tar in sorted(path.glob("*.tar")) if not tar.name.startswith(".")]


def read_tars(tars: list[Path], folder: Path, split: str) -> Iterator[Row]:
    """The rows of some tars, in the columns of `data.manifests`; their places count from `folder`. Tars whose names
    begin with a split are of that one where `split` names none."""
    not_read: set[str] = set()
    for tar in tars:
        place = os.path.relpath(tar, folder)
        samples, problems = _samples(tar, not_read)
        row = 0
        if samples:
            with open_regular(tar) as file:
                for row, (key, parts) in enumerate(samples.items(), 1):
                    yield _row(row, key, parts, file, place, split or split_in_name(tar.name))
                    endings = [ending for ending in AUDIO if ending in parts]
                    not_read.update(parts.keys() - {*endings[:1], *TEXTS})
        for number, problem in enumerate(problems, row + 1):
            yield Row(number, problem, place)
    if not_read:
        names = ", ".join(sorted(not_read)[:MAX_NAMED])
        logger.warning("%s: members with these endings are not read: %s.", tars[0].parent, names)


def _samples(tar: Path, not_read: set[str]) -> tuple[dict[str, dict[str, TarMember]], list[str]]:
    """The members of a tar by key and ending, and what is wrong with others. The parts of a row may lie apart."""
    samples: dict[str, dict[str, TarMember]] = {}
    problems: list[str] = []
    try:
        for member in list_members(tar):
            # As WebDataset has it: the key ends with the first dot of the last name.
            match = re.fullmatch(r"((?:.*/)?[^./][^.]*)\.([^/]*)", member.name, re.DOTALL)
            if member.problem:
                problems.append(member.problem)
            elif match is None:
                not_read.add(Path(member.name).name[:40])
            else:
                parts = samples.setdefault(match[1], {})
                ending = match[2].lower()
                if ending in parts:
                    member = member._replace(problem=f"two members are called {member.name[:80]!r}")
                parts[ending] = member
    except (OSError, ValueError) as error:
        problems.append(f"the tar {error!s:.300}")
    rows: dict[str, dict[str, TarMember]] = {}
    for key, parts in samples.items():
        for row_key, row_parts in _rows_of(key, parts).items():
            # Whatever has neither audio nor a text is no row: __index__ and others of WebDataset's own.
            if row_parts.keys().isdisjoint(AUDIO + TEXTS):
                not_read.update(row_parts)
            else:
                rows[row_key] = row_parts
    return rows, problems


def _rows_of(key: str, parts: dict[str, TarMember]) -> dict[str, dict[str, TarMember]]:
    """The members of one key as rows: of a key with dots in it, as in talk.1.flac and talk.2.flac, there are several.

    Where a kind of member is there under longer names alone, such as audio.flac and text.txt, these are taken for it.
    """
    recordings = [ending for ending in parts if ending.rpartition(".")[2] in AUDIO]
    if len(recordings) > 1 and parts.keys().isdisjoint(AUDIO):
        # Recordings of their own, each with the text whose name is as long.
        rows: dict[str, dict[str, TarMember]] = {}
        for ending, member in parts.items():
            name, _, last = f".{ending}".rpartition(".")
            rows.setdefault(key + name, {})[last] = member
        return rows

    row = dict(parts)
    for known in (AUDIO, TEXTS):
        if not parts.keys().isdisjoint(known):
            continue
        for ending, member in parts.items():
            last = ending.rpartition(".")[2]
            if last not in known:
                continue
            row.pop(ending)
            if last in row:
                several = f"its {last} is there under several names, {ending[:40]} is one of them"
                member = member._replace(problem=several)
            row[last] = member
    return {key: row}


def _row(number: int, key: str, parts: dict[str, TarMember], file: Any, place: str, split: str) -> Row:
    content, stated_s = _content(parts, file)
    if isinstance(content, str):
        return Row(number, content, place)
    for ending in AUDIO:
        if ending in parts:
            audio = parts[ending]
            content["audio"] = place
            content.setdefault("split", split)
            return Row(number, content, place, Member(audio.name, audio.start, audio.num_bytes, stated_s))
    return Row(number, f"it names no audio file: {key[:80]} has {', '.join(sorted(parts))[:80]}", place)


def _content(parts: dict[str, TarMember], file: Any) -> tuple[Columns | str, float | None]:
    """The columns that stand beside a recording, or why there are none, and how long they say that it is."""
    for part in parts.values():
        if part.problem:
            return part.problem, None
    content: Columns = {}
    for ending in TEXTS:
        part = parts.get(ending)
        if part is None:
            continue
        if part.num_bytes > MAX_TEXT_BYTES:
            return f"{part.name[:80]} has {part.num_bytes} bytes, more than the {MAX_TEXT_BYTES} of a text", None
        file.seek(part.start)
        try:
            text = file.read(part.num_bytes).decode("utf-8-sig")
        except UnicodeDecodeError:
            return NOT_UTF8, None
        if ending == "txt":
            content["text"] = text
            continue
        columns = json_columns(text)
        if isinstance(columns, str):
            return f"{part.name[:80]} is {columns}", None
        # Both may give the text, and are then compared.
        if "text" in content:
            columns["txt"] = content["text"]
        content = columns
    return whole_recording(content)
