"""How many tokens each transcript of a split has, stored in a file so that a process need not read the texts.

With ten million utterances, counting takes minutes, in every process and at every start.
The file names the tokenizer and the shards that its counts belong to. A file that is missing, torn or of others is
not used: the transcripts are counted again, and the file is replaced whole. Several processes may do so at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.npz import read_npz, write_npz
from data.shards.index import ShardIndex
from data.shards.joined_split import JoinedIndex, SplitIndex
from data.text.tokenizer import Tokenizer, token_lengths

Int32s = npt.NDArray[np.int32]
Counts = tuple[Int32s, Int32s]

logger = logging.getLogger(__name__)


def token_counts(index: ShardIndex, tokenizer: Tokenizer, file: Path) -> Counts:
    """Per utterance of the index its tokens and the fewest frames from which CTC can write them, int32 [N] each.

    Read from `file` where it is of this tokenizer and these shards; else counted, and written there.
    """
    origin = f"{tokenizer.sha256} {index.fingerprint}"
    stored = _read(file, origin, len(index))
    if stored is not None:
        return stored

    logger.info("Counting the tokens of the %d transcripts at %s", len(index), index.folder)
    tokens, min_frames = token_lengths(index.transcripts(), tokenizer)
    # Repeats fit a smaller type than frames: most transcripts have few.
    repeats = min_frames - tokens
    write_npz(
        file,
        origin=np.array(origin),
        tokens=_narrow(tokens),
        repeats=_narrow(repeats),
    )
    return tokens, min_frames


def split_token_counts(index: SplitIndex, tokenizer: Tokenizer, file_of: Callable[[str], Path]) -> Counts:
    """The same of a split of several corpora; `file_of` gives the file of each by its label, "" that of one alone."""
    if not isinstance(index, JoinedIndex):
        return token_counts(index, tokenizer, file_of(""))
    tokens: list[Int32s] = []
    min_frames: list[Int32s] = []
    for label, part in index.indexes.items():
        # A file for each: a corpus that joins leaves those of the others as they are.
        part_tokens, part_min_frames = token_counts(part, tokenizer, file_of(label))
        tokens.append(part_tokens)
        min_frames.append(part_min_frames)
    return np.concatenate(tokens), np.concatenate(min_frames)


def stored_token_counts(index: SplitIndex, tokenizer: Tokenizer, file_of: Callable[[str], Path]) -> Counts | None:
    """The same where all of it is stored; None where a transcript would have to be counted."""
    indexes = {"": index}
    if isinstance(index, JoinedIndex):
        indexes = index.indexes
    tokens: list[Int32s] = []
    min_frames: list[Int32s] = []
    for label, part in indexes.items():
        counts = _read(file_of(label), f"{tokenizer.sha256} {part.fingerprint}", len(part))
        if counts is None:
            return None
        tokens.append(counts[0])
        min_frames.append(counts[1])
    return np.concatenate(tokens), np.concatenate(min_frames)


def _read(file: Path, origin: str, count: int) -> Counts | None:
    stored = read_npz(file)
    if stored is None or not {"origin", "tokens", "repeats"} <= stored.keys():
        return None
    stored_origin = stored["origin"]
    if stored_origin.shape != () or str(stored_origin) != origin:
        return None

    for name in ("tokens", "repeats"):
        array = stored[name]
        if array.dtype.kind != "u" or array.shape != (count,):
            return None
    tokens = stored["tokens"].astype(np.int32)
    repeats = stored["repeats"].astype(np.int32)
    return tokens, tokens + repeats


def _narrow(numbers: Int32s) -> npt.NDArray[np.unsignedinteger]:
    """The same numbers in the smallest type that holds them all."""
    # Mostly one or two bytes: every process reads the file when it starts.
    largest = int(numbers.max(initial=0))
    return numbers.astype(np.min_scalar_type(largest))
