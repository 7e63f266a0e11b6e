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
    return unpack_table(nbits).to(packed.device)[packed.long()].reshape(len(packed), -1)[:, :dim]


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

    @property
    def dim(self) -> int:
        return self.centroids.shape[1]

    def to(self, device: torch.device | str) -> Codec:
        return Codec(self.centroids.to(device), self.cutoffs.to(device), self.weights.to(device), self.unit)

    def compress(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """vectors [n, D] float32 with their centroid numbers codes [n] -> packed residuals [n, bytes] uint8 (CPU)."""
        residuals = vectors - self.centroids[codes]
        return pack_bits(torch.bucketize(residuals, self.cutoffs).to(torch.uint8), self.nbits)

    def decompress(self, codes: Tensor, packed: Tensor, normalise: bool | None = None) -> Tensor:
        """codes [n], packed [n, bytes] uint8 -> [n, D] float32: centroid + bucket weight, at length 1 when ``unit``.

        normalise overrides ``unit``. Bytes are looked up in a table of 256 rows, so no bit is ever touched here.
        """
        rows = torch.nn.functional.embedding(packed.int(), self._table).reshape(len(codes), -1)[:, : self.dim]
        rows = rows + self.centroids[codes.long()]
        if self.unit if normalise is None else normalise:
            rows = torch.nn.functional.normalize(rows, dim=-1)
        return rows


def fit_buckets(residuals: Tensor, nbits: int) -> tuple[Tensor, Tensor]:
    """residuals [n, D] of held-out vectors -> cutoffs [2^nbits - 1] and weights [2^nbits] float32.

    All dimensions share the buckets: each holds the same share of the values and is rebuilt as its median.
    """
    values = np.sort(residuals.cpu().numpy().astype(np.float64), axis=None)
    edges = np.arange(2**nbits) / 2**nbits
    cutoffs = np.quantile(values, edges[1:])
    weights = np.quantile(values, edges + 0.5 / 2**nbits)
    return torch.from_numpy(cutoffs).float(), torch.from_numpy(weights).float()
