"""SHA-256 over settings, files and folders: what tells whether a stage is done."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from data.files import file_sha256


def hash_value(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_files(paths: list[Path], root: Path) -> str:
    """Return a SHA-256 over the names, relative to `root`, and contents of some files."""
    digest = hashlib.sha256()
    # Folders list their files in any order.
    for path in sorted(paths):
        stat = path.stat()
        # A relative name: a run folder may be moved.
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(_file_digest(path, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@functools.cache
def _file_digest(path: Path, size_bytes: int, changed_ns: int) -> bytes:
    """Return the SHA-256 of a file; a model, which is an input of several stages, is read once."""
    # Size and time are part of the cache's key: a file that was written anew is read anew.
    return bytes.fromhex(file_sha256(path))


def files_below(folder: Path) -> list[Path]:
    """Return all files of a folder and of the folders in it; none where it is no folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def hash_folder(folder: Path) -> str | None:
    """Return a SHA-256 over all files of a folder, None when there is nothing in it."""
    files = files_below(folder)
    if not files:
        return None
    return hash_files(files, folder)


def hash_listing(paths: list[Path], root: Path) -> str:
    """Return a SHA-256 over the names, relative to `root`, and sizes of some files, too large to be read."""
    listing = []
    for path in paths:
        name = str(path.relative_to(root))
        listing.append((name, path.stat().st_size))
    return hash_value(sorted(listing))
