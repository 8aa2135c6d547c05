"""Arrays in .npz files: written whole or not at all, and read as missing when they are torn.

An archive takes no more memory than it has bytes, times two: a shape that its bytes do not fill, members that are
compressed, that share bytes or that hold Python objects are refused before anything is allocated for them.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from data.files import read_bounded, replacing

Arrays = dict[str, np.ndarray]

# The largest file of arrays that is read at once: tokens and frames of a hundred million utterances.
MAX_NPZ_BYTES = 8 * 2**30
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_arrays(file: IO[bytes]) -> Arrays:
    """The arrays of an archive that can seek, by name. ValueError when it is not what `numpy.savez` writes."""
    try:
        return _load_arrays(file)
    except (OSError, ValueError):
        raise
    # numpy reads a header as Python's tokenizer and compiler do, and zipfile raises what it likes.
    except Exception as error:
        raise ValueError(f"it holds no arrays that can be read ({error!r:.300})") from None


def _load_arrays(file: IO[bytes]) -> Arrays:
    num_bytes = file.seek(0, io.SEEK_END)
    arrays: Arrays = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.compress_size for member in members) > num_bytes:
            raise ValueError("its members are longer than the archive")
        for member in members:
            # The size of what is compressed is known only when it is there.
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"its member {member.filename!r} is compressed")
            # Compares the checksum too.
            content = archive.read(member)
            stream = io.BytesIO(content)
            version = np.lib.format.read_magic(stream)
            if version not in _HEADER_READERS:
                raise ValueError(f"an array has version {version} of the format")
            shape, is_fortran, dtype = _HEADER_READERS[version](stream)
            if dtype.hasobject:
                raise ValueError("an array holds Python objects")
            start = stream.tell()
            num_content_bytes = len(content) - start
            if math.prod(shape) * dtype.itemsize != num_content_bytes:
                raise ValueError(f"an array of shape {shape} has {num_content_bytes} bytes")

            order = "F" if is_fortran else "C"
            array = np.ndarray(shape, dtype, content, start, order=order)
            # A copy, because an array over bytes cannot be written to.
            arrays[member.filename.removesuffix(".npy")] = array.copy(order)
    return arrays


def read_npz(path: Path) -> Arrays | None:
    """The arrays of a file; None when it is not there or torn."""
    try:
        return load_arrays(io.BytesIO(read_bounded(path, MAX_NPZ_BYTES)))
    except (OSError, ValueError):
        return None


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a file whole or not at all."""
    # An open file, because numpy appends .npz to a name that ends otherwise.
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
