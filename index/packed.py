"""MaxSim over packed documents, and the exhaustive scan that both the exact and the compressed index use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from core.maxsim import segment_max
from index.common import NO_VECTORS, NOT_RANKED, best_keys, rank_keys

BUDGET_BYTES = 256 << 20
"""Memory that one block of a scan may take: its vectors in float32 and its similarities."""

QUERY_ROWS = 4096
"""Query rows taken through the index in one pass; more would shrink the blocks of documents."""


def packed_scores(queries: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
    """MaxSim of queries [B, T, D] with packed documents: vectors [sum(lengths), D], lengths [n] -> [B, n] float32.

    Query rows that do not count must be zero. Documents of length 0 get NO_VECTORS.
    """
    batch, rows, dim = queries.shape
    with torch.autocast(vectors.device.type, enabled=False):  # scores are float32 also below an autocast
        sims = vectors @ queries.reshape(batch * rows, dim).T
    scores = segment_max(sims, lengths).view(-1, batch, rows).sum(-1)
    return scores.masked_fill_((lengths == 0)[:, None], NO_VECTORS).T


def blocks(lengths: np.ndarray, positions: np.ndarray, max_rows: int) -> Iterator[np.ndarray]:
    """Cut ascending document positions into runs of at most ``max_rows`` vectors (at least one document each)."""
    ends = np.cumsum(lengths[positions])
    start, before = 0, 0
    while start < len(positions):
        stop = max(start + 1, int(np.searchsorted(ends, before + max_rows, "right")))
        yield positions[start:stop]
        before, start = int(ends[stop - 1]), stop


def scan(
    read: Callable[[np.ndarray], Tensor],
    lengths: np.ndarray,
    queries: Tensor,
    k: int,
    allowed: list[np.ndarray | None],
    budget_bytes: int = BUDGET_BYTES,
) -> list[Tensor]:
    """Score every allowed document with every query; one row of at most k descending keys per query.

    read: positions [n] -> their vectors, packed, float32 on the queries' device. lengths: vectors per document, of
    the whole index. queries [B, T, D] float32. Memory does not grow with the index, the answer not with the budget.
    """
    out: list[Tensor] = []
    step = max(1, QUERY_ROWS // max(1, queries.shape[1]))
    for first in range(0, len(queries), step):
        part = slice(first, first + step)
        out += _scan(read, lengths, queries[part], k, allowed[part], budget_bytes)
    return out


def _scan(read, lengths, queries, k, allowed, budget_bytes) -> Tensor:
    device = queries.device
    if any(a is None for a in allowed):
        wanted = np.arange(len(lengths))
    elif all(a is allowed[0] for a in allowed):
        wanted = allowed[0]
    else:
        wanted = np.unique(np.concatenate(allowed))
    max_rows = max(1, budget_bytes // (4 * (2 * queries.shape[2] + queries.shape[0] * queries.shape[1])))
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for positions in blocks(lengths, wanted, max_rows):
        scores = packed_scores(queries, read(positions), torch.from_numpy(lengths[positions]).to(device))
        keys = rank_keys(scores.contiguous(), torch.from_numpy(positions).to(device))
        for row, a in enumerate(allowed):
            if a is not None and a is not wanted:
                forbidden = ~np.isin(positions, a, assume_unique=True)
                keys[row, torch.from_numpy(forbidden).to(device)] = NOT_RANKED
        best = best_keys(torch.cat([best, best_keys(keys, k)], dim=1), k)
    return best
