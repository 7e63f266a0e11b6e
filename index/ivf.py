"""Inverted lists: centroid -> the documents that have a vector there (PLAID's passage-level IVF).

Files of a segment: ``ivf.positions.bin`` [n] int32, the lists one after another, ascending in each, positions counted
in the segment; ``ivf.starts.npy`` [K + 1] int64.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.files import atomic_file
from index.common import compiled
from index.segment import Segment, SegmentWriter, damaged, save_array

POSITIONS, STARTS = "ivf.positions.bin", "ivf.starts.npy"
WALK_ROWS = 1 << 20
PLACE_ENTRIES = 1 << 23
"""Entries placed in one walk over the codes: 32 MB of memory, however long all lists are together."""


@dataclass
class InvertedLists:
    """positions [n] int32; starts [K + 1] int64."""

    positions: np.ndarray
    starts: np.ndarray

    @staticmethod
    def read(segment: Segment, n_centroids: int) -> InvertedLists:
        """Mapped positions; the starts are held and checked."""
        starts = np.array(segment.file(STARTS).table("int64", n_centroids + 1))
        content = segment.file(POSITIONS).bytes
        if starts[0] != 0 or starts[-1] * 4 != len(content) or (np.diff(starts) < 0).any():
            raise damaged(segment.path / STARTS, "it does not fit the lists")
        return InvertedLists(content.view(np.int32), starts)

    def documents(self, cells: np.ndarray) -> np.ndarray:
        """The positions in the lists of ``cells``, one list after another (a document may stand in several)."""
        counts = self.starts[cells + 1] - self.starts[cells]
        return self.positions[row_numbers(self.starts[cells], counts)]


def row_numbers(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of arange(s, s + n) over all (s, n), without a loop."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def write(writer: SegmentWriter, n_centroids: int) -> list[str]:
    """Write the lists of the codes that ``writer`` holds -> names of the files.

    The first walk counts; each further one places the next centroids whose lists fit in memory together.
    """
    # ``plain`` imports this module.
    loops = importlib.import_module("index.kernels" if compiled() else "index.plain")
    path = writer.path
    lengths = np.fromfile(path / "lengths.bin", np.uint32)
    counts = np.zeros(n_centroids, np.int64)
    last = np.full(n_centroids, -1, np.int64)
    for first, codes, here in _walk(path, lengths, writer, n_centroids):
        loops.count_pairs(codes, here, first, last, counts)
    starts = np.zeros(n_centroids + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    with atomic_file(path / POSITIONS) as handle:
        low = 0
        while low < n_centroids:
            high = max(low + 1, int(np.searchsorted(starts, starts[low] + PLACE_ENTRIES, "right")) - 1)
            out = np.empty(starts[high] - starts[low], np.int32)
            cursor, last = starts[:-1] - starts[low], np.full(n_centroids, -1, np.int64)
            for first, codes, here in _walk(path, lengths, writer, n_centroids):
                loops.place_pairs(codes, here, first, last, low, high, cursor, out)
            handle.write(out.data)
            low = high
    save_array(path / STARTS, starts)
    return [POSITIONS, STARTS]


def _walk(
    path: Path, lengths: np.ndarray, writer: SegmentWriter, n_centroids: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(first document, codes, lengths) of runs of documents; the loops trust the codes."""
    dtype = np.dtype(writer.arrays["codes"]["dtype"])
    first = row = 0
    with open(path / "codes.bin", "rb") as handle:
        while first < len(lengths):
            window = np.cumsum(lengths[first : first + WALK_ROWS], dtype=np.int64)
            n = max(1, int(np.searchsorted(window, WALK_ROWS, "right")))
            rows = int(window[n - 1])
            codes = np.frombuffer(handle.read(rows * dtype.itemsize), dtype)
            if len(codes) != rows or (rows and not 0 <= codes.min() <= codes.max() < n_centroids):
                raise damaged(path / "codes.bin", "it names centroids that do not exist")
            yield first, codes, lengths[first : first + n]
            first, row = first + n, row + rows
