"""The thread behind the server: who is answered together, who never waits, whose fault is whose."""

from __future__ import annotations

import threading
from concurrent import futures
from types import SimpleNamespace

import pytest

from core.errors import UserError
from searcher import batching
from searcher.batching import Batcher, Closed


class Work:
    """Doubles numbers; holds the thread until ``free`` is set; remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.free, self.entered = threading.Event(), threading.Semaphore(0)

    def __call__(self, key, items):
        self.calls.append((key, list(items)))
        self.entered.release()
        assert self.free.wait(20)
        if -1 in items:
            raise ValueError("minus one")
        return [2 * i for i in items]


@pytest.fixture
def held():
    """(batcher, work) with the thread busy on a first item, so that what comes waits."""
    work = Work()
    batcher = Batcher(work, size=3, wait=0, longest=3600)  # however long it is held
    first = batcher.submit("a", 0)
    assert work.entered.acquire(timeout=20)
    yield batcher, work, first
    work.free.set()
    batcher.close()


def test_what_waits_is_answered_together(held):
    batcher, work, first = held
    found = [batcher.submit(key, i) for key, i in (("a", 1), ("b", 2), ("a", 3), ("a", 4), ("a", 5))]
    assert len(batcher) == 5
    work.free.set()
    assert [f.result(20) for f in [first, *found]] == [0, 2, 4, 6, 8, 10]
    assert work.calls == [("a", [0]), ("a", [1, 3, 4]), ("b", [2]), ("a", [5])]
    assert (batcher.items, batcher.batches) == (6, 4)


def test_the_fault_of_one_is_not_the_others(held):
    batcher, work, _ = held
    good, bad, fine = (batcher.submit("a", i) for i in (1, -1, 3))
    work.free.set()
    assert (good.result(20), fine.result(20)) == (2, 6)
    with pytest.raises(ValueError, match="minus one"):
        bad.result(20)


def test_a_slow_machine_takes_small_batches(monkeypatch):
    """Where an item takes half of the longest time, two go into a batch."""
    work, now = Work(), [0.0]
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(key, items):
        now[0] += len(items)
        return work(key, items)

    batcher = Batcher(slow, size=3, wait=0, longest=2)
    first = batcher.submit("a", 0)
    assert work.entered.acquire(timeout=20)
    found = [batcher.submit("a", i) for i in range(1, 6)]
    work.free.set()
    assert [f.result(20) for f in [first, *found]] == [0, 2, 4, 6, 8, 10]
    assert [items for _, items in work.calls] == [[0], [1, 2], [3, 4], [5]]
    batcher.close()


def test_who_left_is_not_computed(held):
    batcher, work, _ = held
    gone, here = batcher.submit("a", 1), batcher.submit("a", 2)
    assert gone.cancel()
    work.free.set()
    assert here.result(20) == 4 and work.calls[1:] == [("a", [2])]


def test_closing_answers_what_waits_and_refuses_the_rest(held):
    batcher, work, first = held
    waits = batcher.submit("a", 1)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while True:
        try:
            batcher.submit("a", 2)
        except Closed:
            break
    work.free.set()
    closing.join(20)
    assert first.result(0) == 0 and waits.result(0) == 2


def test_closing_does_not_wait_for_ever(held):
    batcher, _, first = held
    waits = batcher.submit("a", 1)
    batcher.close(seconds=0.01)
    assert waits.cancelled() and not first.done()


def test_one_alone_never_waits_for_company_and_a_crowd_does():
    work = Work()
    work.free.set()
    batcher = Batcher(work, size=8, wait=3600, longest=3600)  # whoever waited for the clock would not return here
    try:
        assert [batcher.submit("a", i).result(20) for i in (1, 2, 3)] == [2, 4, 6]
        work.free.clear()
        first = batcher.submit("a", 4)
        while len(work.calls) < 4:
            pass
        pair = [batcher.submit("a", i) for i in (5, 6)]
        work.free.set()
        assert [f.result(20) for f in (first, *pair)] == [8, 10, 12]
        late = batcher.submit("a", 7)  # of the two that came together, one is back: the other is waited for
        with pytest.raises(futures.TimeoutError):
            late.result(0.1)
        other = batcher.submit("a", 8)
        assert (late.result(20), other.result(20)) == (14, 16)
        assert work.calls[4:] == [("a", [5, 6]), ("a", [7, 8])]
    finally:
        batcher.close()


@pytest.mark.parametrize(("size", "wait"), [(0, 0.0), (1, -1.0)])
def test_sizes_that_make_no_sense(size, wait):
    with pytest.raises(UserError, match="make no sense"):
        Batcher(Work(), size, wait)
