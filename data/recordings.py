"""Audio files as they decode: their rate, channels and true length, and their samples in pieces of bounded memory.

What is accepted has bounds, so that a small file cannot ask for more memory or time than a machine has. They are stated
here, and in docs/data-plan.md for users.
"""

import functools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from data.containers import AudioError, ForeignAudioError, Stream, StreamFile, read_streams
from data.containers.g722 import RATE_HZ as G722_RATE_HZ
from data.containers.g722 import decode_g722, is_g722

# Below: no microphone; a file of 20 kB at 1 Hz would become gigabytes at 16 kHz. Above: no recorder of speech.
MIN_RATE_HZ = 1000
MAX_RATE_HZ = 192_000
MAX_CHANNELS = 64
# One utterance of a corpus: 230 MB of samples at 16 kHz. Files of any length may hold segments.
MAX_UTTERANCE_S = 3600.0
# One recording that is transcribed.
MAX_RECORDING_S = 14_400.0
# Values decoded at a time: 32 MB. What is shorter is decoded in one go.
BLOCK_VALUES = 1 << 23
# What a frame of MP3 says may begin up to 511 bytes back, in the frames before it: in 24 of the smallest, of up to 1152
# samples each. After a seek libsndfile 1.2 has not read as many, and gives noise in the place of what it lacks.
MP3_RESERVOIR_SAMPLES = 25 * 1152


@dataclass(frozen=True, slots=True)
class Recording:
    """An audio file: what it decodes to when its streams are joined."""

    path: Path
    sample_rate_hz: int
    channels: int
    streams: tuple[Stream, ...]
    stream_samples: tuple[int, ...]  # per channel

    @property
    def num_samples(self) -> int:
        """Samples per channel."""
        return sum(self.stream_samples)

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate_hz

    def read(self, start: int, num_samples: int) -> Iterator[np.ndarray]:
        """The samples from `start` on, float32 [samples, channels], in blocks of bounded size.

        AudioError when they cannot be decoded, or fewer can than there should be.
        """
        stop = start + num_samples
        stream_start = 0
        for stream, stream_samples in zip(self.streams, self.stream_samples, strict=True):
            begin = max(start, stream_start)
            end = min(stop, stream_start + stream_samples)
            if begin < end:
                yield from self._read_stream(stream, begin - stream_start, end - begin)
            stream_start += stream_samples

    def _read_stream(self, stream: Stream, start: int, num_samples: int) -> Iterator[np.ndarray]:
        block_size = BLOCK_VALUES // self.channels
        num_read = 0
        try:
            with open_stream(self.path, stream) as audio:
                lead_samples = 0
                if audio.format == "MP3":
                    lead_samples = MP3_RESERVOIR_SAMPLES
                if start and audio.seekable():
                    audio.seek(start)
                elif start:
                    # GSM in WAV has no way but to decode what lies before.
                    for begin in range(0, start, block_size):
                        audio.read(min(block_size, start - begin), dtype="float32", always_2d=True)
                while num_read < num_samples:
                    size = min(block_size, num_samples - num_read)
                    position = start + num_read
                    lead = min(lead_samples, position)
                    if lead:
                        # In one read with what is wanted: soundfile 0.14 seeks behind each, which forgets them.
                        audio.seek(position - lead)
                    block = audio.read(lead + size, dtype="float32", always_2d=True)[lead:]
                    if len(block) == 0:
                        break
                    num_read += len(block)
                    yield block
        except soundfile.SoundFileError as error:
            raise AudioError(f"{self.path} is damaged ({error})") from error
        if num_read < num_samples:
            raise AudioError(f"{self.path} breaks off: {num_read} of {num_samples} samples could be decoded")


@contextmanager
def open_stream(path: Path, stream: Stream) -> Iterator[soundfile.SoundFile]:
    """One stream of a file, open for decoding."""
    if is_g722(path):
        samples = decode_g722(path)
        with soundfile.SoundFile(samples, "r", G722_RATE_HZ, 1, "PCM_16", "LITTLE", "RAW") as audio:
            yield audio
        return
    is_whole_file = stream == Stream(0, path.stat().st_size)
    # A file of this name is taken for samples without a header, of whatever rate its reader knows.
    if is_whole_file and path.suffix.lower() != ".raw":
        # As bytes: a name may be no UTF-8.
        with soundfile.SoundFile(os.fsencode(path)) as audio:  # pyright: ignore[reportArgumentType]
            yield audio
    else:
        # Any object with read, seek and tell will do.
        file = StreamFile(path, stream)
        with file, soundfile.SoundFile(file) as audio:  # pyright: ignore[reportArgumentType]
            yield audio


def read_recording(path: Path) -> Recording:
    """What an audio file holds; nothing of it is decoded.

    AudioError when it is missing, no audio, shorter than its header or pages say, or beyond the bounds of this module.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise AudioError(f"{path} cannot be read ({error})") from error
    # A named pipe would be waited for without end.
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path} is no regular file")
    return _read_recording(path, status.st_size, status.st_mtime_ns)


def forget_recordings() -> None:
    """Give up what is remembered of files that were read, for a process that reads temporary ones without end."""
    _read_recording.cache_clear()


# Many clips may lie in one long file, which is then walked once. Size and time: a file may be replaced.
@functools.lru_cache(maxsize=1 << 16)
def _read_recording(path: Path, size: int, modified_ns: int) -> Recording:
    # Without a header, its first bytes may look like those of any container.
    streams = (Stream(0, size),) if is_g722(path) else read_streams(path)
    shapes: set[tuple[int, int]] = set()
    stream_samples: list[int] = []
    try:
        for stream in streams:
            with open_stream(path, stream) as audio:
                # It takes anything in which two frames seem to follow each other for MP3, and by its name for u-law.
                is_guess = audio.format == "MP3" or path.suffix.lower() in (".au", ".snd")
                if is_guess and not stream.is_checked:
                    raise ForeignAudioError(
                        f"{path} is no audio, or damaged, and not readable as audio (it has no header)"
                    )
                shapes.add((audio.samplerate, audio.channels))
                stream_samples.append(audio.frames)
    except soundfile.SoundFileError as error:
        seen = str(error)
        # Its text alone says again, with the path as bytes, that this file could not be opened.
        if isinstance(error, soundfile.LibsndfileError):
            seen = error.error_string
        raise ForeignAudioError(
            f"{path} is no audio, or damaged, and not readable as audio ({seen.rstrip('.')}); if other programs play "
            "it, convert it to FLAC or to WAV of 16 bits"
        ) from error
    if len(shapes) > 1:
        rates_hz = ", ".join(f"{rate_hz} Hz with {channels} channels" for rate_hz, channels in sorted(shapes))
        raise AudioError(f"{path} holds {len(streams)} recordings of unequal shape ({rates_hz}); give them as files")

    ((sample_rate_hz, channels),) = shapes
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise AudioError(
            f"{path} has a sample rate of {sample_rate_hz} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz can be read"
        )
    if channels > MAX_CHANNELS:
        raise AudioError(f"{path} has {channels} channels; up to {MAX_CHANNELS} can be read")
    return Recording(path, sample_rate_hz, channels, streams, tuple(stream_samples))
