"""colbert-ai 0.2.22's search on its own index, with its quirks, for comparison with published rankings.

The quirks: candidates come only from the first query_maxlen rows; a row whose best similarity is negative counts 0;
approximate scores tie towards the larger pid; given pids are neither generated nor pruned; and a searcher that chose
its parameters for one k keeps them for every later k (pass the ``Parameters`` again to have that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from index.colbert_ai import ColbertAIIndex
from index.ivf import row_numbers
from index.packed import segment_max

NO_CENTROID = -9999.0
"""What colbert-ai counts for a query row when pruning left no centroid of the passage."""


@dataclass(frozen=True)
class Parameters:
    ncells: int
    centroid_score_threshold: float
    ndocs: int

    @classmethod
    def for_k(cls, k: int) -> Parameters:
        """The values colbert-ai picks at the first search when none are given."""
        if k <= 10:
            return cls(1, 0.5, 256)
        if k <= 100:
            return cls(2, 0.45, 1024)
        return cls(4, 0.4, max(4 * k, 4096))


def candidates(index: ColbertAIIndex, query: Tensor, ncells: int, query_maxlen: int) -> tuple[Tensor, Tensor]:
    """query [T, dim] -> ascending passage numbers, and similarities with all centroids [K, rows]."""
    similar = index.codec.centroids @ query[:query_maxlen].float().T
    cells = similar.topk(ncells, dim=0, sorted=False).indices.flatten().unique()
    pids, lengths = index.ivf
    entries = row_numbers((lengths.cumsum(0) - lengths)[cells].numpy(), lengths[cells].numpy())
    return pids[torch.from_numpy(entries)].unique(), similar


def search(
    index: ColbertAIIndex,
    query: Tensor,
    k: int,
    parameters: Parameters | None = None,
    query_maxlen: int | None = None,
    pids: Sequence[int] | None = None,
    filter_fn: Callable[[Tensor], Tensor] | None = None,
) -> tuple[list[int], list[float]]:
    """query [T, dim] -> at most k passage numbers and their scores, best first.

    pids: score these and nothing else. filter_fn: applied to the candidates before pruning.
    """
    chosen = parameters or Parameters.for_k(k)
    similar = None
    if pids is None:
        maxlen = index.config["query_maxlen"] if query_maxlen is None else query_maxlen
        found, similar = candidates(index, query, chosen.ncells, maxlen)
    else:
        found = torch.tensor(list(pids), dtype=torch.int64)
    if filter_fn is not None:
        found = filter_fn(found)
    if similar is not None:
        keep = similar.amax(1) >= chosen.centroid_score_threshold
        found = _prune(index, similar, found, keep, chosen.ndocs)
        found = _prune(index, similar, found, torch.ones_like(keep), chosen.ndocs // 4)
    scores = index.exact_scores(query, found)
    order = scores.argsort(descending=True, stable=True)[:k]
    return found[order].tolist(), scores[order].tolist()


def _prune(index: ColbertAIIndex, similar: Tensor, pids: Tensor, keep: Tensor, n: int) -> Tensor:
    """The n passages with the best centroid scores, best first, the larger pid first among equals."""
    codes, lengths = index.codes[index.rows(pids)], index.doclens[pids]
    kept = keep[codes]
    owner = torch.repeat_interleave(torch.arange(len(pids)), lengths)[kept]
    best = segment_max(similar[codes[kept]], torch.bincount(owner, minlength=len(pids)))
    scores = best.clamp(min=NO_CENTROID).sum(1)
    order = np.lexsort((-pids.numpy(), -scores.numpy()))[:n]
    return pids[torch.from_numpy(order)]
