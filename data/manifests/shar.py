"""lhotse's Shar as rows: folders of `cuts.NNNNNN.jsonl.gz` with a tar of their recordings, `recording.NNNNNN.tar`.

Rows are those of cuts (see `data.manifests.lhotse`); a recording is the member of the tar that has the name of its cut.
Other fields of Shar, such as features, are not opened.
"""

from collections.abc import Iterator
from pathlib import Path

from data.containers.members import Member
from data.containers.tar_members import list_members
from data.manifests.lhotse import cut_rows
from data.manifests.rows import Row, read_rows

# Manifests of recordings, and what is written for a cut that has none.
NO_RECORDING = ("json", "nodata", "nometa")


def is_shar(folder: Path) -> bool:
    """Whether a folder holds a Shar with recordings."""
    return next(folder.glob("recording.*.tar"), None) is not None and bool(cuts_at(folder))


def cuts_at(folder: Path) -> list[Path]:
    """The manifests of a Shar, in order."""
    return sorted([*folder.glob("cuts.*.jsonl"), *folder.glob("cuts.*.jsonl.gz")])


def recordings_at(folder: Path) -> list[Path]:
    """The tars of recordings of a Shar, in order."""
    return sorted(folder.glob("recording.*.tar"))


def read_shar(folder: Path, root: Path, split: str) -> Iterator[Row]:
    """The rows of one Shar, whose places count from `root`; `split` is empty where it names none."""
    for cuts in cuts_at(folder):
        place = str(cuts.relative_to(root))
        number = cuts.name.split(".")[1]
        tar = folder / f"recording.{number}.tar"
        members: dict[str, Member] = {}
        problem = _fill(members, tar)
        for row in read_rows(cuts, ()):
            if isinstance(row.content, str):
                yield Row(row.line, row.content, place)
                continue
            name = str(row.content.get("id"))
            member = members.get(name)
            if member is None:
                yield Row(row.line, f"its recording {problem}", place)
                continue
            for content in cut_rows(row.content, folder, tar):
                if isinstance(content, dict):
                    content["split"] = split
                yield Row(row.line, content, place, member)


def _fill(members: dict[str, Member], tar: Path) -> str:
    """Add the recordings in a tar by the names of their cuts; return why one may be missing there."""
    try:
        for member in list_members(tar):
            name, _, ending = member.name.rpartition(".")
            if not member.problem and ending not in NO_RECORDING:
                members[name] = Member(member.name, member.start, member.num_bytes)
    except FileNotFoundError:
        return f"is not there: there is no {tar.name} beside the cuts"
    except (OSError, ValueError) as error:
        return f"is not in {tar.name}, which {error!s:.200}"
    return f"is not in {tar.name}, or was not stored as a plain file"
