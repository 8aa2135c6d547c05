"""MPEG audio (MP3): a row of frames, each of which says its own size (ISO/IEC 11172-3, 13818-3).

A file has no header. Encoders put a frame in front that holds the number of frames instead of sound (Xing, Info or
VBRI); where there is none, decoders guess the length from the file's size and the first frames, and stop there. So the
frames are counted, and a frame that says their number goes in front of those that have none, or a wrong one.
"""

import functools
from dataclasses import dataclass, field
from typing import BinaryIO

from data.containers.stream import AudioError, Stream, read_at

# By layer (1, 2, 3): kbit/s of bitrate codes 1 to 14, of MPEG 1 and of MPEG 2 and 2.5.
BITRATES_1 = {
    1: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
BITRATES_2 = {
    1: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES_HZ = (44100, 48000, 32000)
# By the two bits of the version; 1 is reserved.
RATE_DIVISORS = {3: 1, 2: 2, 0: 4}
# Version, layer and sample rate: equal in all frames of a stream.
SAME_IN_STREAM = 0xFFFE0C00
# The head of a frame, up to and with the counts of a Xing or VBRI frame.
HEAD_BYTES = 56
# How far a first frame is looked for, and how many frames in a row are no accident: in four heads, some 80 bits have to
# be right.
SEARCH_BYTES = 1 << 16
FRAMES_IN_A_ROW = 4
# What ends lyrics behind the last frame, and in how many bytes it is looked for.
LYRICS_END = b"LYRICS200"
LYRICS_BYTES = (1 << 8, 1 << 12, 1 << 16, 1 << 20)
# Encoders disagree on whether the frame that holds the number is counted in it.
COUNT_TOLERANCE = 1


@dataclass(frozen=True, slots=True)
class Frame:
    """What the head of a frame says."""

    word: int
    num_bytes: int
    layer: int
    num_samples: int
    is_mpeg1: bool
    is_mono: bool

    @property
    def side_information_bytes(self) -> int:
        if self.is_mpeg1:
            return 17 if self.is_mono else 32
        return 9 if self.is_mono else 17


@dataclass(slots=True)
class _Run:
    """Frames of one stream, and what the frame in front of them, if there is one, says about their number."""

    start: int
    first_sound: int
    first: Frame
    is_tagged: bool
    promised: int | None
    stop: int = 0
    num_frames: int = 0
    sizes: set[int] = field(default_factory=set)


def find_mpeg(file: BinaryIO, start: int) -> int | None:
    """Where the first frame begins: at `start`, or a little behind it after zeros or a part of a frame, as recorders of
    radio leave them. None where no frames are."""
    head = read_at(file, start, SEARCH_BYTES)
    if _parse(head) is not None or _has_free_bitrate(head):
        return start
    for offset in range(len(head)):
        first = _parse(head[offset : offset + 4])
        if first is not None and _are_frames(file, start + offset, first):
            return start + offset
    return None


def _are_frames(file: BinaryIO, position: int, first: Frame) -> bool:
    for _ in range(FRAMES_IN_A_ROW):
        frame = _parse(read_at(file, position, 4))
        if frame is None or (frame.word ^ first.word) & SAME_IN_STREAM:
            return False
        position += frame.num_bytes
    return True


def mpeg_streams(file: BinaryIO, size: int, start: int) -> tuple[Stream, ...]:
    """The streams of a file, each of which decodes to all of its frames."""
    runs: list[_Run] = []
    position = start
    while position < size:
        head = read_at(file, position, HEAD_BYTES)
        frame = _parse(head)
        if _has_free_bitrate(head):
            raise AudioError("is MPEG audio of a free bitrate, whose frames do not say their size")
        if frame is None:
            length = _silent_length(file, position, size)
            if length == 0:
                raise AudioError(f"is damaged: no MPEG frame begins at byte {position}")
            position += length
            continue
        if position + frame.num_bytes > size:
            raise AudioError("breaks off within an MPEG frame")
        is_tag, promised = _promised_frames(head, frame)
        if is_tag or not runs or (frame.word ^ runs[-1].first.word) & SAME_IN_STREAM:
            first_sound = position + frame.num_bytes if is_tag else position
            runs.append(_Run(position, first_sound, frame, is_tag, promised))
        if not is_tag:
            runs[-1].num_frames += 1
            runs[-1].sizes.add(frame.num_bytes)
        position += frame.num_bytes
        runs[-1].stop = position
    return tuple(_stream(run, size, is_only=len(runs) == 1) for run in runs)


def _stream(run: _Run, size: int, *, is_only: bool) -> Stream:
    if run.promised is not None:
        if run.num_frames < run.promised - COUNT_TOLERANCE:
            raise AudioError(f"breaks off: {run.num_frames} of {run.promised} MPEG frames are there")
        if run.num_frames <= run.promised + COUNT_TOLERANCE:
            return Stream(0, size) if is_only else Stream(run.start, run.stop)
    # Frames of one size without a tag between them: what a decoder guesses from the file's size is right.
    frame_bytes = run.num_frames * run.first.num_bytes
    if not run.is_tagged and len(run.sizes) == 1 and run.stop - run.first_sound == frame_bytes:
        return Stream(run.first_sound, run.stop)
    if run.first.layer != 3:
        raise AudioError(
            "is MPEG audio of layer 1 or 2 whose frames differ in size, or lie apart: its length is unknown"
        )

    # A frame in front that holds the number of those that follow it: no checksum, bitrate code 9 (room enough at every
    # rate), no padding.
    word = run.first.word & ~0xF200 | 0x19000
    info = _parse(word.to_bytes(4, "big"))
    assert info is not None
    number = b"Info" + (1).to_bytes(4, "big") + run.num_frames.to_bytes(4, "big")
    content = word.to_bytes(4, "big") + bytes(info.side_information_bytes) + number
    return Stream(run.first_sound, run.stop, content.ljust(info.num_bytes, b"\0"))


def _parse(head: bytes) -> Frame | None:
    """The frame that begins with these 4 or more bytes; None when it is none, or one of a free bitrate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    return _frame_of(int.from_bytes(head[:4], "big"))


# Thousands of frames begin with the same few words.
@functools.lru_cache(maxsize=1 << 12)
def _frame_of(word: int) -> Frame | None:
    version = word >> 19 & 3
    layer = 4 - (word >> 17 & 3)
    bitrate_code = word >> 12 & 15
    rate_code = word >> 10 & 3
    if version == 1 or layer == 4 or bitrate_code in (0, 15) or rate_code == 3:
        return None
    is_mpeg1 = version == 3
    bitrates = BITRATES_1 if is_mpeg1 else BITRATES_2
    bits_per_s = 1000 * bitrates[layer][bitrate_code - 1]
    rate_hz = RATES_HZ[rate_code] // RATE_DIVISORS[version]
    padding = word >> 9 & 1
    if layer == 1:
        num_samples = 384
        # Layer 1 counts in slots of 4 bytes.
        num_bytes = 4 * (12 * bits_per_s // rate_hz + padding)
    else:
        num_samples = 1152
        if layer == 3 and not is_mpeg1:
            num_samples = 576
        num_bytes = num_samples // 8 * bits_per_s // rate_hz + padding
    return Frame(word, num_bytes, layer, num_samples, is_mpeg1, is_mono=word >> 6 & 3 == 3)


def _has_free_bitrate(head: bytes) -> bool:
    if len(head) < 4 or head[2] >> 4 != 0:
        return False
    # The frame that it would be under another bitrate.
    with_bitrate = bytes((*head[:2], head[2] | 0x10, head[3]))
    return _parse(with_bitrate) is not None


def _promised_frames(head: bytes, frame: Frame) -> tuple[bool, int | None]:
    """Whether a frame holds the number of frames instead of sound, and the number if it is given."""
    if frame.layer != 3:
        return False, None
    # With a checksum of two bytes or without.
    for begin in (4 + frame.side_information_bytes, 6 + frame.side_information_bytes):
        if head[begin : begin + 4] in (b"Xing", b"Info"):
            flags = int.from_bytes(head[begin + 4 : begin + 8], "big")
            if flags & 1:
                return True, int.from_bytes(head[begin + 8 : begin + 12], "big")
            return True, None
    # Decoders do not read the number in VBRI.
    return head[36:40] == b"VBRI", None


def id3_length(head: bytes) -> int:
    """The bytes of an ID3v2 tag that begins so; 0 when none does."""
    if not head.startswith(b"ID3") or len(head) < 10:
        return 0
    # Seven bits of each byte count.
    length = 0
    for byte in head[6:10]:
        length = length << 7 | byte & 0x7F
    footer = 10 if head[5] & 0x10 else 0
    return 10 + length + footer


def _silent_length(file: BinaryIO, position: int, size: int) -> int:
    """The bytes of a tag (ID3v1, ID3v2, APE, Lyrics3) that begins here, or of zeros to the end; 0 for neither."""
    head = read_at(file, position, 32)
    if head.startswith(b"TAG"):
        return min(128, size - position)
    if head.startswith(b"APETAGEX"):
        # The size is that of items and footer; the header has 32 bytes of its own.
        return 32 + int.from_bytes(head[12:16], "little")
    if head.startswith(b"LYRICSBEGIN"):
        # In growing pieces: there may be thousands of short ones.
        for num_bytes in LYRICS_BYTES:
            end = read_at(file, position, num_bytes).find(LYRICS_END)
            if end >= 0:
                return end + len(LYRICS_END)
        return size - position
    if not head.startswith(b"\0"):
        return id3_length(head)
    for begin in range(position, size, 1 << 16):
        # Zeros between two frames are lost sound.
        if any(read_at(file, begin, 1 << 16)):
            return 0
    return size - position
