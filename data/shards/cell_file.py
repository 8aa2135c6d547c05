"""The recordings of Parquet files, copied out once, in the order of their groups of rows, to be read in any order."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from data.audio import Clip, Utterance
from data.containers import AudioError
from data.containers.members import MAX_MEMBER_BYTES, Member
from data.containers.parquet_cells import Cell, read_cells


class CellFile:
    """A temporary file with the recordings of Parquet files that some utterances are made of."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "cells.bin"
        self._members: dict[tuple[Path, int, int], Member] = {}

    def fill(self, utterances: Iterable[Utterance], on_progress: Callable[[int, int], None]) -> None:
        """Copy the recordings of some utterances; `on_progress` is called with the groups of rows done and in all.

        A recording that cannot be read is left where it is: whoever decodes it says why.
        """
        groups: dict[tuple[Path, int, str], dict[int, Cell]] = {}
        for utterance in utterances:
            for clip in utterance.clips:
                if isinstance(clip.member, Cell):
                    group = (clip.path, clip.member.row_group, clip.member.column)
                    groups.setdefault(group, {})[clip.member.row] = clip.member
        if not groups:
            return
        with self._path.open("wb") as file:
            for done, ((path, row_group, column), cells) in enumerate(sorted(groups.items()), 1):
                try:
                    for row, content in read_cells(path, row_group, column, cells.keys()):
                        if len(content) > MAX_MEMBER_BYTES:
                            continue
                        cell = cells[row]
                        member = Member(cell.name, file.tell(), len(content), cell.stated_s, str(path))
                        self._members[path, row_group, row] = member
                        file.write(content)
                except AudioError:
                    # One row of a group without bytes must not hide the others, which are read one by one.
                    pass
                on_progress(done, len(groups))

    def located(self, utterance: Utterance) -> Utterance:
        """An utterance with its recordings where they can be read now."""
        clips: list[Clip] = []
        for clip in utterance.clips:
            if isinstance(clip.member, Cell):
                member = self._members.get((clip.path, clip.member.row_group, clip.member.row))
                if member is not None:
                    clip = replace(clip, path=self._path, member=member)
            clips.append(clip)
        return replace(utterance, clips=tuple(clips))

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
