"""MaxSim over packed documents in torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from core.maxsim import segment_max
from index.common import NO_VECTORS

BUDGET_BYTES = 256 << 20
"""Memory that one block of a scan may take: its vectors in float32 and its similarities."""


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
