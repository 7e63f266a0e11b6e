"""Requests that arrive together are answered together, by one thread that alone touches the model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any

from core.errors import UserError


class Closed(RuntimeError):
    """The batcher takes no more work: the server is stopping."""


class Batcher:
    """``submit`` items, get Futures. Items of one key that wait at the same time become one call of ``work``.

    An item that finds the thread idle starts at once, so that a single client never waits for company. While clients
    come in numbers (the batch before had several items), the thread gives as many the chance to come back: it waits for
    them, ``wait`` seconds at most. A cancelled Future costs nothing until its batch begins. At the pace of the batch
    before, a batch takes ``longest`` seconds at most: a slow machine does not compute for a whole crowd that has left.
    """

    def __init__(
        self, work: Callable[[Hashable, list], Sequence[Any]], size: int = 32, wait: float = 0.005, longest: float = 2.0
    ) -> None:
        """work(key, items) -> one result per item. size: items in a batch at most."""
        if size < 1 or wait < 0:
            raise UserError(
                f"a batch of {size} items and a wait of {wait} s make no sense; give 1 or more, and 0 or more."
            )
        self.size, self.wait, self._work = size, wait, work
        self.batches = self.items = 0
        self.longest, self._pace = longest, 0.0  # seconds of a batch; of an item of the batch before
        self._queue: deque[tuple[Hashable, Any, Future]] = deque()
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._queue)

    def submit(self, key: Hashable, item: Any) -> Future:
        future: Future = Future()
        with self._changed:
            if self._closed:
                raise Closed("the server is stopping")
            self._queue.append((key, item, future))
            self._changed.notify()
        return future

    def close(self, seconds: float = 10) -> None:
        """Take nothing more, answer what waits, end the thread. What is not answered in time is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            for _, _, future in self._queue:
                future.cancel()
            self._queue.clear()

    # ---- the thread

    def _run(self) -> None:
        last = 1
        while batch := self._take(last):
            key, items, futures = batch
            last = len(items)
            self.batches += 1
            self.items += last
            begin = time.monotonic()
            self._answer(key, items, futures)
            self._pace = (time.monotonic() - begin) / last
            del batch, items, futures  # an idle server holds nobody's picture

    def _take(self, company: int) -> tuple[Hashable, list, list[Future]] | None:
        """The next batch, None when there will be none. company: how many came last time."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                most = min(self.size, max(1, int(self.longest / self._pace))) if self._pace else self.size
                if company > 1 and not self._closed:
                    enough = min(company, most)
                    until = time.monotonic() + self.wait
                    while len(self._queue) < enough and not self._closed:
                        if not self._changed.wait(max(0.0, until - time.monotonic())):
                            break
                if not self._queue:
                    return None
                key = self._queue[0][0]
                chosen, kept = [], []
                for entry in self._queue:
                    (chosen if entry[0] == key and len(chosen) < most else kept).append(entry)
                self._queue = deque(kept)
            wanted = [(item, future) for _, item, future in chosen if future.set_running_or_notify_cancel()]
            if wanted:
                return key, [item for item, _ in wanted], [future for _, future in wanted]

    def _answer(self, key: Hashable, items: list, futures: list[Future]) -> None:
        try:
            for future, result in zip(futures, self._work(key, items), strict=True):
                future.set_result(result)
        except Exception as error:
            if len(items) == 1:
                futures[0].set_exception(error)
                return
            for item, future in zip(items, futures):  # the fault of one is not the others'
                if not future.done():
                    self._answer(key, [item], [future])
