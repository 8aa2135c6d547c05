"""Utterances in a given order, of which a remote store is asked for several at once.

What a training reads goes through `data.loader`; this is for whoever reads a split from one end to the other.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import islice

from data.joined_split import SplitReader
from data.reader import EncodedExample, Example, UtteranceError
from data.reading_threads import Threads


def read_ahead(reader: SplitReader, utterances: Iterable[int]) -> Iterator[Example | UtteranceError]:
    """Yield the utterances in their order, in the place of each that cannot be read its error.

    As many are requested ahead as the reader has `connections`; of files that are near, none is.
    """
    if reader.connections == 0:
        for utterance in utterances:
            yield _read(reader, utterance)
        return

    remaining = iter(utterances)
    pending: deque[tuple[int, Future[EncodedExample]]] = deque()
    threads = Threads(reader.connections)
    try:
        while True:
            for utterance in islice(remaining, reader.connections - len(pending)):
                pending.append((utterance, threads.submit(reader.fetch, utterance)))
            if not pending:
                return
            utterance, encoded = pending.popleft()
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
