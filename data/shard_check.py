"""Whether shards are what was written, and what is in them."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data.errors import DataError
from data.shard_index import (
    ShardIndex,
    read_index,
    read_report,
    read_summary,
)


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
    problems = [
        f"{shard['name']}: the SHA-256 is not the recorded one"
        for shard in summary["shards"]
        if _sha256(Path(folder) / shard["name"]) != shard["sha256"]
    ]
    for number, row in enumerate(rows):
        problem = _utterance_problem(index, number, row)
        if problem:
            problems.append(f"{index.names[index.shard[number]]}: {row['key']}: {problem}")
    return problems


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _utterance_problem(index: ShardIndex, number: int, row: dict[str, str]) -> str:
    with (Path(index.folder) / index.names[index.shard[number]]).open("rb") as file:
        file.seek(index.offset[number])
        content = file.read(index.size[number])
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore
        label = json.loads(members[f"{row['key']}.json"])
        header = soundfile.info(io.BytesIO(members[f"{row['key']}.flac"]))
    except (tarfile.TarError, KeyError, ValueError, soundfile.SoundFileError) as error:
        return f"its bytes are not readable ({error!r})"
    if (header.frames, header.samplerate) != (index.samples[number], index.sample_rate_hz):
        return f"{header.frames} samples at {header.samplerate} Hz, the index says {index.samples[number]}"
    if label["text"] != row["text"] or len(row["text"]) != index.text_length[number]:
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
        "characters": {"total": int(index.text_length.sum()), "distinct": "".join(sorted(characters))},
        "speakers": dict(sorted(speakers.items())),
        "languages": dict(sorted(languages.items())),
    }
