"""k-means for the centroids of a compressed index: seeded, chunked, plain Lloyd."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_BYTES = 64 << 20
"""Memory of one [rows, K] block of similarities."""


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """points [n, D], centroids [K, D] float32 -> [n] int64: the nearest centroid by squared distance."""
    # argmin |x - c|^2 = argmax x.c - |c|^2 / 2, one matrix product per block.
    bias = -0.5 * centroids.square().sum(1)
    step = max(1, BLOCK_BYTES // (4 * len(centroids)))
    return torch.cat([torch.addmm(bias, block, centroids.T).argmax(1) for block in points.split(step)])


def kmeans(points: Tensor, k: int, *, seed: int, iterations: int, unit: bool) -> Tensor:
    """points [n, D] float32 with n >= k -> centroids [k, D] float32.

    Starts from k different points; a centroid that loses all its points restarts at a random one. unit: centroids
    are brought to length 1 (spherical k-means). The same seed, device and thread count give the same bytes on CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids = points[torch.randperm(len(points), generator=generator)[:k].to(points.device)].clone()
    for _ in range(iterations):
        nearest = assign(points, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=k)
        centroids = sums / counts.clamp(min=1)[:, None]
        lost = torch.nonzero(counts == 0).flatten()
        if len(lost):
            again = torch.randint(len(points), (len(lost),), generator=generator)
            centroids[lost] = points[again.to(points.device)]
        if unit:
            centroids = torch.nn.functional.normalize(centroids, dim=-1)
    return centroids


def centroids_for(vectors: int, sample: int, most: int) -> int:
    """2^floor(log2(16 sqrt(vectors))) as in PLAID, at most half the sample and at most ``most``; a power of two."""
    wanted = max(1, int(16 * vectors**0.5))
    return 1 << (max(1, min(wanted, most, sample // 2)).bit_length() - 1)
