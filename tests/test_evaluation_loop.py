"""The search loop: batches, order, timing, and errors before any work."""

from __future__ import annotations

import time

import pytest
import torch

from core.errors import UserError
from core.protocols import Ranking
from core.records import ImageRef, Query
from core.tokens import TokenBatch
from evaluation import loop


class FakeIndex:
    """Answers every query with its own number; takes 1 ms per call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, dict]] = []

    def search(self, queries: TokenBatch, k: int, **effort) -> list[Ranking]:
        self.calls.append((len(queries), k, effort))
        time.sleep(0.001)
        return [Ranking((f"d{int(e[0, 0])}",), (1.0,)) for e in queries.embeddings]


def encode(queries) -> TokenBatch:
    values = torch.tensor([float(query.text) for query in queries], requires_grad=True)
    return TokenBatch(values[:, None, None] * 1, torch.ones(len(queries), 1, dtype=torch.bool))


def test_loop(capsys):
    index = FakeIndex()
    queries = [Query(f"q{i}", str(i)) for i in (3, 1, 2, 5, 4)]
    rankings, ms = loop.run(encode, index, queries, k=7, batch_size=2, ncells=4)
    assert {qid: r.ids for qid, r in rankings.items()} == {f"q{i}": (f"d{i}",) for i in (3, 1, 2, 5, 4)}
    assert list(rankings) == [query.id for query in queries]
    assert index.calls == [(2, 7, {"ncells": 4}), (2, 7, {"ncells": 4}), (1, 7, {"ncells": 4})]
    assert ms >= 3 * 1 / 5  # three calls of at least 1 ms over five queries
    assert "searching" in capsys.readouterr().err


def test_loop_errors():
    image = (ImageRef("i", path="i.png"),)
    good = [Query("text", "1"), Query("image", images=image)]
    index = FakeIndex()
    for queries, options, reason in (
        ([*good, Query("empty", "  ")], {}, "query 'empty' has neither text nor image"),
        ([*good, Query("text", "2")], {}, "id 'text' stands twice"),
        ([], {}, "no queries"),
        (good, {"k": 0}, "k=0"),
        (good, {"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(UserError, match=reason):
            loop.run(encode, index, queries, **{"k": 5, **options})
    assert index.calls == []  # all of it was found before any work
    with pytest.raises(UserError, match="1 rows for 2 queries"):
        loop.run(lambda _: encode(good[:1]), index, good, k=5)
