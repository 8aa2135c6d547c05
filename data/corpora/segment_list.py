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
from data.manifests.columns import number_of

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
        problem = _problem_of_recording(audio)
        if problem:
            rows.reject(problem, place=path)
            continue
        recording = path.parent / audio["path"]
        for segment in audio["segments"]:
            problem = _problem_of_segment(segment, text_key)
            if problem:
                name = ""
                if isinstance(segment, dict):
                    name = str(segment.get("sid", ""))
                rows.reject(f"a segment of {recording.name} {problem}", place=path, key=name)
                continue
            start_s = number_of(segment["begin_time"])
            seconds = round(number_of(segment["end_time"]) - start_s, 6)
            speaker = str(segment.get("speaker") or "")
            if speaker == "N/A":
                speaker = ""
            yield Segment(
                name=str(segment["sid"]),
                clip=Clip(recording, start_s, seconds),
                text=segment[text_key],
                subsets=frozenset(segment["subsets"]),
                speaker=speaker,
                confidence=number_of(segment.get("confidence", 1.0)),
            )


def _problem_of_recording(audio: Any) -> str:
    """Why the segments of a recording cannot be told; empty where they can."""
    if not isinstance(audio, dict):
        return f"a recording of the list is {audio!r:.40}, expected an object"
    if not isinstance(audio.get("path"), str):
        return f"a recording of the list has {_seen(audio, 'path')}, expected the name of its file"
    if not isinstance(audio.get("segments"), list):
        return f"a recording of the list, {audio['path']:.80}, has {_seen(audio, 'segments')}, expected a list"
    return ""


def _problem_of_segment(segment: Any, text_key: str) -> str:
    """What keeps a segment from being a row; empty where nothing does."""
    if not isinstance(segment, dict):
        return f"is {segment!r:.40}, expected an object"
    if segment.get("sid") is None:
        return "has no sid, which is its name"
    if not isinstance(segment.get(text_key), str):
        return f"has {_seen(segment, text_key)}, expected a text"
    if not isinstance(segment.get("subsets"), list) or not all(isinstance(name, str) for name in segment["subsets"]):
        return f"has {_seen(segment, 'subsets')}, expected a list of names"
    for name in ("begin_time", "end_time", "confidence"):
        # What has no confidence was not written by a recogniser.
        is_optional = name == "confidence" and name not in segment
        # "nan" and "inf" are numbers for Python, and compare with no length.
        if not is_optional and not math.isfinite(number_of(segment.get(name))):
            return f"has {_seen(segment, name)}, expected a number"
    return ""


def _seen(value: dict[str, Any], name: str) -> str:
    if name in value:
        return f"{value[name]!r:.40} as {name}"
    return f"no {name}"


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
