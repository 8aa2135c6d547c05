"""The JSON files of GigaSpeech and WenetSpeech: long recordings, each with its segments.

Such a file has gigabytes and is never held as a whole: one recording with its segments is parsed at a time.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data.audio import Clip
from data.corpora.published import RowCollector
from data.errors import DataError
from data.files import open_regular

# Of one recording, whose segments are held at once: those of a day of speech.
MAX_RECORDING_BYTES = 2**24
# ijson makes a prefix of all names on the way to a value, for each value of a piece that it reads, before it gives the
# first: much of a large piece of brackets alone.
MAX_PREFIX_CHARACTERS = 1000
PIECE_BYTES = 2**12


class Segment(NamedTuple):
    """A stretch of a long recording with its text."""

    name: str
    clip: Clip
    text: str
    subsets: frozenset[str]
    speaker: str
    confidence: float


def read_segments(path: Path, text_key: str, rows: RowCollector) -> Iterator[Segment]:
    """The segments of a list in its order, their recordings relative to its folder. What is no segment is rejected.

    Raises DataError when the list cannot be read to its end: it may be half of a download.
    """
    for audio in _audios(path):
        try:
            recording = path.parent / audio["path"]
            segments = list(audio["segments"])
        except (TypeError, KeyError) as error:
            rows.reject(f"a recording without {error!r:.80}", place=path)
            continue
        for segment in segments:
            try:
                start_s = float(segment["begin_time"])
                seconds = round(float(segment["end_time"]) - start_s, 6)
                clip = Clip(recording, start_s, seconds)
                name = str(segment["sid"])
                text = str(segment[text_key])
                subsets = frozenset(segment["subsets"])
                confidence = float(segment.get("confidence", 1.0))
            except (TypeError, KeyError, ValueError, AttributeError) as error:
                rows.reject(f"a segment of {recording.name} without {error!r:.80}", place=path)
                continue
            # "nan" is a number for Python, and compares with no length.
            if not math.isfinite(start_s + seconds):
                rows.reject("its begin_time or end_time is no number", place=path, key=name)
                continue
            speaker = str(segment.get("speaker") or "")
            if speaker == "N/A":
                speaker = ""
            yield Segment(name, clip, text, subsets, speaker, confidence)


class _RecordingsFile:
    """A list as ijson reads it, one recording at a time. ValueError where one is larger than any is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # Of the recording that is being read.
        self._num_bytes = 0

    def read(self, size: int) -> bytes:
        if self._num_bytes > MAX_RECORDING_BYTES:
            raise ValueError(f"a recording has more than {MAX_RECORDING_BYTES} bytes")
        self._num_bytes += size
        return self._file.read(size)

    def events(self) -> Iterator[tuple[str, str, Any]]:
        """What is read, as ijson tells it: the names on the way to a value, what it is, and the value."""
        # Imported here, as recipes of other corpora do not need it.
        import ijson

        # Without use_float, numbers are Decimals.
        for prefix, event, value in ijson.parse(self, use_float=True, buf_size=PIECE_BYTES):
            if prefix == "audios.item":
                self._num_bytes = 0
            if len(prefix) > MAX_PREFIX_CHARACTERS:
                raise ValueError("its values are nested too deep")
            yield prefix, event, value


def _audios(path: Path) -> Iterator[Any]:
    # Imported here, as recipes of other corpora do not need it.
    import ijson

    try:
        with open_regular(path) as file:
            yield from ijson.items(_RecordingsFile(file).events(), "audios.item")
    except FileNotFoundError as error:
        raise DataError(f"There is no {path}; it comes with the corpus: set corpus.root to its folder.") from error
    except (ijson.JSONError, ValueError, OSError) as error:
        raise DataError(
            f"{path} cannot be read to its end ({error!s:.200}); it is damaged or half of a download: fetch it again."
        ) from error
