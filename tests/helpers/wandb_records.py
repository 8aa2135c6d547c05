"""Reads what W&B recorded of a run without a server: blocks of 32 KiB with framed protocol buffers."""

import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES, FILE_HEADER_BYTES, FRAME = 32768, 7, struct.Struct("<IHB")
FULL, LAST = 1, 4


def read_records(file: Path) -> Iterator:
    """The records of a .wandb file, each a `wandb_internal_pb2.Record`."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = file.read_bytes(), FILE_HEADER_BYTES, b""
    while position + FRAME.size <= len(content):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < FRAME.size:
            position += left
            continue
        _, length, kind = FRAME.unpack_from(content, position)
        parts += content[position + FRAME.size : position + FRAME.size + length]
        position += FRAME.size + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def stage_records(stage: Path) -> list:
    """The records of every attempt of a stage."""
    files = sorted(stage.glob("wandb/*run-*/*.wandb"))
    return [record for file in files for record in read_records(file)]


def artifacts(stage: Path) -> list[tuple[str, str, bool]]:
    """Name, type, and whether it was used (not made), of every artifact but the tables' own, in order."""
    found = [record.artifact for record in stage_records(stage) if record.HasField("artifact")]
    return [
        (artifact.name, artifact.type, artifact.use_after_commit) for artifact in found if artifact.type != "run_table"
    ]
