"""How many tokens each transcript of a split has, kept in a file so that a process need not read the texts.

The file says of which tokenizer and of which shards its counts are. One that is missing, torn or of others is
not used: the transcripts are counted again, and the file is replaced whole. Several processes may do so at once.
"""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.shard_index import ShardIndex
from data.tokenizer import Tokenizer, token_lengths

Counts = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]

logger = logging.getLogger(__name__)


def token_counts(index: ShardIndex, tokenizer: Tokenizer, file: Path) -> Counts:
    """Per utterance of the index its tokens and the fewest frames from which CTC can write them, int32 [N] each.

    Read from `file` where it is of this tokenizer and these shards; else counted, and written there.
    """
    origin = f"{tokenizer.sha256} {index.fingerprint}"
    kept = _read(file, origin, len(index))
    if kept is not None:
        return kept
    logger.info("Counting the tokens of the %d transcripts at %s", len(index), index.folder)
    counts = token_lengths(index.transcripts(), tokenizer)
    _write(file, origin, counts)
    return counts


def _read(file: Path, origin: str, count: int) -> Counts | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["origin"]) != origin:
                return None
            tokens, repeats = stored["tokens"].astype(np.int32), stored["repeats"].astype(np.int32)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    return (tokens, tokens + repeats) if len(tokens) == len(repeats) == count else None


def _write(file: Path, origin: str, counts: Counts) -> None:
    tokens, min_frames = counts
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as opened:
        np.savez(opened, origin=np.array(origin), tokens=_narrow(tokens), repeats=_narrow(min_frames - tokens))
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)


def _narrow(numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.unsignedinteger]:
    """The same numbers in the smallest type that holds them all."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
