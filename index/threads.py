"""Threads for the compiled loops, as many as torch uses. The loops release Python's lock, so threads are enough: there
is no process to lose, and an error in a thread is raised where its result is wanted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
R = TypeVar("R")
_pool: tuple[int, ThreadPoolExecutor] | None = None
_lock = threading.Lock()
_inside = threading.local()


def _forget() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()  # threads do not survive a fork, and the lock may have been held


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def count() -> int:
    """Threads that a call may use here: torch's number, one inside a thread of ours."""
    return 1 if getattr(_inside, "working", False) else torch.get_num_threads()


def run(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """[work(item) for item in items], in threads when there is more than one item."""
    items = list(items)
    threads = min(count(), len(items))
    if threads <= 1:
        return [work(item) for item in items]
    results: list[R | None] = [None] * len(items)
    waiting = iter(range(len(items)))  # next() of it is atomic: whoever is free takes the next item

    def take() -> None:
        for i in waiting:
            results[i] = work(items[i])

    # The calling thread works too: one hand-over less, and it gets through even when the pool is busy elsewhere.
    helpers = [_workers().submit(take) for _ in range(threads - 1)]
    _inside.working = True
    try:
        take()
    finally:
        _inside.working = False
        for helper in helpers:
            helper.cancel()  # one that has not begun finds nothing left to do
        errors = [h.exception() for h in helpers if not h.cancelled()]  # none may still work on our arrays
    for error in errors:
        if error is not None:
            raise error
    return results  # type: ignore[return-value]


def _workers() -> ThreadPoolExecutor:
    """One pool for all, as large as torch's number of threads asked for so far."""
    global _pool
    size = max(1, torch.get_num_threads() - 1)
    with _lock:
        if _pool is None or _pool[0] < size:  # a smaller one ends by itself when its last caller has left it
            _pool = size, ThreadPoolExecutor(size, thread_name_prefix="index", initializer=_enter)
        return _pool[1]


def _enter() -> None:
    _inside.working = True


def pieces(n: int, least: int = 1, most: int | None = None) -> list[slice]:
    """range(n) cut into as many even slices as there are threads, none smaller than ``least`` unless it is alone, and
    into more of them where they would be larger than ``most``."""
    parts = max(1, min(count(), n // max(1, least)), -(-n // (most or max(1, n))))
    edges = np.linspace(0, n, parts + 1).astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]


def concatenate(
    work: Callable[[Sequence], np.ndarray], items: np.ndarray, least: int = 1, most: int | None = None
) -> np.ndarray:
    """work(items), computed piece by piece (see ``pieces``) in threads."""
    parts = run(lambda part: work(items[part]), pieces(len(items), least, most))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
