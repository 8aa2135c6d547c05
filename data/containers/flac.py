"""FLAC (RFC 9639): streams one after the other, and how many samples their frames hold.

STREAMINFO states a number of samples, 0 where the encoder wrote to a pipe. The last frame's header says at which sample
it begins and how many it has: their sum is the true number.
"""

import itertools
from collections.abc import Iterator
from typing import BinaryIO

from data.containers.stream import AudioError, Stream, read_at

# The marker, and the head of a STREAMINFO block that is not, or is, the only block of metadata.
MARKERS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
STREAMINFO_END = 42
# Bits of STREAMINFO's field of 8 bytes at byte 18 that hold the number of samples; the others hold rate and channels.
NUM_SAMPLES_MASK = (1 << 36) - 1
# What a frame begins with: numbered by blocks of one size, or by samples.
SYNC_CODES = (b"\xff\xf8", b"\xff\xf9")
SEARCH_BYTES = 1 << 20
# Above the largest frame: 65535 samples of 8 channels and 4 bytes.
TAIL_BYTES = (1 << 16, 1 << 22)
# In compressed sound a code comes by chance once in 32 kB. A tail of nothing but codes is not taken apart.
MAX_SYNC_CODES = 4096


def flac_streams(file: BinaryIO, size: int) -> tuple[Stream, ...]:
    """The streams, each with the number of samples that its frames hold."""
    starts = _starts(file, size)
    if not starts:
        raise AudioError("is damaged: it begins as FLAC and has no STREAMINFO")
    stops = [*starts[1:], size]
    streams: list[Stream] = []
    for start, stop in zip(starts, stops, strict=True):
        header = read_at(file, start, min(STREAMINFO_END, stop - start))
        if len(header) < STREAMINFO_END:
            raise AudioError("breaks off within its header")
        fields = int.from_bytes(header[18:26], "big")
        promised = fields & NUM_SAMPLES_MASK
        num_samples = _count_samples(file, start, stop, header)
        if num_samples < promised:
            raise AudioError(f"breaks off: {num_samples} of {promised} samples are there")
        if num_samples == 0:
            raise AudioError("holds no samples")
        if num_samples == promised and (start, stop) == (0, size):
            streams.append(Stream(start, stop))
        else:
            fields = fields & ~NUM_SAMPLES_MASK | num_samples
            whole = header[:18] + fields.to_bytes(8, "big") + header[26:]
            streams.append(Stream(start + STREAMINFO_END, stop, whole))
    return tuple(streams)


def _starts(file: BinaryIO, size: int) -> list[int]:
    starts: list[int] = []
    # Pieces overlap, so that none cuts a marker in two.
    overlap = len(MARKERS[0]) - 1
    for begin in range(0, size, SEARCH_BYTES):
        piece = read_at(file, begin, SEARCH_BYTES + overlap)
        for marker in MARKERS:
            position = piece.find(marker)
            while position >= 0:
                starts.append(begin + position)
                position = piece.find(marker, position + 1)
    return sorted(starts)


def _count_samples(file: BinaryIO, start: int, stop: int, streaminfo: bytes) -> int:
    """The samples up to the end of the last frame that begins before `stop`."""
    for num_bytes in TAIL_BYTES:
        begin = max(start + STREAMINFO_END, stop - num_bytes)
        tail = read_at(file, begin, stop - begin)
        for position in itertools.islice(_sync_positions(tail), MAX_SYNC_CODES):
            num_samples = _end_of_frame(tail[position : position + 16], streaminfo)
            if num_samples is not None:
                return num_samples
        if begin == start + STREAMINFO_END:
            break
    return 0


def _sync_positions(tail: bytes) -> Iterator[int]:
    """Where frames may begin, from the last place to the first."""
    positions = [tail.rfind(code) for code in SYNC_CODES]
    while max(positions) >= 0:
        position = max(positions)
        yield position
        # Each code from its own last place: looked for anew, a rare one would be the square of a tail of the other.
        number = positions.index(position)
        positions[number] = tail.rfind(SYNC_CODES[number], 0, position)


def _end_of_frame(header: bytes, streaminfo: bytes) -> int | None:
    """The number of samples at the end of the frame with this header; None when it is none."""
    if len(header) < 6 or header[:2] not in SYNC_CODES:
        return None
    size_code = header[2] >> 4
    rate_code = header[2] & 15
    if size_code == 0 or rate_code == 15 or header[3] >> 4 > 10 or header[3] & 1:
        return None
    # The number is coded as UTF-8 extended to 36 bits; the first byte's leading ones count its bytes.
    num_bytes = 8 - (header[4] ^ 0xFF).bit_length()
    if num_bytes == 1 or num_bytes == 8:
        return None
    number = header[4] & (0x7F >> num_bytes)
    for byte in header[5 : 4 + max(num_bytes, 1)]:
        number = number << 6 | byte & 0x3F
    position = 4 + max(num_bytes, 1)

    if size_code == 1:
        block_size = 192
    elif size_code <= 5:
        block_size = 576 << (size_code - 2)
    elif size_code <= 7:
        width = size_code - 5
        block_size = int.from_bytes(header[position : position + width], "big") + 1
        position += width
    else:
        block_size = 256 << (size_code - 8)
    if rate_code >= 12:
        position += 1 if rate_code == 12 else 2
    if position >= len(header) or _crc8(header[:position]) != header[position]:
        return None
    if header[:2] == SYNC_CODES[1]:
        return number + block_size
    # All blocks but the last have the size that STREAMINFO gives as the least.
    return number * int.from_bytes(streaminfo[8:10], "big") + block_size


def _crc8(content: bytes) -> int:
    """CRC-8 with the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc <<= 1
            if crc & 0x100:
                crc ^= 0x107
    return crc
