"""The JSON files of GigaSpeech and WenetSpeech: long recordings, each with its segments.

Such a file has gigabytes and is never held as a whole: one recording with its segments is parsed at a time.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.audio import Clip
from data.corpora.published import RowCollector
from data.errors import DataError
from data.files import open_regular


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


def _audios(path: Path) -> Iterator[Any]:
    # Imported here, as recipes of other corpora do not need it.
    import ijson

    try:
        with open_regular(path) as file:
            # Without use_float, numbers are Decimals.
            yield from ijson.items(file, "audios.item", use_float=True)
    except FileNotFoundError as error:
        raise DataError(f"There is no {path}; it comes with the corpus: set corpus.root to its folder.") from error
    except (ijson.JSONError, ValueError, OSError) as error:
        raise DataError(
            f"{path} cannot be read to its end ({error!s:.200}); it is damaged or half of a download: fetch it again."
        ) from error
