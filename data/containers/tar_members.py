"""The plain members in a range of a tar.

A tar may hold headers about the next header, one after the other, of any length, and Python's tarfile follows each by
recursion, looks for records in them with a search that takes the square of their length, and counts as read what is
sparse or compressed. Here a member may have one such header, for a name of more than 100 bytes or of other letters
(pax's and GNU's), and of it the name alone is read.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.files import open_regular

BLOCK_BYTES = 512
# Of a header about the next one; a path of Linux has 4096 bytes at most.
MAX_NAME_HEADER_BYTES = 2**14
# The length of a record of pax has so many digits at most.
MAX_DIGITS = 6
# A size as tars write it, of less than 8 GiB.
OCTAL = re.compile(rb"[0-7]{11}\0")
NAME_HEADERS = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
# Folders, and what `git archive` writes about a tar as a whole: no members.
PASSED_OVER = (tarfile.DIRTYPE, tarfile.XGLTYPE)
# Of a tar of others; listed, they take half a gigabyte.
MAX_MEMBERS = 2_000_000


class TarMember(NamedTuple):
    """A member of a tar: its name and the range of its bytes, or the `problem` because of which it is not read."""

    name: str
    start: int
    num_bytes: int
    problem: str = ""


def list_members(path: Path) -> Iterator[TarMember]:
    """The members of a tar that others wrote, in order; only headers are read.

    A member that is no plain file, or whose name leads out of a folder, has its problem. ValueError, after the members
    before it, where the tar breaks off, is compressed, or is none; OSError when it cannot be opened.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_magic(file.read(BLOCK_BYTES))
        long_name: str | None = None
        position = 0
        num_members = 0
        while True:
            file.seek(position)
            block = file.read(BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                raise ValueError("breaks off: it has no end; fetch it again")
            if not block.strip(b"\0"):
                return
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise ValueError(f"is damaged: byte {position} begins no member ({error})") from None
            start = position + BLOCK_BYTES
            name = long_name or header.name
            if not 0 <= header.size <= size - start:
                raise ValueError(f"breaks off: member {name[:80]!r} is said to have {header.size} bytes")
            position = start + -(-header.size // BLOCK_BYTES) * BLOCK_BYTES
            if header.type in NAME_HEADERS and long_name is None:
                # One byte more than it may have is enough to see that.
                long_name = _parse_name(header, file.read(min(header.size, MAX_NAME_HEADER_BYTES + 1)))
                continue
            long_name = None
            if header.type in PASSED_OVER:
                continue
            num_members += 1
            if num_members > MAX_MEMBERS:
                raise ValueError(f"has more than {MAX_MEMBERS} members; divide it")
            yield TarMember(name, start, header.size, _problem(name, header))


def _check_magic(block: bytes) -> None:
    """Raise ValueError for what does not begin as a tar does."""
    if block.startswith(b"\x1f\x8b"):
        raise ValueError("is compressed with gzip: members are read where they lie, so unpack it with gunzip")
    # Tars of before 1988 have no magic, and much would pass for one. Zeros alone are a tar without members.
    if block.strip(b"\0") and block[257:262] != b"ustar":
        raise ValueError("is no tar")


def _problem(name: str, header: tarfile.TarInfo) -> str:
    if header.type not in PLAIN:
        return f"member {name[:80]!r} is a link, a device or a file with holes, and not a plain file"
    if name.startswith("/") or ".." in name.split("/"):
        return f"member {name[:80]!r} has a name that leads out of its folder"
    return ""


def read_members(content: bytes, num_members: int) -> dict[str, bytes]:
    """The members in a range of a tar, by name.

    ValueError when there are not so many, or one is no plain file that lies in the range as it is.
    """
    members: dict[str, bytes] = {}
    # Of the header about the next one, where there was such; empty where it gives no name.
    long_name: str | None = None
    position = 0
    while True:
        block = content[position : position + BLOCK_BYTES]
        # The end of the range, or of the tar.
        if not block.strip(b"\0"):
            break
        try:
            header = _parse_header(block)
        except tarfile.HeaderError as error:
            raise ValueError(f"byte {position} begins no member ({error})") from None
        name = long_name or header.name
        start = position + BLOCK_BYTES
        if not 0 <= header.size <= len(content) - start:
            raise ValueError(f"member {name[:80]!r} is said to have {header.size} bytes")
        body = content[start : start + header.size]
        position = start + -(-header.size // BLOCK_BYTES) * BLOCK_BYTES
        if header.type in NAME_HEADERS and long_name is None:
            long_name = _parse_name(header, body)
            continue
        if header.type not in PLAIN:
            raise ValueError(f"member {name[:80]!r} is no plain file")
        if len(members) == num_members:
            raise ValueError(f"there are more than {num_members} members")
        members[name] = body
        long_name = None
    if len(members) != num_members:
        raise ValueError(f"there are {len(members)} members where {num_members} belong")
    return members


def _parse_header(block: bytes) -> tarfile.TarInfo:
    """Name, type and size in a member's header. tarfile.HeaderError when the block is none.

    tarfile reads owners, modes and times too, which takes most of the time of a read that decodes nothing. So a plain
    file in ustar's format is read here, and whatever differs from that by tarfile.
    """
    is_file = block[156:157] == tarfile.REGTYPE and block[257:262] == b"ustar"
    has_short_name = not block[345:500].strip(b"\0")
    size = block[124:136]
    if is_file and has_short_name and OCTAL.fullmatch(size):
        # The checksum counts its own eight bytes as blanks.
        computed = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if len(block) == BLOCK_BYTES and block[148:156] == b"%06o\0 " % computed:
            name, _, _ = block[:100].partition(b"\0")
            # UTF-8, whatever the locale: names are those of keys.
            header = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            header.size = int(size[:-1], 8)
            return header
    return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")


def _parse_name(header: tarfile.TarInfo, body: bytes) -> str:
    """The name in a header about the next one, empty where it has none. ValueError when it would change more."""
    if len(body) > MAX_NAME_HEADER_BYTES:
        raise ValueError(f"the header before a member has {len(body)} bytes, more than {MAX_NAME_HEADER_BYTES}")
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return body.partition(b"\0")[0].decode()
    name = ""
    # Records of pax: `LENGTH KEYWORD=VALUE`, a line each, where the length is that of the whole line.
    while body.strip(b"\0"):
        digits, _, _ = body[: MAX_DIGITS + 1].partition(b" ")
        if not digits.isdigit() or not len(digits) < int(digits) <= len(body):
            raise ValueError("the header before a member has a record that is none")
        record = body[len(digits) + 1 : int(digits)]
        body = body[int(digits) :]
        keyword, _, value = record.removesuffix(b"\n").partition(b"=")
        # A size that is not that of its own header, and files with holes.
        if keyword == b"size" or keyword.startswith(b"GNU.sparse"):
            raise ValueError(f"the header before a member sets its {keyword[:80].decode(errors='replace')}")
        if keyword == b"path":
            name = value.decode()
    return name
