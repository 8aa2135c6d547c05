"""A function over many items in threads, with results in the order of the items.

For work that releases the GIL, such as libsndfile's and numpy's. A bounded number of items is under way at a time, so
that a consumer slower than the threads does not fill the memory, which the executor's own `map` would.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def submit_ahead(
    submit: Callable[[Item], Future[Result]],
    items: Iterable[Item],
    num_ahead: int,
) -> Iterator[tuple[Item, Future[Result]]]:
    """Yield the items in their order with what `submit` made of them, of which so many are under way at a time."""
    remaining = iter(items)
    pending: deque[tuple[Item, Future[Result]]] = deque()
    while True:
        for item in islice(remaining, num_ahead - len(pending)):
            pending.append((item, submit(item)))
        if not pending:
            return
        yield pending.popleft()


def thread_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    ahead_per_worker: int,
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what the function makes of it; raises what the function raises, in the place of its item."""
    with ThreadPoolExecutor(workers, thread_name_prefix="thread-map") as pool:
        try:
            for item, future in submit_ahead(partial(pool.submit, function), items, workers * ahead_per_worker):
                yield item, future.result()
        finally:
            # A consumer that stops early does not wait for items that no thread has begun.
            pool.shutdown(cancel_futures=True)
