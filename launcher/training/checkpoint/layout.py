"""The format of a checkpoint on the disk.

A checkpoint is a folder `step-00000400`: one `rank-00000.safetensors` per process with the intervals of the flattened
parameters and moments that the process owns, and `manifest.json` with the shape of every tensor, the interval that
each file holds of it and the SHA-256 of each file. Any process of any later topology reads the intervals it needs.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from launcher.run_folder import CHECKPOINT_MANIFEST

FORMAT = 1
MANIFEST = CHECKPOINT_MANIFEST

# The kinds of what is stored, beside the optimizer's moments (fragments.MOMENTS).
WEIGHT = "weight"
BUFFER = "buffer"
# The running average of a weight or a buffer.
AVERAGE = "average"


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


class _File(BaseModel, strict=True):
    """What a manifest says of a file."""

    # What leads to another folder is no part of a checkpoint.
    name: str = Field(pattern=r"^rank-[0-9]{5,}\.safetensors$")
    bytes: int = Field(ge=0)
    sha256: str


class _Piece(BaseModel, strict=True):
    """What a manifest says of a piece."""

    file: str = Field(pattern=r"^rank-[0-9]{5,}\.safetensors$")
    kind: str
    name: str
    start: int = Field(ge=0)
    stop: int = Field(ge=0)


class _Manifest(BaseModel, strict=True):
    """The content of manifest.json, as far as it is read."""

    step: int = Field(ge=0)
    trainer: dict[str, Any]
    shapes: dict[str, list[Annotated[int, Field(ge=0)]]]
    pieces: list[_Piece]
    files: list[_File]


def find_problem(manifest: dict[str, Any]) -> str:
    """What is wrong with a manifest of this format; empty when nothing is.

    That its own SHA-256 is right says that it is as it was written, and not by whom.
    """
    try:
        checked = _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        return f"it has, at {'.'.join(map(str, first['loc']))[:80]}: {first['msg']}"
    # No more memory is asked for than there are values in the files.
    lengths: dict[str, int] = {}
    for piece in checked.pieces:
        lengths[piece.name] = max(lengths.get(piece.name, 0), piece.stop)
    for name, shape in checked.shapes.items():
        if math.prod(shape) != lengths.get(name, 0):
            return f"its pieces of {name[:80]} end at {lengths.get(name, 0)}, and its shape is {shape}"
    return ""


def part_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def record_name(rank: int) -> str:
    """The record of a part, which the manifest is made of; it is gone once there is a manifest."""
    return f"rank-{rank:05d}.json"


def manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own `sha256`."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
