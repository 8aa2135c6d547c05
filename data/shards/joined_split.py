"""A split of several corpora as one: its utterances are those of the first, then those of the second, and so on.

Refused, with a `DataError`: corpora at different sample rates.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.remote.settings import StorageConfig
from data.shards.index import ShardIndex, read_index
from data.shards.reader import EncodedExample, Example, ShardReader, UtteranceError


@dataclass(frozen=True, eq=False)
class JoinedIndex:
    """The indexes of several corpora, by their labels, as one; columns are those of `ShardIndex`."""

    indexes: dict[str, ShardIndex]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where the utterances of each corpus begin, and the end: int64 [corpora + 1]."""
        lengths = [len(index) for index in self.indexes.values()]
        return np.cumsum([0, *lengths], dtype=np.int64)

    @property
    def folder(self) -> str:
        """All folders, for messages."""
        return ", ".join(str(index.folder) for index in self.indexes.values())

    @property
    def sample_rate_hz(self) -> int:
        return next(iter(self.indexes.values())).sample_rate_hz

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over those of all shards."""
        digest = hashlib.sha256()
        for index in self.indexes.values():
            digest.update(index.fingerprint.encode())
        return digest.hexdigest()

    @cached_property
    def shard(self) -> npt.NDArray[np.int32]:
        """The number of the shard of each utterance, counted on from corpus to corpus."""
        columns: list[npt.NDArray[np.int32]] = []
        first = 0
        for index in self.indexes.values():
            columns.append(index.shard + np.int32(first))
            first += len(index.names)
        return np.concatenate(columns)

    @cached_property
    def samples(self) -> npt.NDArray[np.int64]:
        return np.concatenate([index.samples for index in self.indexes.values()])

    @cached_property
    def text_length(self) -> npt.NDArray[np.int32]:
        return np.concatenate([index.text_length for index in self.indexes.values()])

    def locate(self, utterance: int) -> tuple[str, int]:
        """The corpus of an utterance, and its position there."""
        number = int(np.searchsorted(self.starts, utterance, side="right")) - 1
        return list(self.indexes)[number], utterance - int(self.starts[number])

    def rows(self) -> Iterator[dict[str, str]]:
        """key, text, speaker and language of each utterance."""
        return itertools.chain.from_iterable(index.rows() for index in self.indexes.values())

    def transcripts(self) -> Iterator[str]:
        for row in self.rows():
            yield row["text"]


class JoinedReader:
    """Reads utterances of several corpora by their positions in a `JoinedIndex`, as `ShardReader` does those of one."""

    def __init__(self, index: JoinedIndex, storage: StorageConfig | None = None):
        self.index = index
        self._readers: dict[str, ShardReader] = {}
        for label, corpus_index in index.indexes.items():
            self._readers[label] = ShardReader(corpus_index, storage)

    @property
    def connections(self) -> int:
        """How many utterances to request at once, where any corpus lies in a remote store."""
        return max(reader.connections for reader in self._readers.values())

    def shard(self, utterance: int) -> str:
        """Path or URL of the shard that holds an utterance."""
        label, position = self.index.locate(utterance)
        return self._readers[label].shard(position)

    def read(self, utterance: int) -> Example:
        """The utterance at a position of the index. UtteranceError when it cannot be read."""
        label, position = self.index.locate(utterance)
        return self._readers[label].read(position)

    def fetch(self, utterance: int) -> EncodedExample:
        """The same, not decoded."""
        label, position = self.index.locate(utterance)
        return self._readers[label].fetch(position)

    def decode(self, utterance: int, encoded: EncodedExample) -> Example:
        """The utterance that was fetched. UtteranceError when it is not the one that the index promises."""
        label, position = self.index.locate(utterance)
        return self._readers[label].decode(position, encoded)

    def broken(self, utterance: int, reason: str, key: str | None = None) -> UtteranceError:
        """The error of an utterance that cannot be used, for a reason."""
        label, position = self.index.locate(utterance)
        return self._readers[label].broken(position, reason, key)


SplitIndex = ShardIndex | JoinedIndex
SplitReader = ShardReader | JoinedReader


def read_split(folders: Mapping[str, Path | str], *, max_damaged: float = 0.0) -> SplitIndex:
    """Read the index of a split of some corpora, by their labels; that of one alone is its own. `max_damaged` is that
    of `read_index`."""
    indexes: dict[str, ShardIndex] = {}
    for label, folder in folders.items():
        indexes[label] = read_index(folder, max_damaged=max_damaged)
    if len(indexes) == 1:
        return next(iter(indexes.values()))

    labels_of_rate: dict[int, str] = {}
    for label, index in indexes.items():
        labels_of_rate.setdefault(index.sample_rate_hz, label)
    if len(labels_of_rate) > 1:
        rates = " and ".join(f"{label} {rate_hz} Hz" for rate_hz, label in labels_of_rate.items())
        raise DataError(
            f"The corpora of a mixture are at different sample rates: {rates}. Prepare them at one rate, that of "
            "features.sample_rate_hz."
        )
    return JoinedIndex(indexes)


def open_reader(index: SplitIndex, storage: StorageConfig | None = None) -> SplitReader:
    """The reader of what `read_split` gave."""
    if isinstance(index, JoinedIndex):
        return JoinedReader(index, storage)
    return ShardReader(index, storage)
