"""k-means for the centroids of a compressed index: seeded, chunked, plain Lloyd."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from index import threads
from index.common import compiled

BLOCK_BYTES = 8 << 20
"""Memory of one [rows, K] block of similarities."""


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """points [n, D], centroids [K, D] float32 -> [n] int64: the nearest centroid by squared distance."""
    # argmin |x - c|^2 = argmax x.c - |c|^2 / 2, one matrix product per block.
    bias = -0.5 * centroids.square().sum(1)
    step = max(1, BLOCK_BYTES // (4 * len(centroids)))
    return torch.cat([torch.addmm(bias, block, centroids.T).argmax(1) for block in points.split(step)])


class Assigner:
    """Points to their nearest centroid: integer products of one byte per dimension on CPUs that have them (a point
    between two centroids may go to the other one, which the residual makes up for), float32 elsewhere."""

    def __init__(self, centroids: Tensor, device: str | torch.device = "cpu") -> None:
        self.device, self.centroids = torch.device(device), centroids
        self.fast = False
        if self.device.type == "cpu" and compiled():
            from index.simd import DOT4

            self.fast = DOT4
        if self.fast:
            from index.codec import exact_integers

            integers, step, self.levels = exact_integers(centroids)
            self.width = -(-centroids.shape[1] // 4) * 4
            padded = np.zeros((len(centroids), self.width), np.int16)
            padded[:, : centroids.shape[1]] = integers.numpy()
            self.unsigned = (padded + 128).astype(np.uint8).reshape(-1)
            self.bias = (0.5 / step * centroids.square().sum(1)).numpy()

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """points [n, D] float32 -> [n] int32."""
        if not self.fast:
            rows = torch.from_numpy(points).to(self.device)
            return assign(rows, self.centroids.to(self.device)).to(torch.int32).cpu().numpy()
        from index import kernels

        codes = np.empty(len(points), np.int32)
        dim = points.shape[1]

        def work(part: slice) -> None:
            kernels.nearest(
                points, dim, self.levels, self.unsigned, self.width, self.bias, part.start, part.stop, codes
            )

        threads.run(work, threads.pieces(-(-len(points) // kernels.TILE), 8))
        return codes


def kmeans(points: np.ndarray, k: int, *, seed: int, iterations: int, unit: bool, device: str = "cpu") -> Tensor:
    """points [n, D] float32 with n >= k -> centroids [k, D] float32 on CPU.

    Starts from k different points; a centroid that loses all its points restarts at a random one. unit: centroids
    are brought to length 1 (spherical k-means). The same seed, device and thread count give the same bytes on CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(points)
    centroids = rows[torch.randperm(len(rows), generator=generator)[:k]].clone()
    for _ in range(iterations):
        nearest = torch.from_numpy(Assigner(centroids, device)(points)).long()
        sums = torch.zeros_like(centroids).index_add_(0, nearest, rows)
        counts = torch.bincount(nearest, minlength=k)
        centroids = sums / counts.clamp(min=1)[:, None]
        lost = torch.nonzero(counts == 0).flatten()
        if len(lost):
            centroids[lost] = rows[torch.randint(len(rows), (len(lost),), generator=generator)]
        if unit:
            centroids = torch.nn.functional.normalize(centroids, dim=-1)
    return centroids


def centroids_for(vectors: int, sample: int, most: int) -> int:
    """2^floor(log2(16 sqrt(vectors))) as in PLAID, at most half the sample and at most ``most``; a power of two."""
    wanted = max(1, int(16 * vectors**0.5))
    return 1 << (max(1, min(wanted, most, sample // 2)).bit_length() - 1)
