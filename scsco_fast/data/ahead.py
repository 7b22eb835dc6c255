"""Work that a thread does ahead of the one that needs it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def ahead(function: Callable[[ItemT], ResultT], items: Iterable[ItemT], depth: int = 4) -> Iterator[ResultT]:
    """`map(function, items)`, by one thread that stays `depth` results ahead; `items` may be endless.

    Examples:
        >>> list(ahead(lambda number: number**2, range(4)))
        [0, 1, 4, 9]
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    pending: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
