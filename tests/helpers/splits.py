"""Splits that are there as far as their shards.json says."""

from typing import Any


def summary_of(*digests: str, utterances: int = 3, seconds: float = 4.5) -> dict[str, Any]:
    """The content of a shards.json whose shards have these SHA-256s."""
    shards = []
    for number, digest in enumerate(digests):
        shard = {"name": f"shard-{number:06d}.tar", "utterances": utterances, "seconds": seconds}
        shards.append(shard | {"sha256": digest, "bytes": 1})
    return {"format": 1, "sample_rate_hz": 16000, "made_from": "", "shards": shards, "rejected": []}
