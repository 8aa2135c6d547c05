"""Recordings inside of other files: members of tars, values of tables.

While it is decoded, a member lies in a temporary file of its own: what holds for files holds for it, its bounds and its
checks, and no name that stands in an archive becomes a path.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.containers import AudioError
from data.containers.parquet_cells import Cell, read_cell
from data.files import open_regular

__all__ = ["MAX_MEMBER_BYTES", "Cell", "Member", "describe_member", "member_file", "member_pieces"]

# As many as an utterance in a shard may have.
MAX_MEMBER_BYTES = 2**30
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A range of bytes in a file, under the name that the recording has there.

    `stated_s` is how long its row says that it is, None where it does not. `place` is the file that the recording comes
    from where it was copied out of it already; empty where it lies there still.
    """

    name: str
    start: int
    num_bytes: int
    stated_s: float | None = None
    place: str = ""


def describe_member(path: Path, member: Member | Cell) -> str:
    """How messages call a recording inside of a file."""
    place = ""
    if isinstance(member, Member):
        place = member.place
    return f"{member.name} in {place or path}"


@contextmanager
def member_file(path: Path, member: Member | Cell) -> Iterator[Path]:
    """A file with the bytes of a member, which is removed afterwards. AudioError when they are not there."""
    # The ending alone tells G.722; nothing else of the name is used.
    suffix = Path(member.name).suffix
    if not re.fullmatch(r"\.\w{1,8}", suffix, re.ASCII):
        suffix = ""
    with tempfile.NamedTemporaryFile(prefix="chorus-", suffix=suffix) as file:
        if isinstance(member, Member):
            for piece in member_pieces(path, member):
                file.write(piece)
        else:
            content = read_cell(path, member)
            check_size(path, member, len(content))
            file.write(content)
        file.flush()
        yield Path(file.name)


def check_size(path: Path, member: Member | Cell, num_bytes: int) -> None:
    """AudioError when a recording has more bytes than can be read."""
    if num_bytes > MAX_MEMBER_BYTES:
        raise AudioError(
            f"{describe_member(path, member)} has {num_bytes} bytes, more than the {MAX_MEMBER_BYTES} of a recording; "
            "divide it"
        )


def member_pieces(path: Path, member: Member) -> Iterator[bytes]:
    """The bytes of a member in pieces. AudioError when the file has fewer, or they are more than can be read."""
    check_size(path, member, member.num_bytes)
    try:
        with open_regular(path) as file:
            file.seek(member.start)
            num_left = member.num_bytes
            while num_left:
                piece = file.read(min(num_left, PIECE_BYTES))
                if not piece:
                    raise AudioError(
                        f"{describe_member(path, member)} breaks off: its last {num_left} bytes are missing"
                    )
                num_left -= len(piece)
                yield piece
    except FileNotFoundError as error:
        raise AudioError(f"there is no audio file {describe_member(path, member)[:200]}") from error
    except (OSError, ValueError) as error:
        raise AudioError(f"{describe_member(path, member)} cannot be read ({error})") from error
