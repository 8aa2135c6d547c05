"""The plain members in a range of a tar.

A tar may hold headers about the next header, one after the other, of any length, and Python's tarfile follows each by
recursion, looks for records in them with a search that takes the square of their length, and counts as read what is
sparse or compressed. Here a member may have one such header, for a name of more than 100 bytes or of other letters
(pax's and GNU's), and of it the name alone is read.
"""

import tarfile

BLOCK_BYTES = 512
# Of a header about the next one; a path of Linux has 4096 bytes at most.
MAX_NAME_HEADER_BYTES = 2**14
# The length of a record of pax has so many digits at most.
MAX_DIGITS = 6
NAME_HEADERS = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


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
            # UTF-8, whatever the locale: names are those of keys.
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
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
