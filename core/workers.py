"""Work done ahead by threads, taken in the order of the items.

Threads, because what is worth doing ahead here (reading, hashing, decoding, resizing) releases Python's lock; results
need no pickling, and an error arrives with its traceback.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def default_workers(processes: int = 1) -> int:
    """This process's share of the cores it may use, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(32, cores // processes))


def ahead(work: Callable[[T], R], items: Iterable[T], workers: int, limit: int) -> Iterator[tuple[T, R]]:
    """(item, work(item)) in the order of ``items``, computed by ``workers`` threads.

    limit: at most so many results exist at a time, whatever the pace of the caller. An exception of ``work`` is raised
    where its item's turn is; those before it have been given. When the caller stops early, no new work is begun.
    """
    waiting: deque[tuple[T, Future]] = deque()
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        for item in source:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) >= max(limit, workers):
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
