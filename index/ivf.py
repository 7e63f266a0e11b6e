"""Inverted lists: centroid -> the documents that have a vector there (PLAID's passage-level IVF)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from index.chunks import row_numbers


@dataclass
class InvertedLists:
    """positions [sum(counts)] int32: the lists one after another, ascending in each; counts [K] int64."""

    positions: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        self._starts = np.cumsum(self.counts) - self.counts

    def documents(self, cells: np.ndarray) -> np.ndarray:
        """The positions in the lists of ``cells``, one list after another (a document may stand in several)."""
        return self.positions[row_numbers(self._starts[cells], self.counts[cells])]


def invert(pairs: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]], n_centroids: int) -> InvertedLists:
    """Build the lists. pairs() walks the chunks in order and gives (codes [r], document positions [r]) of each.

    Two walks (count, then place) keep memory at one chunk plus the result.
    """
    counts = np.zeros(n_centroids, dtype=np.int64)
    for codes, documents in pairs():
        counts += np.bincount(_distinct(codes, documents)[0], minlength=n_centroids)
    out = np.empty(int(counts.sum()), dtype=np.int32)
    cursor = np.cumsum(counts) - counts
    for codes, documents in pairs():
        cells, where = _distinct(codes, documents)
        here = np.bincount(cells, minlength=n_centroids)
        used = np.flatnonzero(here)
        out[row_numbers(cursor[used], here[used])] = where
        cursor += here
    return InvertedLists(out, counts)


def _distinct(codes: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different (code, document) pairs, ordered by code, then document."""
    keys = np.unique((codes.astype(np.int64) << 32) | documents)
    return keys >> 32, keys & 0xFFFFFFFF
