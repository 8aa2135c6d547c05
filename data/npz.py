"""Arrays in .npz files: written whole or not at all, and read as missing when they are torn."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from data.files import replacing

Arrays = dict[str, np.ndarray]

# What numpy raises, beside OSError, for bytes that are not the archive that was written.
UNREADABLE = (EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


def read_npz(path: Path) -> Arrays | None:
    """The arrays of a file; None when it is not there or torn."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            # Every array is read here: an archive checks an array's checksum when that is read.
            return dict(stored)
    except (OSError, *UNREADABLE):
        return None


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a file whole or not at all."""
    # An open file, because numpy appends .npz to a name that ends otherwise.
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
