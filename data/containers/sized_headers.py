"""Containers with one header that states how many samples follow: AU (Sun, NeXT) and NIST Sphere."""

from typing import BinaryIO

from data.containers.stream import AudioError, Stream, read_at

UNKNOWN_LENGTH = 0xFFFFFFFF
AU_HEADER_BYTES = 24


def au_streams(file: BinaryIO, size: int, start: int) -> tuple[Stream, ...]:
    """The streams from byte `start` on; a length of 0 or of ones means "to the end of the file"."""
    streams: list[Stream] = []
    while start < size:
        header = read_at(file, start, AU_HEADER_BYTES)
        if header[:4] != b".snd" or len(header) < AU_HEADER_BYTES:
            raise AudioError(f"holds {size - start} bytes more than its header says; save it again")
        header_size = int.from_bytes(header[4:8], "big")
        length = int.from_bytes(header[8:12], "big")
        available = size - start - header_size
        if length in (0, UNKNOWN_LENGTH):
            whole = header[:8] + max(0, available).to_bytes(8, "big")[4:] + header[12:]
            rest = Stream(start + AU_HEADER_BYTES, size, whole)
            streams.append(rest)
            break
        if length > available:
            raise AudioError(f"breaks off: {max(0, available)} of {length} bytes of samples are there")
        stop = start + header_size + length
        streams.append(Stream(start, stop))
        start = stop
    return tuple(streams)


def nist_streams(file: BinaryIO, size: int) -> tuple[Stream, ...]:
    """The streams of a NIST Sphere file, whose header is lines of name, type and value."""
    streams: list[Stream] = []
    start = 0
    while start < size:
        lines = read_at(file, start, 1024).split(b"\n")
        if lines[0] != b"NIST_1A":
            raise AudioError(f"holds {size - start} bytes more than its header says; save it again")
        numbers: dict[bytes, int] = {b"header_size": _number(lines[1])} if len(lines) > 1 else {}
        for line in lines:
            words = line.split()
            if len(words) == 3 and words[1] == b"-i":
                numbers[words[0]] = _number(words[2])
        missing = {b"header_size", b"sample_count", b"sample_n_bytes", b"channel_count"} - numbers.keys()
        if missing:
            raise AudioError(f"lacks {b' and '.join(sorted(missing)).decode()} in its header: its length is unknown")
        length = numbers[b"sample_count"] * numbers[b"sample_n_bytes"] * numbers[b"channel_count"]
        available = size - start - numbers[b"header_size"]
        if length > available:
            raise AudioError(f"breaks off: {max(0, available)} of {length} bytes of samples are there")
        stop = start + numbers[b"header_size"] + length
        streams.append(Stream(start, stop))
        if stop == start:
            break
        start = stop
    return tuple(streams)


def _number(digits: bytes) -> int:
    # Longer ones are no number of bytes, and slow to read.
    digits = digits.strip()
    return int(digits) if digits.isdigit() and len(digits) < 20 else 0
