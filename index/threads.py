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
_pools: dict[int, ThreadPoolExecutor] = {}
_inside = threading.local()


def _forget() -> None:
    _pools.clear()  # threads do not survive a fork


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
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="index", initializer=_enter)
    # The calling thread works too: one hand-over less, and nothing waits for a pool that is busy elsewhere.
    futures = [_pools[threads].submit(work, item) for item in items[1:]]
    _inside.working = True
    try:
        first = work(items[0])
    finally:
        _inside.working = False
        results = [f.exception() for f in futures]  # never leave while a thread still works on our arrays
    for error in results:
        if error is not None:
            raise error
    return [first, *(f.result() for f in futures)]


def _enter() -> None:
    _inside.working = True


def pieces(n: int, least: int = 1) -> list[slice]:
    """range(n) cut into as many even slices as there are threads, none smaller than ``least`` unless it is alone."""
    parts = max(1, min(count(), n // max(1, least)))
    edges = np.linspace(0, n, parts + 1).astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]


def concatenate(work: Callable[[Sequence], np.ndarray], items: np.ndarray, least: int = 1) -> np.ndarray:
    """work(items), computed piece by piece in threads."""
    parts = run(lambda part: work(items[part]), pieces(len(items), least))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
