"""The format of a checkpoint on the disk.

A checkpoint is a folder `step-00000400`: one `rank-00000.safetensors` per process with the intervals of the flattened
parameters and moments that the process owns, and `manifest.json` with the shape of every tensor, the interval that
each file holds of it and the SHA-256 of each file. Any process of any later topology reads the intervals it needs.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
# The name of the newest checkpoint, in a file beside the checkpoints.
LATEST = "latest"

# The kinds of what is stored, beside the optimizer's moments (fragments.MOMENTS).
WEIGHT = "weight"
BUFFER = "buffer"


@dataclass(frozen=True)
class Piece:
    """The interval [start, stop) of a flattened tensor, stored under `kind/name` in a file."""

    file: str
    kind: str
    name: str
    start: int
    stop: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"


def part_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def record_name(rank: int) -> str:
    """The record of a part, which the manifest is made of; it is gone once there is a manifest."""
    return f"rank-{rank:05d}.json"


def manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own `sha256`."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
