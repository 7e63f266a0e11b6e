"""Exact MaxSim over a whole corpus for many queries at once, which repeat rows.

Text rows depend on the question alone and global rows on the image alone, so a few hundred queries have far fewer
distinct rows than rows. Each distinct row meets each document once; a query's score is the sum over its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from core.protocols import Ranking

DOCUMENT_ROWS = 4096
QUERY_ROWS = 512
"""Sizes of one block of similarities: 8 MiB of float32, which stays in the cache."""


class Corpus:
    """Documents in order of length, cut into blocks of equal length without padding."""

    def __init__(self, stream: Iterable[tuple[str, np.ndarray]]) -> None:
        """stream: (id, [n, D] float32). Ties are settled by the order of the stream."""
        items = list(stream)
        self.ids = [id_ for id_, _ in items]
        by_length: dict[int, list[int]] = {}
        for place, (_, vectors) in enumerate(items):
            if len(vectors):  # a document without rows is behind all others: it never gets a score
                by_length.setdefault(len(vectors), []).append(place)
        self.blocks: list[tuple[Tensor, Tensor]] = []  # (places [n], rows [n * length, D])
        for length, places in by_length.items():
            step = max(1, DOCUMENT_ROWS // length)
            for start in range(0, len(places), step):
                part = places[start : start + step]
                rows = torch.from_numpy(np.concatenate([items[p][1] for p in part]))
                self.blocks.append((torch.tensor(part), rows))

    def scores(self, queries: Sequence[Tensor]) -> Tensor:
        """queries: one [n, D] float32 tensor each -> [Q, N] float32."""
        distinct, index = distinct_rows(torch.cat(list(queries)))
        offsets = torch.tensor([0, *map(len, queries)])[:-1].cumsum(0)
        out = torch.full((len(queries), len(self.ids)), float("-inf"))
        buffer = torch.empty(max((len(rows) for _, rows in self.blocks), default=0) * QUERY_ROWS)
        for places, rows in self.blocks:
            best = torch.empty(len(distinct), len(places))
            for start in range(0, len(distinct), QUERY_ROWS):
                part = distinct[start : start + QUERY_ROWS]
                # One buffer for all blocks: fresh memory for each would cost a third of the time in page faults.
                block = torch.mm(rows, part.T, out=buffer[: len(rows) * len(part)].view(len(rows), -1))
                best[start : start + QUERY_ROWS] = block.view(len(places), -1, len(part)).amax(1).T
            out[:, places] = embedding_bag(index, best, offsets, mode="sum")
        return out

    def search(self, queries: Sequence[Tensor], k: int) -> list[Ranking]:
        """The k best documents of every query; equal scores in the order of the corpus."""
        scores = self.scores(queries)
        out = []
        for row in scores:
            threshold = row.topk(min(k, len(row))).values[-1]
            candidates = (row >= threshold).nonzero().flatten()
            order = row[candidates].argsort(descending=True, stable=True)[:k]
            chosen = candidates[order]
            out.append(Ranking(tuple(self.ids[i] for i in chosen.tolist()), tuple(row[chosen].tolist())))
        return out


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[R, D] -> its distinct rows, and which of them each row is [R] int64. Only rows equal bit for bit are one."""
    numbers: dict[bytes, int] = {}
    data = rows.contiguous().numpy()
    index = torch.tensor([numbers.setdefault(row.tobytes(), len(numbers)) for row in data], dtype=torch.int64)
    first = torch.zeros(len(numbers), dtype=torch.int64).scatter_(0, index.flip(0), torch.arange(len(rows)).flip(0))
    return rows[first], index
