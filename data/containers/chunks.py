"""Files of chunks, each with a name and a length: WAV (RIFF, RIFX, RF64, BW64), Wave64, AIFF, 8SVX and CAF.

The chunk of samples must fit into the file. Writers to a pipe cannot go back to state its length and leave 0 or nearly
2^31 or 2^32, which mean "to the end of the file". Whole files one after the other are several streams.
"""

import struct
from dataclasses import dataclass, replace
from typing import BinaryIO

from data.containers.mpeg import mpeg_streams
from data.containers.stream import AudioError, Stream, read_at

# Some writers of WAV count their own header among the samples; so few bytes hold no sound.
WAV_SLACK_BYTES = 64
# A header that is repaired is kept in memory.
MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Container:
    """How a container writes its chunks: name, then length, then content."""

    magic: bytes
    forms: tuple[bytes, ...]  # what stands at `form_at`; empty: anything
    form_at: int
    first_chunk: int
    name_bytes: int
    length: struct.Struct
    length_counts_head: bool
    alignment: int
    samples: bytes  # the name of the chunk that holds them

    @property
    def head_bytes(self) -> int:
        return self.name_bytes + self.length.size


LITTLE = struct.Struct("<I")
BIG = struct.Struct(">I")
WAV = Container(
    magic=b"RIFF",
    forms=(b"WAVE",),
    form_at=8,
    first_chunk=12,
    name_bytes=4,
    length=LITTLE,
    length_counts_head=False,
    alignment=2,
    samples=b"data",
)
AIFF = Container(
    magic=b"FORM",
    forms=(b"AIFF", b"AIFC"),
    form_at=8,
    first_chunk=12,
    name_bytes=4,
    length=BIG,
    length_counts_head=False,
    alignment=2,
    samples=b"SSND",
)
# The names of Wave64 are GUIDs that begin with those of RIFF.
WAVE64 = Container(
    magic=b"riff",
    forms=(b"wave",),
    form_at=24,
    first_chunk=40,
    name_bytes=16,
    length=struct.Struct("<Q"),
    length_counts_head=True,
    alignment=8,
    samples=b"data",
)
CAF = Container(
    magic=b"caff",
    forms=(),
    form_at=0,
    first_chunk=8,
    name_bytes=4,
    length=struct.Struct(">Q"),
    length_counts_head=False,
    alignment=1,
    samples=b"data",
)
CONTAINERS = (
    WAV,
    replace(WAV, magic=b"RF64"),
    replace(WAV, magic=b"BW64"),
    replace(WAV, magic=b"RIFX", length=BIG),
    AIFF,
    replace(AIFF, forms=(b"8SVX", b"16SV"), samples=b"BODY"),
    WAVE64,
    CAF,
)


def is_chunked(magic: bytes) -> bool:
    """Whether a file that begins so is one of `CONTAINERS`."""
    return any(magic.startswith(container.magic) for container in CONTAINERS)


def chunk_streams(file: BinaryIO, size: int, start: int) -> tuple[Stream, ...]:
    """The streams from byte `start` on. What libsndfile has to refuse, such as a file without samples, is left to
    it."""
    streams: list[Stream] = []
    while start < size:
        container = _container_at(file, start)
        if container is None:
            break
        stream = _stream_at(file, start, size, container)
        samples = _find_samples(file, start, size, container)
        if samples is not None and _holds_mp3(file, start, container):
            # The frames say how long they are; the header, written before them, is often wrong.
            content, length = samples
            for frames in mpeg_streams(file, min(content + length, stream.stop), content):
                streams.append(replace(frames, start=max(frames.start, content)))
        else:
            streams.append(stream)
        start = stream.stop
    if not streams:
        return (Stream(0, size),)
    return tuple(streams)


def _container_at(file: BinaryIO, start: int) -> Container | None:
    head = read_at(file, start, 40)
    for container in CONTAINERS:
        form = head[container.form_at : container.form_at + 4]
        if head.startswith(container.magic) and (not container.forms or form in container.forms):
            return container
    return None


def _holds_mp3(file: BinaryIO, start: int, container: Container) -> bool:
    """Whether a WAV holds MP3, as some recorders of calls write it: by the format tag of its first chunk."""
    head = read_at(file, start + container.first_chunk, 10)
    return container.magic == b"RIFF" and head.startswith(b"fmt ") and head[8:] == b"\x55\x00"


def _stream_at(file: BinaryIO, start: int, size: int, container: Container) -> Stream:
    """The stream that begins at `start`, up to the end of the file or to the next one."""
    samples = _find_samples(file, start, size, container)
    if samples is None:
        return Stream(start, size)
    content, length = samples
    available = size - content
    if length == 0 and available > 0:
        following = _chunk_at(file, content, container)
        # A chunk that fits into the file: there really are no samples. Anything else is samples.
        if following is None or following[1] > available:
            return _with_length(file, start, content, size, container)
    if _is_open_end(length) and length > available:
        # libsndfile 1.2.2 takes this length of a CAF file for damage.
        if container.magic == b"caff":
            return _with_length(file, start, content, size, container)
        return Stream(start, size)
    slack = WAV_SLACK_BYTES if container.magic == b"RIFF" else 0
    if length > available + slack:
        raise AudioError(f"breaks off: {available} of {length} bytes of samples are there")

    # Behind the samples: other chunks, or another file.
    position = _after(start, content + length, container)
    # libsndfile 1.2.2 reads a Wave64 to the end of the file, whatever lies behind the samples.
    stop = content + length if container.magic == b"riff" else size
    while position < size:
        if _container_at(file, position) is not None:
            return Stream(start, position)
        chunk = _chunk_at(file, position, container)
        if chunk is None and container.alignment == 2 and _chunk_at(file, position - 1, container) is not None:
            # The end of the chunk before it was not padded to an even number of bytes, as it should be.
            position -= 1
            continue
        if chunk is None:
            position = _after_padding(file, position, size)
            if position < size and _container_at(file, position) is None:
                num_bytes = size - position
                raise AudioError(f"holds {num_bytes} bytes behind the end that its header states; save it again")
            continue
        _, length = chunk
        position = _after(start, position + container.head_bytes + length, container)
    return Stream(start, stop)


def _find_samples(file: BinaryIO, start: int, size: int, container: Container) -> tuple[int, int] | None:
    """Where the samples begin, and their number of bytes by the header; None when no chunk holds some."""
    position = start + container.first_chunk
    long_length = 0
    while position < size:
        chunk = _chunk_at(file, position, container)
        if chunk is None:
            return None
        name, length = chunk
        content = position + container.head_bytes
        if name == b"ds64":
            # RF64 keeps here what does not fit into 32 bits.
            long_length = int.from_bytes(read_at(file, content + 8, 8), "little")
        if name == container.samples:
            if length == 0xFFFFFFFF and long_length:
                length = long_length
            return content, length
        position = _after(start, content + length, container)
    return None


def _chunk_at(file: BinaryIO, position: int, container: Container) -> tuple[bytes, int] | None:
    """The name of a chunk, 4 bytes, and its length without its head; None when what stands there is no name."""
    head = read_at(file, position, container.head_bytes)
    name = head[:4]
    if len(head) < container.head_bytes or not name.isascii() or not name.decode().isprintable() or name.isspace():
        return None
    (length,) = container.length.unpack(head[container.name_bytes :])
    if container.length_counts_head:
        length = max(0, length - container.head_bytes)
    return name, length


def _after(start: int, end: int, container: Container) -> int:
    """Where the chunk behind one that ends at `end` begins."""
    return end + -(end - start) % container.alignment


def _is_open_end(length: int) -> bool:
    """Whether a length is one that a writer leaves who does not know it: nearly 2^31, 2^32, 2^63 or 2^64."""
    return any(0 <= limit - length <= 1 << 16 for limit in (1 << 31, 1 << 32, 1 << 63, 1 << 64))


def _with_length(file: BinaryIO, start: int, content: int, size: int, container: Container) -> Stream:
    """The stream with the length of its samples in its header, in the place of 0."""
    if content - start > MAX_HEADER_BYTES:
        raise AudioError(f"has a header of {content - start} bytes that gives no length for its samples")
    header = read_at(file, start, content - start)
    length = size - content
    if container.length_counts_head:
        length += container.head_bytes
    if length >= 1 << (8 * container.length.size - 1):
        raise AudioError("is too large for a header that gives no length for its samples")
    return Stream(content, size, header[: -container.length.size] + container.length.pack(length))


def _after_padding(file: BinaryIO, position: int, size: int) -> int:
    """Where zeros, or the tags of MP3 players, end that begin at `position`."""
    while position < size:
        piece = read_at(file, position, 1 << 16)
        if piece.startswith((b"TAG", b"ID3")):
            return size
        rest = piece.lstrip(b"\0")
        position += len(piece) - len(rest)
        if rest:
            break
    return position
