"""SHA-256 over settings, files and folders: what tells whether a stage is done."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_files(paths: list[Path], root: Path) -> str:
    """Return a SHA-256 over the names and contents of some files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        seen = path.stat()
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(_file_digest(path, seen.st_size, seen.st_mtime_ns))
    return digest.hexdigest()


@functools.cache
def _file_digest(path: Path, size_bytes: int, changed_ns: int) -> bytes:
    """Return the SHA-256 of a file as it is at that size and time: a model is an input of several stages."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _hash_listing(root: Path) -> str:
    """Return a SHA-256 over the names and sizes of all files in a folder, which may be too large to read."""
    listing = sorted((str(path.relative_to(root)), path.stat().st_size) for path in root.rglob("*") if path.is_file())
    return hash_of(listing)
