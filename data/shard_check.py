"""Whether shards are what was written, and what is in them."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data.errors import DataError
from data.files import file_sha256
from data.reader import NUM_MEMBERS, RangeError, RangeReader, parse_label
from data.shard_index import ShardIndex, read_index, read_report, read_summary
from data.tar_members import read_members


def verify(folder: Path) -> list[str]:
    """Compare a split with its own records; an empty list when all agrees, else one sentence per problem.
    Checks the SHA-256 of every shard and, utterance by utterance, that the indexed bytes hold its two
    members, that the FLAC has the recorded rate and number of samples, and that the texts agree.
    """
    try:
        index = read_index(folder)
        summary = read_summary(folder)
        rows = list(index.rows())
    except DataError as error:
        return [str(error)]

    problems: list[str] = []
    for shard in summary["shards"]:
        if file_sha256(Path(folder) / shard["name"]) != shard["sha256"]:
            problems.append(f"{shard['name']}: the SHA-256 is not the recorded one")
    for utterance, row in enumerate(rows):
        problem = _utterance_problem(index, utterance, row)
        if problem:
            problems.append(f"{index.shard_name(utterance)}: {row['key']}: {problem}")
    return problems


def _utterance_problem(index: ShardIndex, utterance: int, row: dict[str, str]) -> str:
    try:
        # Once: a folder on this machine either answers or does not.
        ranges = RangeReader(index.folder, attempts=1)
        offset = int(index.offset[utterance])
        size = int(index.size[utterance])
        content = ranges.read(index.shard_name(utterance), offset, size)
        members = read_members(content, NUM_MEMBERS)
        label = parse_label(members[f"{row['key']}.json"])
        # The header alone: the samples' bytes are covered by the shard's SHA-256.
        header = soundfile.info(io.BytesIO(members[f"{row['key']}.flac"]))
    except (RangeError, KeyError, ValueError, soundfile.SoundFileError) as error:
        return f"its bytes are not readable ({error!r})"

    if header.frames != index.samples[utterance] or header.samplerate != index.sample_rate_hz:
        return f"{header.frames} samples at {header.samplerate} Hz, the index says {index.samples[utterance]}"
    if label["text"] != row["text"] or len(row["text"]) != index.text_length[utterance]:
        return "its text is not that of transcripts.jsonl"
    return ""


def stats(folder: Path) -> dict[str, Any]:
    """Hours, lengths in seconds, characters, speakers, languages (or "unknown") of a split. Raises as `read_index`."""
    index = read_index(folder)
    report = read_report(folder)
    seconds = index.samples / index.sample_rate_hz

    speakers: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    characters: set[str] = set()
    for row in index.rows():
        speakers[row["speaker"] or "unknown"] += 1
        languages[row["language"] or "unknown"] += 1
        characters.update(row["text"])

    return {
        "utterances": len(index),
        "hours": report.seconds / 3600,
        "shards": report.shards,
        "bytes": report.bytes,
        "sample_rate_hz": index.sample_rate_hz,
        "rejected": len(report.rejected),
        "seconds": {
            "shortest": float(seconds.min()),
            "mean": float(seconds.mean()),
            "95 %": float(np.quantile(seconds, 0.95)),
            "longest": float(seconds.max()),
        },
        "characters": {
            "total": int(index.text_length.sum()),
            "distinct": "".join(sorted(characters)),
        },
        "speakers": dict(sorted(speakers.items())),
        "languages": dict(sorted(languages.items())),
    }
