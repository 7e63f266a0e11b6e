"""Documents divided among processes: every member searches its stretch, and all agree on every ranking.

Each member opens the same index; the stretches have equal numbers of vectors. Because members agree on the candidates
before they are scored, the answer is exactly that of one process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from index.common import top_keys
from index.segment import Segment

Stretch = tuple[int, int, int, Segment]


class Group(Protocol):
    alone: bool

    def agree(self, manifest: dict) -> bool:
        """Whether all members opened the same state of the index."""
        ...

    def stretches(self, bases: np.ndarray, segments: Sequence[Segment]) -> list[Stretch]:
        """(base, first, last, segment) of what this member searches: documents first .. last - 1 of the segment."""
        ...

    def total(self, counts: Sequence[int]) -> list[int]:
        """Sums over the members."""
        ...

    def merge(self, keys: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
        """The n largest keys of all members, per query, descending."""
        ...


class Alone:
    """A process that holds the whole index."""

    alone = True

    def agree(self, manifest: dict) -> bool:
        return True

    def stretches(self, bases: np.ndarray, segments: Sequence[Segment]) -> list[Stretch]:
        return [(int(base), 0, len(s), s) for base, s in zip(bases, segments)]

    def total(self, counts: Sequence[int]) -> list[int]:
        return list(counts)

    def merge(self, keys: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
        return list(keys)


class Ranks:
    """The processes of torch.distributed: rank r holds the r-th stretch."""

    alone = False

    def agree(self, manifest: dict) -> bool:
        from core import distributed

        return len(set(distributed.gather_objects(json.dumps(manifest, sort_keys=True)))) == 1

    def __init__(self) -> None:
        from core import distributed

        self.rank, self.world = distributed.rank(), distributed.world()

    def stretches(self, bases: np.ndarray, segments: Sequence[Segment]) -> list[Stretch]:
        return share(Alone().stretches(bases, segments), self.rank, self.world)

    def total(self, counts: Sequence[int]) -> list[int]:
        from core import distributed

        return np.sum(distributed.gather_objects(list(counts)), axis=0, dtype=int).tolist()

    def merge(self, keys: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
        from core import distributed

        everyone = distributed.gather_objects(list(keys))
        return [top_keys(np.concatenate(parts), n) for parts in zip(*everyone)]


def share(stretches: Sequence[Stretch], number: int, of: int) -> list[Stretch]:
    """The number-th of ``of`` shares with about equal numbers of vectors; together they are all documents."""
    out = []
    for base, first, last, segment in stretches:
        edges = segment.offsets[first : last + 1]
        low, high = (int(edges[0]) + (int(edges[-1]) - int(edges[0])) * n // of for n in (number, number + 1))
        # A document belongs where its first vector lies; one without vectors is never searched.
        start, stop = np.searchsorted(edges[:-1], [low, high]).tolist()
        if number == of - 1:
            stop = last - first
        if stop > start:
            out.append((base, first + start, first + stop, segment))
    return out
