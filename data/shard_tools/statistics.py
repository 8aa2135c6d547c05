"""What is in a split, counted from its records; no audio is read."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data.shard_index import read_index, read_report


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
