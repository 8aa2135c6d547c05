"""Members in a range of a tar are those that Python's tarfile finds there."""

import io
import tarfile

import pytest

from data.containers.tar_members import BLOCK_BYTES, read_members

CONTENT = b"what a member holds"


def tar_of(name: str, tar_format: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as tar:
        member = tarfile.TarInfo(name)
        member.size = len(CONTENT)
        tar.addfile(member, io.BytesIO(CONTENT))
    return stream.getvalue()


def members_by_tarfile(content: bytes) -> dict[str, bytes] | None:
    """The only member, as tarfile sees its header; None where that is none, or none of a plain file."""
    try:
        header = tarfile.TarInfo.frombuf(content[:BLOCK_BYTES], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    is_plain = header.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    if not is_plain or not 0 <= header.size <= len(content) - BLOCK_BYTES:
        return None
    return {header.name: content[BLOCK_BYTES : BLOCK_BYTES + header.size]}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["key.flac", "folder/key.flac", "ключ.flac", f"{'f' * 80}/{'k' * 80}.flac"])
def test_a_member_has_the_name_and_the_bytes_that_were_written(name, tar_format):
    assert read_members(tar_of(name, tar_format), 1) == {name: CONTENT}


@pytest.mark.parametrize("mask", [0x01, 0x08, 0x80, 0xFF])
def test_a_changed_byte_in_a_header_is_seen_as_tarfile_sees_it(mask):
    sound = tar_of("key.flac", tarfile.USTAR_FORMAT)
    for position in range(BLOCK_BYTES):
        damaged = bytearray(sound)
        damaged[position] ^= mask
        expected = members_by_tarfile(bytes(damaged))
        try:
            members = read_members(bytes(damaged), 1)
        except ValueError:
            members = None
        assert members == expected, f"byte {position}"


@pytest.mark.parametrize(
    "size", [b"00000000009\0", b"0000_000023\0", b"+0000000023\0", b"\x80" + bytes(10) + b"\x13", b"-0000000023\0"]
)
def test_sizes_that_others_write_are_read_as_tarfile_reads_them(size):
    damaged = bytearray(tar_of("key.flac", tarfile.USTAR_FORMAT))
    damaged[124:136] = size
    header = damaged[:BLOCK_BYTES]
    damaged[148:154] = b"%06o" % (sum(header) - sum(header[148:156]) + 8 * ord(" "))
    expected = members_by_tarfile(bytes(damaged))
    try:
        members = read_members(bytes(damaged), 1)
    except ValueError:
        members = None
    assert members == expected
