"""lhotse's manifests as rows: cuts, or supervisions with the recordings that lie beside them.

One row per supervision, which is read by its offset in the recording; a cut without supervisions is one row without a
text. What would need more than reading a file (mixed and padded cuts, transforms, commands, URLs) is rejected by its
reason. Paths count from the manifest or, as for lhotse, from the working folder.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.manifests.rows import SUFFIXES, Columns, Row, beside_or_here, read_rows

# Part of the names that lhotse gives to manifests of both kinds.
SUPERVISIONS = "supervisions"
RECORDINGS = "recordings"
# What lhotse writes of a supervision or cut, beside custom fields of a user; the others mean nothing here.
SUPERVISION = ("id", "recording_id", "start", "duration", "channel", "text", "language", "speaker")
CUT = ("id", "start", "duration", "channel", "supervisions", "recording", "type", "features")
# Anything may stand where lhotse writes an object, a list or a number.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)


def kind_of(row: Columns) -> str:
    """cuts, supervisions or recordings, as which of lhotse's manifests the first row reads; empty for other rows."""
    if str(row.get("type", "")).endswith("Cut") and "id" in row:
        return "cuts"
    if {"id", "recording_id", "start", "duration"} <= row.keys():
        return "supervisions"
    if {"id", "sources", "sampling_rate"} <= row.keys():
        return "recordings"
    return ""


def recordings_beside(path: Path) -> Path:
    """The manifest of recordings that belongs to one of supervisions, by lhotse's names. DataError without one."""
    name = path.name.replace(SUPERVISIONS, RECORDINGS)
    stem = re.sub(r"(\.jsonl|\.json)(\.gz)?$", "", name)
    for suffix in SUFFIXES:
        for ending in ("", ".gz"):
            other = path.with_name(f"{stem}{suffix}{ending}")
            if RECORDINGS in stem and other.is_file():
                return other
    raise DataError(
        f"{path} is a manifest of lhotse's supervisions, and that of their recordings is not beside it. Its name must "
        f"be the same with {RECORDINGS} for {SUPERVISIONS}, such as train_{RECORDINGS}.jsonl.gz beside "
        f"train_{SUPERVISIONS}.jsonl.gz. Or write cuts (lhotse cut simple) and name those."
    )


def read_lhotse(path: Path, rows: Iterable[Row], kind: str) -> Iterator[Row]:
    """The rows of a manifest of `kind`, in the columns of `data.manifests.manifest`. DataError for recordings alone."""
    if kind == "recordings":
        raise DataError(
            f"{path} lists lhotse's recordings, which have no texts; name the supervisions or cuts instead."
        )
    recordings: dict[str, Any] = {}
    beside = path
    if kind == "supervisions":
        beside = recordings_beside(path)
        for row in read_rows(beside, ()):
            if isinstance(row.content, str):
                yield Row(row.line, row.content, beside.name)
                continue
            name = str(row.content.get("id"))
            # The same recording may be listed twice; the first of two that differ is taken.
            if recordings.setdefault(name, row.content) != row.content:
                reason = f"recording {row.content.get('id')!s:.80} is already that of another line"
                yield Row(row.line, reason, beside.name)

    for row in rows:
        if isinstance(row.content, str):
            yield row
            continue
        if kind == "cuts":
            contents = cut_rows(row.content, path.parent)
        else:
            contents = [_supervision_row(row.content, recordings, beside)]
        for content in contents:
            yield Row(row.line, content, row.place)


def cut_rows(cut: Columns, folder: Path, tar: Path | None = None) -> list[Columns | str]:
    """The columns of each supervision of a cut, or why it has none; a recording that was stored in Shar is in `tar`."""
    try:
        return _cut(cut, folder, tar)
    except MALFORMED as error:
        return [f"not one of lhotse's cuts ({type(error).__name__}: {error!s:.80})"]


def _supervision_row(supervision: Columns, recordings: dict[str, Any], beside: Path) -> Columns | str:
    try:
        name = supervision["recording_id"]
        if name not in recordings:
            return f"its recording {name!r:.80} is not in {beside.name}"
        return _supervision(supervision, 0.0, recordings[name], beside.parent, None)
    except MALFORMED as error:
        return f"not one of lhotse's supervisions ({type(error).__name__}: {error!s:.80})"


def _cut(cut: Columns, folder: Path, tar: Path | None) -> list[Columns | str]:
    if cut["type"] not in ("MonoCut", "MultiCut"):
        return [f"a {cut['type']!s:.40}, of which the parts are not mixed here; save its audio and name that"]
    if not cut.get("recording"):
        return ["a cut without a recording: features alone are not read"]
    supervisions = cut.get("supervisions") or []
    if not supervisions:
        # Speech without a text, which learning without transcripts can use.
        supervisions = [{"id": cut["id"], "start": 0.0, "duration": cut["duration"], "channel": cut["channel"]}]
    unknown = {name: value for name, value in cut.items() if name not in CUT}
    contents: list[Columns | str] = []
    for supervision in supervisions:
        columns = _supervision(supervision, float(cut["start"]), cut["recording"], folder, tar)
        if isinstance(columns, dict):
            columns = unknown | columns
        contents.append(columns)
    return contents


def _supervision(
    supervision: Columns,
    offset_s: float,
    recording: Columns,
    folder: Path,
    tar: Path | None,
) -> Columns | str:
    """The columns of a supervision, whose start counts from `offset_s` of its recording."""
    if recording.get("transforms"):
        return "its recording has transforms (of speed, rate or volume), which are not applied here"
    channels = supervision.get("channel", 0)
    if not isinstance(channels, list):
        channels = [channels]
    for source in recording["sources"]:
        if not set(channels) <= set(source["channels"]):
            continue
        is_in_tar = tar is not None and source["type"] == "shar"
        if source["type"] != "file" and not is_in_tar:
            return f"its recording is a {source['type']!s:.40}, and recordings are read from files alone"
        columns = {name: value for name, value in supervision.items() if name not in SUPERVISION}
        columns["key"] = supervision["id"]
        if tar is not None and is_in_tar:
            columns["audio"] = str(tar.absolute())
        else:
            columns["audio"] = beside_or_here(folder, source["source"])
        # Sums of decimals end in ...0001.
        columns["start_s"] = round(offset_s + float(supervision["start"]), 6)
        columns["seconds"] = supervision["duration"]
        columns["text"] = supervision.get("text")
        columns["speaker"] = supervision.get("speaker")
        columns["language"] = supervision.get("language")
        # All channels of a file are averaged, as those of any other.
        if len(channels) < len(source["channels"]):
            if len(channels) > 1:
                return f"channels {channels} are some of {len(source['channels'])}; one or all can be read"
            columns["channel"] = source["channels"].index(channels[0])
        return columns
    return f"channel {channels!s:.40} is in no file of its recording"
