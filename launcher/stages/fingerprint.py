"""SHA-256 over settings, files and folders: what tells whether a stage is done."""

import functools
import hashlib
import json
import os
from contextlib import suppress
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


def files_below(folder: Path) -> dict[str, int]:
    """Return the sizes of all files of a folder and of the folders in it, by their names in there; none where it is no
    folder. Links to folders are not followed."""
    sizes: dict[str, int] = {}
    # Nor is a circle of links one, which scandir would raise an error of its own for.
    if not os.path.isdir(folder):
        return sizes
    # With scandir and text: a corpus has hundreds of thousands of files, and a Path for each takes four times as long.
    folders = [""]
    while folders:
        inside = folders.pop()
        with suppress(NotADirectoryError, FileNotFoundError), os.scandir(folder / inside) as entries:
            for entry in entries:
                name = f"{inside}/{entry.name}".removeprefix("/")
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                    continue
                # A link that leads around in a circle, or to what may not be looked at, is no file.
                with suppress(OSError):
                    if entry.is_file():
                        sizes[name] = entry.stat().st_size
    return sizes


def hash_folder(folder: Path) -> str | None:
    """Return a SHA-256 over all files of a folder, None when there is nothing in it."""
    names = files_below(folder)
    if not names:
        return None
    return hash_files([folder / name for name in names], folder)


def hash_listing(sizes: dict[str, int]) -> str:
    """Return a SHA-256 over the sizes of some files by their names, too large to be read."""
    return hash_value(sorted(sizes.items()))
