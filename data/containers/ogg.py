"""Ogg (Vorbis, Opus, FLAC, Speex): a chain of pages, each with a checksum and a number (RFC 3533).

A file may be a chain of links, each a recording of its own that begins with pages of the flag "beginning of stream".
Each stream of a link ends with a page of the flag "end of stream": without one, the file was cut.
"""

import zlib
from typing import BinaryIO

from data.containers.stream import AudioError, Stream, read_at

BEGINNING_OF_STREAM = 2
END_OF_STREAM = 4
HEADER_BYTES = 27

# Each byte with its bits in reverse order.
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_streams(file: BinaryIO, size: int, start: int) -> tuple[Stream, ...]:
    """One stream per link of the chain."""
    starts = [start]
    # Of the link that is being read: the number and flags of each stream's last page.
    last_pages: dict[int, tuple[int, int]] = {}
    in_beginnings = True
    position = start
    while position < size:
        header = read_at(file, position, HEADER_BYTES + 255)
        if header[:4] != b"OggS":
            # After the end: tags and padding that other programs append.
            if _all_ended(last_pages):
                break
            raise AudioError(f"is damaged: no Ogg page begins at byte {position}")
        if len(header) < HEADER_BYTES:
            raise AudioError("breaks off within an Ogg page")
        flags = header[5]
        serial = int.from_bytes(header[14:18], "little")
        number = int.from_bytes(header[18:22], "little")
        header_size = HEADER_BYTES + header[26]
        segment_sizes = header[HEADER_BYTES:header_size]
        page_size = header_size + sum(segment_sizes)
        page = read_at(file, position, page_size)
        if position + header_size > size or len(page) < page_size:
            raise AudioError("breaks off within an Ogg page")
        # Ogg's CRC-32 has the polynomial of zlib, but takes the highest bit first, and neither begins nor ends with
        # ones.
        without_checksum = page[:22] + bytes(4) + page[26:]
        reflected = zlib.crc32(without_checksum.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        checksum = int(f"{reflected:032b}"[::-1], 2)
        if checksum != int.from_bytes(page[22:26], "little"):
            raise AudioError(f"is damaged: the Ogg page at byte {position} does not have its checksum")

        if flags & BEGINNING_OF_STREAM:
            if not in_beginnings:
                _check_ended(last_pages)
                starts.append(position)
                last_pages.clear()
            in_beginnings = True
        else:
            in_beginnings = False
            if serial in last_pages and number != last_pages[serial][0] + 1:
                raise AudioError(f"lacks Ogg pages before byte {position}")
        last_pages[serial] = (number, flags)
        position += len(page)

    _check_ended(last_pages)
    stops = [*starts[1:], position]
    return tuple(Stream(first, stop) for first, stop in zip(starts, stops, strict=True))


def _all_ended(last_pages: dict[int, tuple[int, int]]) -> bool:
    return all(flags & END_OF_STREAM for _, flags in last_pages.values())


def _check_ended(last_pages: dict[int, tuple[int, int]]) -> None:
    if not _all_ended(last_pages):
        raise AudioError("breaks off: its last Ogg page is not marked as the end")
