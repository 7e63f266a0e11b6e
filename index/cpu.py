"""Searching compressed documents with the compiled loops of ``index.kernels``. Arrays are numpy, positions are those of
one part; every method may run in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from index import kernels, scoring, threads
from index.codec import Codec, unpack_table
from index.common import NO_VECTORS, top_keys
from index.ivf import InvertedLists
from index.kernels import TILE
from index.segment import Segment, damaged
from index.simd import LOOKUP

EMPTY = np.empty(0, np.uint8)
MAPPED_BYTES = 64 << 20
"""Residuals up to this size are read through a map. Larger ones are read document by document: touching one byte of a
map can make two megabytes resident, and a search of a large index would soon hold all of it."""

PAIRS = 1 << 10
"""Documents and queries scored in one go, which bounds what is read of residuals that are not mapped."""


@dataclass
class Look:
    """What one query makes of the centroids. products [tiles, K, 32] int32 (flat), table the same as bytes."""

    products: np.ndarray
    table: np.ndarray
    tiles: int
    rows: int
    step: float
    """One unit of ``products`` as a similarity."""
    floats: np.ndarray
    """[T, D] float32: the rows in the decoder's order of dimensions, D filled up to a multiple of 16."""
    row_step: float
    """The value of 1 in tiles8."""
    tiles8: np.ndarray
    """[tiles, width, 32] int8 (flat): the rows as integers."""
    row_error: float
    """Length of the longest difference between a row and its integers times row_step."""
    row_length: float
    """Length of the longest row."""

    def shorten(self) -> None:
        """Drop what only the choice of a shortlist needs: it is large, and the look is kept for a while."""
        self.products = self.table = EMPTY


class CpuCodec:
    """A codec as the loops want it."""

    def __init__(self, codec: Codec) -> None:
        centroids, dim = codec.centroids.numpy(), codec.dim
        self.dim, self.n_centroids, self.levels, self.step = dim, len(centroids), codec.levels, codec.step
        self.width = -(-dim // 4) * 4
        per, bytes_ = 8 // codec.nbits, -(-dim * codec.nbits // 8)
        self.order = np.arange(dim)
        weights = [codec.weights.numpy(), codec.integer_weights.numpy().view(np.uint8)]
        if LOOKUP and codec.nbits <= 4 and bytes_ % 16 == 0 and dim == bytes_ * per:
            # Every place of the byte becomes a plane of dimensions, so that 16 bytes are decoded at once.
            self.order = self.order.reshape(bytes_, per).T.reshape(-1)
            raw = np.arange(1 << codec.nbits)
            turned = sum(((raw >> i) & 1) << (codec.nbits - 1 - i) for i in range(codec.nbits))
            weights = [np.resize(w[turned], 16) for w in weights]
        else:
            weights = [w[unpack_table(codec.nbits).numpy()].reshape(-1) for w in weights]
        floats = np.zeros((self.n_centroids, -(-dim // 16) * 16), np.float32)
        floats[:, :dim] = centroids[:, self.order]
        integers = np.full((self.n_centroids, self.width), 128, np.uint8)
        integers[:, :dim] = codec.integers.numpy()[:, self.order].astype(np.int16) + 128
        self.decoder = (floats, np.ascontiguousarray(weights[0], np.float32), per, bytes_, codec.unit, dim)
        self.codec, self.rounding = codec, codec.rounding()
        self.coder = (integers, np.ascontiguousarray(weights[1]), per, bytes_, dim)

    def look(self, query: np.ndarray) -> Look:
        """query [T, D] float32 with T >= 1."""
        rows, k = len(query), self.n_centroids
        tiles = -(-rows // TILE)
        products = np.empty(tiles * k * TILE, np.int32)
        top = np.float32(np.abs(query).max())
        scale = np.float32(self.levels) / top if top > 0 else np.float32(0)
        tiles8, scales = np.empty(tiles * self.width * TILE, np.int8), np.empty(TILE, np.float32)
        query, unsigned = np.ascontiguousarray(query[:, self.order]), self.coder[0].reshape(-1)
        for t in range(tiles):
            tile = tiles8[t * self.width * TILE : (t + 1) * self.width * TILE]
            kernels.make_tile(query, t * TILE, self.dim, self.levels, scale, tile, scales)
            out = products[t * k * TILE : (t + 1) * k * TILE]
            kernels.centroid_products(unsigned, self.width, tile, 0, k, out)
        low, high = kernels.extremes(products, tiles, k, rows)
        table = np.empty(tiles * k * TILE, np.uint8)
        kernels.make_table(products, tiles, k, rows, low, table_scale(low, high), table)
        wide = np.zeros((rows, self.decoder[0].shape[1]), np.float32)
        wide[:, : self.dim] = query
        row_step = top / np.float32(self.levels)
        rest = query - row_step * np.rint(query * scale)
        row_error, row_length = (float(np.sqrt(np.square(r).sum(1).max())) for r in (rest, query))
        return Look(
            products, table, tiles, rows, float(top) / self.levels * self.step, wide, float(row_step), tiles8,
            row_error, row_length,
        )  # fmt: skip

    def floats(self, rows: np.ndarray) -> np.ndarray:
        """rows [R, D] float32 -> [tiles, D, 32] (flat), for the rescoring loops."""
        return scoring.tiles(rows[:, self.order])

    def opened(self, look: Look, n_probe: int, floor: int) -> np.ndarray:
        """[K] uint8: the centroids whose lists are opened."""
        out = np.zeros(self.n_centroids, np.uint8)
        n = min(n_probe, self.n_centroids)
        if n == self.n_centroids and floor <= -(2**31):
            out[:] = 1
            return out
        kernels.probe(look.products, look.tiles, self.n_centroids, look.rows, n, np.int32(floor), out)
        return out


def edges(counts: Iterable[int]) -> np.ndarray:
    """[n + 1] int64: where each of n stretches begins, and where the last one ends."""
    return np.cumsum([0, *counts], dtype=np.int64)


def table_scale(low: int, high: int) -> np.float32:
    """Factor that brings products low .. high to 0 .. 255."""
    return np.float32(255) / np.float32(max(1, int(high) - int(low)))


class CpuPart:
    """Documents first .. last - 1 of a segment; positions are the segment's."""

    def __init__(self, codec: CpuCodec, segment: Segment, first: int, last: int) -> None:
        self.codec, self.segment, self.first, self.last = codec, segment, first, last
        self.offsets = segment.offsets
        self.codes, self.residuals = segment.array("codes"), segment.array("residuals").reshape(-1)
        self._descriptor = segment.file("residuals.bin").descriptor
        self.lists = InvertedLists.read(segment, codec.n_centroids)
        self._local = threading.local()

    def candidates(self, opened: np.ndarray, wanted: np.ndarray | None) -> np.ndarray:
        """Ascending positions of the wanted documents in the opened lists. wanted [documents of the segment] uint8."""
        local, n = self._local, len(self.segment)
        if not hasattr(local, "stamps") or local.stamp == 255:
            local.stamps, local.stamp = np.zeros(n, np.uint8), 0
            local.out = np.empty(n, np.int32)
        local.stamp += 1
        wanted = EMPTY if wanted is None else wanted
        lists = self.lists
        found = kernels.collect(
            opened, lists.positions, lists.starts, wanted, local.stamps, np.uint8(local.stamp), local.out
        )
        positions = np.sort(local.out[:found])
        return positions[np.searchsorted(positions, self.first) : np.searchsorted(positions, self.last)]

    def everything(self, wanted: np.ndarray | None) -> np.ndarray:
        """Ascending positions of the wanted documents of this part."""
        if wanted is None:
            return np.arange(self.first, self.last, dtype=np.int32)
        return (np.flatnonzero(wanted[self.first : self.last]) + self.first).astype(np.int32)

    def shortlist(self, look: Look, positions: np.ndarray, n: int) -> np.ndarray:
        """The n best keys: sum over rows of the best table entry << 32 | 2^32 - 1 - position."""

        def approximate(here: np.ndarray) -> np.ndarray:
            scores = np.empty(len(here), np.int32)
            k = self.codec.n_centroids
            kernels.approximate(self.codes, self.offsets, here, look.table, look.tiles, k, scores)
            return scores

        scores = threads.concatenate(approximate, positions, 1024)
        return top_keys((scores.astype(np.int64) << 32) | (0xFFFFFFFF - positions.astype(np.int64)), n)

    def refine(self, looks: Sequence[Look], positions: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
        """Per query the n best keys of its ascending positions: MaxSim in integers << 32 | 2^32 - 1 - position."""
        coder = self.codec.coder
        tiles8, starts = np.concatenate([look.tiles8 for look in looks]), edges(look.tiles for look in looks)

        def integers(here: np.ndarray, owners: np.ndarray) -> np.ndarray:
            scores = np.empty(len(here), np.int64)
            scoring.score_integers(*self._rows(here), owners, coder, tiles8, starts, scores)
            return scores

        found = self._pairs(integers, positions, 64)
        found = [scores >> self.codec.codec.shift(look.rows) for look, scores in zip(looks, found)]
        return [top_keys((s << 32) | (0xFFFFFFFF - p.astype(np.int64)), n) for s, p in zip(found, positions)]

    def close(self, looks: Sequence[Look], positions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Per query [n] float32: MaxSim with the decompressed documents at its ascending positions."""
        codec = self.codec
        gathered = (
            *(np.concatenate([look.tiles8 for look in looks]), edges(look.tiles for look in looks)),
            *(np.concatenate([look.floats for look in looks]), edges(look.rows for look in looks)),
            *(np.array([look.row_step for look in looks], np.float32), np.float32(codec.step)),
            np.array([look.row_error for look in looks], np.float32),
            np.array([look.row_length * codec.rounding for look in looks], np.float32),
        )

        def work(here: np.ndarray, owners: np.ndarray) -> np.ndarray:
            out, rows = np.empty(len(here), np.float32), self._rows(here)
            scoring.score_closely(*rows, owners, codec.coder, codec.decoder, gathered, np.float32(NO_VECTORS), out)
            return out

        return self._pairs(work, positions, 16)

    @staticmethod
    def _pairs(
        work: Callable[[np.ndarray, np.ndarray], np.ndarray], positions: Sequence[np.ndarray], least: int
    ) -> list[np.ndarray]:
        """work(positions, queries) of all pairs, by document, since one that many queries ask for is rebuilt once."""
        every = np.concatenate(positions)
        owners = np.repeat(np.arange(len(positions)), [len(p) for p in positions])
        order = np.argsort(every, kind="stable")
        scores = threads.concatenate(lambda here: work(every[here], owners[here]), order, least, PAIRS)
        back = np.empty_like(scores)
        back[order] = scores
        return np.split(back, edges(len(p) for p in positions)[1:-1])

    def rescore(self, floats: np.ndarray, starts: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """[n, B] float32: MaxSim with the decompressed documents; ``starts`` [B + 1] divides the rows among queries."""
        return self._score(*self._rows(positions), floats, starts)

    def scan(self, floats: np.ndarray, starts: np.ndarray, first: int, last: int) -> np.ndarray:
        """``rescore`` of all documents first .. last - 1, read in one go instead of page by page."""
        low, high = int(self.offsets[first]), int(self.offsets[last])
        codes, residuals = self.segment.read("codes", low, high), self.segment.read("residuals", low, high)
        offsets = self.offsets[first : last + 1] - low
        return self._score(codes, residuals.reshape(-1), offsets, np.arange(last - first), floats, starts)

    def _rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(codes, residuals, offsets, positions) for the loops: the mapped arrays, or copies of these documents."""
        if self.residuals.nbytes <= MAPPED_BYTES or self._descriptor < 0:
            return self.codes, self.residuals, self.offsets, positions
        positions, places = np.unique(positions, return_inverse=True)
        offsets = edges(self.offsets[positions + 1] - self.offsets[positions])
        codes = np.empty(offsets[-1], self.codes.dtype)
        width = self.codec.coder[3]
        residuals = np.empty(offsets[-1] * width, np.uint8)
        if not scoring.fetch(self._descriptor, width, self.codes, self.offsets, positions, offsets, codes, residuals):
            raise damaged(self.segment.path / "residuals.bin", "it ends early")
        return codes, residuals, offsets, places

    def _score(self, codes, residuals, offsets, positions, floats, starts) -> np.ndarray:
        out = np.empty((len(positions), len(starts) - 1), np.float32)
        scoring.score_residuals(
            codes,
            residuals,
            offsets,
            positions,
            self.codec.decoder,
            floats,
            starts,
            np.float32(NO_VECTORS),
            out,
        )
        return out
