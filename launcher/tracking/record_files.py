"""Which files a record of W&B sends along when it is sent, and whether each of them is one of the run's.

A record names files: what lies in its folder `files`, and what its artifacts were staged from, by whole paths. `wandb
sync` sends whatever is there. In a run folder from somebody else that could be any file of this user.
"""

import importlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.files import open_regular

# Records lie in blocks, cut into pieces: checksum, length and kind, then the content (LevelDB's log format).
BLOCK_BYTES = 1 << 15
FILE_HEADER_BYTES = 7
PIECE_HEADER = struct.Struct("<IHB")
# Kinds of pieces: a whole record, and the last piece of one.
WHOLE = 1
LAST = 4


def file_elsewhere(record_file: Path, own_folders: Sequence[Path]) -> str | None:
    """Return the first file out of `own_folders` that would be sent with a record; None where there is none.

    ValueError when the record is none of W&B's, OSError when it cannot be read.
    """
    inside = [os.path.realpath(folder) for folder in own_folders]
    for path in _named_files(record_file):
        target = os.path.realpath(path)
        is_inside = any(target.startswith(folder + os.sep) for folder in inside)
        # What is not there is not sent: a run folder may have been moved since.
        if not is_inside and os.path.exists(target):
            return target
    return None


def _named_files(record_file: Path) -> Iterator[str]:
    """Yield the paths of the files that a record names."""
    from google.protobuf.message import DecodeError

    # Of the version that is installed: its names are made when it is imported.
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    yield str(record_file)
    folder = record_file.parent / "files"
    # W&B sends what lies here whether or not the record names it.
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            yield os.path.join(parent, name)
    for content in _contents(record_file):
        record = messages.Record()
        try:
            record.ParseFromString(content)
        except DecodeError as error:
            raise ValueError(f"{record_file.name} is no record of W&B ({error})") from None
        for item in record.files.files:
            yield os.path.join(folder, item.path)
        for artifact in (record.artifact, record.request.log_artifact.artifact):
            yield from _files_of_artifact(artifact)
        if record.tbrecord.log_dir:
            yield record.tbrecord.log_dir


def _files_of_artifact(artifact: Any) -> Iterator[str]:
    if artifact.manifest.manifest_file_path:
        yield artifact.manifest.manifest_file_path
    for entry in artifact.manifest.contents:
        if entry.local_path:
            yield entry.local_path
        # A reference to a local file is sent as such a file by some versions.
        if entry.ref.startswith("file://"):
            yield entry.ref.removeprefix("file://")


def _contents(record_file: Path) -> Iterator[bytes]:
    """Yield the content of each record of a file; one that a kill cut short is left out."""
    position = FILE_HEADER_BYTES
    pieces: list[bytes] = []
    with open_regular(record_file) as file:
        file.seek(position)
        while True:
            left = BLOCK_BYTES - position % BLOCK_BYTES
            if left < PIECE_HEADER.size:
                # A header is not cut in two: the rest of the block is empty.
                file.seek(left, os.SEEK_CUR)
                position += left
            header = file.read(PIECE_HEADER.size)
            if len(header) < PIECE_HEADER.size:
                return
            _, length, kind = PIECE_HEADER.unpack(header)
            pieces.append(file.read(length))
            position += PIECE_HEADER.size + length
            if len(pieces[-1]) < length:
                return
            if kind in (WHOLE, LAST):
                yield b"".join(pieces)
                pieces.clear()
