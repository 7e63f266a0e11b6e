"""Residual codec of PLAID and ColBERTv2 (Santhanam et al. 2022a, section 3.3): a vector is the number of its centroid
and nbits per dimension of what remains.

Bit order, the one of colbert-ai: the bits of a value come lowest first, the stream of bits fills each byte from its
highest bit. With nbits=2 a byte holds a0 a1 b0 b1 c0 c1 d0 d1 for the values a, b, c, d.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError

NBITS = (1, 2, 4, 8)


def pack_bits(values: Tensor, nbits: int) -> Tensor:
    """values [n, d] uint8 below 2^nbits -> [n, ceil(d * nbits / 8)] uint8; the last byte is filled up with zeros."""
    bits = (values.cpu().numpy()[..., None] >> np.arange(nbits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(bits.reshape(len(values), values.shape[1] * nbits), axis=1))


def unpack_table(nbits: int) -> Tensor:
    """[256, 8 // nbits] int64: the values that each byte holds, in order."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).reshape(256, 8 // nbits, nbits)
    return torch.from_numpy((bits.astype(np.int64) << np.arange(nbits)).sum(-1))


def unpack_bits(packed: Tensor, nbits: int, dim: int) -> Tensor:
    """The inverse of ``pack_bits``: [n, bytes] uint8 -> [n, dim] int64."""
    return unpack_table(nbits).to(packed.device)[packed.long()].flatten(1)[:, :dim]


@dataclass
class Codec:
    """centroids [K, D] float32; cutoffs [2^nbits - 1] and weights [2^nbits] float32, ascending.

    unit: the vectors had length 1, so decompressed ones are brought back to it.
    """

    centroids: Tensor
    cutoffs: Tensor
    weights: Tensor
    unit: bool

    def __post_init__(self) -> None:
        self.nbits = (len(self.weights) - 1).bit_length()
        if self.nbits not in NBITS or len(self.weights) != 2**self.nbits:
            raise UserError(f"{len(self.weights)} bucket weights do not fit nbits in {NBITS}; the index is damaged.")
        self._table = self.weights[unpack_table(self.nbits).to(self.weights.device)]
        self.integers, self.step, self.levels = exact_integers(self.centroids, float(self.weights.abs().max()))
        self.integer_weights = torch.round(self.weights / self.step).to(torch.int8)

    def shift(self, rows: int) -> int:
        """Bits that an integer score of so many query rows loses, so that it fits into the upper half of a key."""
        return max(0, (rows * self.dim * self.levels * (self.levels + 1)).bit_length() - 31)

    def rounding(self) -> float:
        """Six standard deviations of the product of a row of length 1 with what ``rebuild`` rounds away.

        An entry of a rebuilt vector was rounded twice, each time by up to half a step either way.
        """
        return 6 * self.step / 6**0.5

    @property
    def dim(self) -> int:
        return self.centroids.shape[1]

    def to(self, device: torch.device | str) -> Codec:
        return Codec(self.centroids.to(device), self.cutoffs.to(device), self.weights.to(device), self.unit)

    def compress(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """vectors [n, D] float32 with their centroid numbers codes [n] -> packed residuals [n, bytes] uint8 (CPU)."""
        residuals = vectors - self.centroids[codes]
        return pack_bits(torch.bucketize(residuals, self.cutoffs).to(torch.uint8), self.nbits)

    def rebuild(self, codes: Tensor, packed: Tensor) -> Tensor:
        """``decompress`` in integers: multiples of ``step`` [n, D] float32, not brought to length 1."""
        weights = self.integer_weights.float()[unpack_table(self.nbits).to(packed.device)]
        rows = torch.nn.functional.embedding(packed.int(), weights).flatten(1)[:, : self.dim]
        return rows + self.integers.float()[codes.long()]

    def decompress(self, codes: Tensor, packed: Tensor, normalise: bool | None = None) -> Tensor:
        """codes [n], packed [n, bytes] uint8 -> [n, D] float32: centroid + bucket weight, at length 1 when ``unit``.

        normalise overrides ``unit``. Bytes are looked up in a table of 256 rows, so no bit is ever touched here.
        """
        rows = torch.nn.functional.embedding(packed.int(), self._table).flatten(1)[:, : self.dim]
        rows = rows + self.centroids[codes.long()]
        if self.unit if normalise is None else normalise:
            rows = torch.nn.functional.normalize(rows, dim=-1)
        return rows


def fit_buckets(residuals: Tensor, nbits: int, most: int = 1 << 20, rounds: int = 40) -> tuple[Tensor, Tensor]:
    """residuals [n, D] of held-out vectors -> cutoffs [2^nbits - 1] and weights [2^nbits] float32.

    All dimensions share the buckets, which are Lloyd-Max's (Lloyd 1982): a value belongs to the nearest weight and a
    weight is the mean of its values, which makes the squared error small. ColBERTv2 takes buckets of equal shares and
    their medians, whose error at 4 bits is about twice as long.
    """
    values = residuals.flatten()
    values = values[:: max(1, len(values) // most)].cpu().numpy().astype(np.float64)
    values.sort()
    sums = np.concatenate([[0.0], np.cumsum(values)])
    # Where squared error is what counts, buckets stand as densely as the cube root of the values' density does.
    edges = np.quantile(values, np.linspace(0, 1, 1025))
    density = np.cumsum(np.diff(edges) ** (2 / 3))
    shares = (np.arange(2**nbits) + 0.5) / 2**nbits * density[-1]
    weights = np.interp(shares, np.concatenate([[0.0], density]), edges)
    for _ in range(rounds):
        places = np.searchsorted(values, (weights[1:] + weights[:-1]) / 2)
        bounds = np.concatenate([[0], places, [len(values)]])
        counts = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(1, counts)
        weights = np.maximum.accumulate(np.where(counts > 0, means, weights))
    cutoffs = (weights[1:] + weights[:-1]) / 2
    return torch.from_numpy(cutoffs).float(), torch.from_numpy(weights).float()


def exact_integers(centroids: Tensor, room: float = 0.0) -> tuple[Tensor, float, int]:
    """centroids [K, D] float32 -> integers [K, D] int8, the value that 1 stands for, and the largest of them.

    Their products are exact in int32, and also in float32 whatever the order of the sum, so that every device, batch
    and shard finds the same candidates. room: what may be added to a centroid's value and still fit.
    """
    levels = min(126, int((2**24 / centroids.shape[1]) ** 0.5) - 1)
    top = float(centroids.abs().max()) + room
    step = top / levels if top > 0 else 1.0
    return torch.round(centroids / step).to(torch.int8), step, levels
