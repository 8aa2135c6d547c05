"""A function over many items in threads, with results in the order of the items.

For work that releases the GIL, such as libsndfile's and numpy's. A bounded number of items is under way at a time, so
that a consumer slower than the threads does not fill the memory, which the executor's own `map` would.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    ahead_per_worker: int,
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what the function makes of it; raises what the function raises, in the place of its item."""
    num_ahead = workers * ahead_per_worker
    remaining = iter(items)
    pending: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="thread-map") as pool:
        try:
            while True:
                for item in islice(remaining, num_ahead - len(pending)):
                    future = pool.submit(function, item)
                    pending.append((item, future))
                if not pending:
                    return
                item, future = pending.popleft()
                yield item, future.result()
        finally:
            # A consumer that stops early does not wait for items that no thread has begun.
            pool.shutdown(cancel_futures=True)
