"""``effort="colbert"``: our compressed index ranked as colbert-ai ranks its own (see ``index.colbert_ai_search``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core.protocols import Ranking
from core.tokens import TokenBatch
from index import colbert_ai_search
from index.codec import Codec
from index.colbert_ai_search import Parameters
from index.common import Allowed, check_queries
from index.ivf import InvertedLists, row_numbers

if TYPE_CHECKING:
    from index.plaid import Index

QUERY_MAXLEN = 32
"""Rows that give candidates when the index does not say otherwise; ColBERT's query length."""


class SegmentPassages:
    """The documents of a PLAID index as ``colbert_ai_search.Passages``: pids are positions, on CPU, memory-mapped."""

    def __init__(self, index: Index) -> None:
        self.codec: Codec = index.codec
        self.query_maxlen: int = index.manifest["options"].get("query_maxlen", QUERY_MAXLEN)
        self._index = index
        self._lists = [InvertedLists.read(s, len(self.codec.centroids)) for s in index.segments]

    def listed(self, cells: np.ndarray) -> Tensor:
        bases = self._index.bases.tolist()
        found = [np.unique(lists.documents(cells)).astype(np.int64) + base for base, lists in zip(bases, self._lists)]
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *found]))

    def lengths_of(self, pids: Tensor) -> Tensor:
        return torch.from_numpy(self._rows(pids)[1])

    def codes_of(self, pids: Tensor) -> Tensor:
        return torch.from_numpy(self._gather("codes", pids).astype(np.int64))

    def decompress(self, pids: Tensor) -> Tensor:
        return self.codec.decompress(self.codes_of(pids), torch.from_numpy(self._gather("residuals", pids)))

    def _rows(self, pids: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per passage: its first row within its segment, how many rows, and the number of its segment."""
        positions, bases = pids.numpy(), self._index.bases
        numbers = np.searchsorted(bases, positions, "right") - 1
        starts, lengths = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        for n in np.unique(numbers).tolist():
            here, offsets = numbers == n, self._index.segments[n].offsets
            local = positions[here] - bases[n]
            starts[here], lengths[here] = offsets[local], offsets[local + 1] - offsets[local]
        return starts, lengths, numbers

    def _gather(self, name: str, pids: Tensor) -> np.ndarray:
        """The rows of an array of these passages, in their order, whatever segments they are in."""
        starts, lengths, numbers = self._rows(pids)
        rows, owner = row_numbers(starts, lengths), np.repeat(numbers, lengths)
        facts = self._index._arrays()[name]
        out = np.empty((len(rows), *facts[1]), facts[0])
        for n in np.unique(owner).tolist():
            here = owner == n
            out[here] = self._index.segments[n].array(name)[rows[here]]
        return out


def search(
    index: Index,
    queries: TokenBatch,
    k: int,
    allowed_ids: Allowed = None,
    n_probe: int | None = None,
    threshold: float | None = None,
    n_candidates: int | None = None,
) -> list[Ranking]:
    """At most k documents per query [B, T, D], by colbert-ai's rules; masked rows are dropped.

    n_probe, threshold, n_candidates: colbert-ai's ncells, centroid_score_threshold and ndocs, by default what it picks
    for k. A quarter of n_candidates is scored, so a ranking may be shorter than k. Candidates come from the first
    query_maxlen rows: what the converted index was made for, otherwise QUERY_MAXLEN. Deleted and forbidden documents
    are taken out before pruning, as colbert-ai's filter_fn does. Runs on CPU; every member of a
    group does all of it.
    """
    chosen = Parameters.chosen(k, n_probe, threshold, n_candidates)
    emb = check_queries(queries, index.dim, "cpu")
    passages, alive = SegmentPassages(index), index.alive()
    out = []
    with torch.inference_mode():
        for query, mask, allowed in zip(emb, queries.mask.cpu(), index._allowed(allowed_ids, len(emb))):
            may = alive
            if allowed is not None:
                may = np.zeros_like(alive)
                may[allowed] = True  # ids of deleted documents are refused before
            wanted = torch.from_numpy(may)
            pids, scores = colbert_ai_search.search(
                passages, query[mask], k, chosen, filter_fn=lambda p, wanted=wanted: p[wanted[p]]
            )
            out.append(Ranking(tuple(index.some_ids(np.array(pids, dtype=np.int64))), tuple(scores)))
    return out
