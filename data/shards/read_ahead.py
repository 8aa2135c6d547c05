"""Utterances in a given order, of which a remote store is asked for several at once.

What a training reads goes through `data.loader`; this is for whoever reads a split from one end to the other.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial

from data.shards.joined_split import SplitReader
from data.shards.reader import EncodedExample, Example, UtteranceError
from data.shards.reading_threads import Threads
from data.thread_map import submit_ahead


def read_ahead(reader: SplitReader, utterances: Iterable[int]) -> Iterator[Example | UtteranceError]:
    """Yield the utterances in their order, in the place of each that cannot be read its error.

    As many are requested ahead as the reader has `connections`; of files that are near, none is.
    """
    if reader.connections == 0:
        for utterance in utterances:
            yield _read(reader, utterance)
        return

    threads = Threads(reader.connections)
    try:
        for utterance, encoded in submit_ahead(partial(threads.submit, reader.fetch), utterances, reader.connections):
            yield _decode(reader, utterance, encoded)
    finally:
        threads.close()


def _read(reader: SplitReader, utterance: int) -> Example | UtteranceError:
    try:
        return reader.read(utterance)
    except UtteranceError as error:
        return error


def _decode(reader: SplitReader, utterance: int, encoded: Future[EncodedExample]) -> Example | UtteranceError:
    try:
        return reader.decode(utterance, encoded.result())
    except UtteranceError as error:
        return error
