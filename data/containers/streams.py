"""Which streams of audio a file holds, by its first bytes.

Concatenated files, such as chained Ogg, are several streams. Refused (`AudioError`) is a file that ends before its own
header, pages or frames say so. Containers that are not named here (VOC, PVF, MATLAB and others that libsndfile reads)
are one stream, of which nothing is checked.
"""

import os
from pathlib import Path

from data.containers.chunks import chunk_streams, is_chunked
from data.containers.flac import flac_streams
from data.containers.foreign import refuse_foreign
from data.containers.mpeg import find_mpeg, id3_length, mpeg_streams
from data.containers.ogg import ogg_streams
from data.containers.sized_headers import au_streams, nist_streams
from data.containers.stream import AudioError, Stream, read_at
from data.files import regular_descriptor

# Recordings one after the other in a file: a day of radio has some thousands. Each is opened by itself.
MAX_STREAMS = 10_000


def read_streams(path: Path) -> tuple[Stream, ...]:
    """The streams of a file in order. AudioError when it cannot be read, is empty, breaks off, or has too many."""
    streams = _read_streams(path)
    if len(streams) > MAX_STREAMS:
        raise AudioError(f"{path} holds {len(streams)} recordings one after the other, more than {MAX_STREAMS}")
    return streams


def _read_streams(path: Path) -> tuple[Stream, ...]:
    try:
        # With a buffer of this size, a walk from frame to frame reads a file once and in large pieces.
        with os.fdopen(regular_descriptor(path), "rb", buffering=1 << 18) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise AudioError("is an empty file")
            start = 0
            tag_length = id3_length(read_at(file, start, 10))
            while tag_length > 0 and start < size:
                start += tag_length
                tag_length = id3_length(read_at(file, start, 10))

            magic = read_at(file, start, 16)
            refuse_foreign(magic)
            if magic.startswith(b"OggS"):
                return ogg_streams(file, size, start)
            if magic.startswith(b"fLaC"):
                return flac_streams(file, size)
            if magic.startswith(b".snd"):
                return au_streams(file, size, start)
            if magic.startswith(b"NIST_1A"):
                return nist_streams(file, size)
            if is_chunked(magic):
                return chunk_streams(file, size, start)
            mpeg_start = find_mpeg(file, start)
            if mpeg_start is not None:
                return mpeg_streams(file, size, mpeg_start)
            return (Stream(0, size, is_checked=False),)
    except OSError as error:
        raise AudioError(f"{path} cannot be read ({error.strerror})") from error
    except AudioError as error:
        raise type(error)(f"{path} {error}") from error
