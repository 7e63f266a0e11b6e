"""colbert-ai 0.2.22's search, with its quirks, for comparison with published rankings: on its own index and on ours.

The quirks: candidates come only from the first query_maxlen rows; a row whose best similarity is negative counts 0;
approximate scores tie towards the larger pid; given pids are neither generated nor pruned; and a searcher that chose
its parameters for one k keeps them for every later k (pass the ``Parameters`` again to have that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.maxsim import maxsim_packed
from index.codec import Codec
from index.packed import BUDGET_BYTES, blocks, segment_max

NO_CENTROID = -9999.0
"""What colbert-ai counts for a query row when pruning left no centroid of the passage."""


class Passages(Protocol):
    """What is searched; pids are int64 tensors."""

    @property
    def codec(self) -> Codec: ...
    @property
    def query_maxlen(self) -> int: ...

    def listed(self, cells: np.ndarray) -> Tensor:
        """The different pids in the lists of these centroids, ascending."""
        ...

    def lengths_of(self, pids: Tensor) -> Tensor: ...

    def codes_of(self, pids: Tensor) -> Tensor:
        """Centroids of the vectors of these passages, one passage after another."""
        ...

    def decompress(self, pids: Tensor) -> Tensor:
        """Their vectors [sum of lengths, dim] float32."""
        ...


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

    @classmethod
    def chosen(cls, k: int, ncells: int | None, threshold: float | None, ndocs: int | None) -> Parameters:
        """Those of k with what was given in their place."""
        usual = cls.for_k(k)
        found = cls(
            usual.ncells if ncells is None else ncells,
            usual.centroid_score_threshold if threshold is None else threshold,
            usual.ndocs if ndocs is None else ndocs,
        )
        if found.ncells < 1:
            raise UserError(f"n_probe={found.ncells} opens no list; use 1 or more.")
        if found.ndocs < 4:
            raise UserError(
                f"n_candidates={found.ndocs} leaves none: effort='colbert' scores a quarter; use 4 or more."
            )
        return found


def candidates(index: Passages, query: Tensor, ncells: int, query_maxlen: int) -> tuple[Tensor, Tensor]:
    """query [T, dim] -> ascending passage numbers, and similarities with all centroids [K, rows]."""
    similar = index.codec.centroids @ query[:query_maxlen].float().T
    cells = similar.topk(min(ncells, len(similar)), dim=0, sorted=False).indices.flatten().unique()
    return index.listed(cells.numpy()), similar


def search(
    index: Passages,
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
        maxlen = index.query_maxlen if query_maxlen is None else query_maxlen
        found, similar = candidates(index, query, chosen.ncells, maxlen)
    else:
        found = torch.tensor(list(pids), dtype=torch.int64)
    if filter_fn is not None:
        found = filter_fn(found)
    if similar is not None:
        keep = similar.amax(1) >= chosen.centroid_score_threshold
        found = _prune(index, similar, found, keep, chosen.ndocs)
        found = _prune(index, similar, found, torch.ones_like(keep), chosen.ndocs // 4)
    scores = exact_scores(index, query, found)
    order = scores.argsort(descending=True, stable=True)[:k]
    return found[order].tolist(), scores[order].tolist()


def exact_scores(index: Passages, query: Tensor, pids: Tensor, floor: float | None = 0.0) -> Tensor:
    """MaxSim of one query [T, dim] with these passages -> [n] float32, without pruning.

    floor=0.0 is what colbert-ai's CPU search computes (a row whose best similarity is negative counts 0);
    floor=None is MaxSim as this project defines it.
    """
    lengths = index.lengths_of(pids)
    max_rows = max(1, BUDGET_BYTES // (8 * (query.shape[0] + query.shape[1])))
    parts = [torch.empty(0)]
    for run in blocks(lengths.numpy(), np.arange(len(pids)), max_rows):
        here = torch.from_numpy(run)
        parts.append(maxsim_packed(query.float(), index.decompress(pids[here]), lengths[here], floor))
    return torch.cat(parts)


def _prune(index: Passages, similar: Tensor, pids: Tensor, keep: Tensor, n: int) -> Tensor:
    """The n passages with the best centroid scores, best first, the larger pid first among equals."""
    codes, lengths = index.codes_of(pids).long(), index.lengths_of(pids)
    kept = keep[codes]
    owner = torch.repeat_interleave(torch.arange(len(pids)), lengths)[kept]
    best = segment_max(similar[codes[kept]], torch.bincount(owner, minlength=len(pids)))
    scores = best.clamp(min=NO_CENTROID).sum(1)
    order = np.lexsort((-pids.numpy(), -scores.numpy()))[:n]
    return pids[torch.from_numpy(order)]
