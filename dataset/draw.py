"""Drawing training examples: a lazy sequence whose items depend on nothing but (seed, epoch, position)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from core.errors import UserError
from core.records import Example, Query

Modality = Literal["image+question", "question", "image"]


class Draws(Sequence[Example]):
    """``make(position, rng)`` for every position; the generator is seeded by (seed, epoch, position), so any rank and
    any resumed run draws the same."""

    def __init__(self, length: int, epoch: int, seed: int, make: Callable[[int, random.Random], Example]) -> None:
        self._length, self._epoch, self._seed, self._make = length, epoch, seed, make

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position):
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(self._length))]
        if not -self._length <= position < self._length:
            raise IndexError(position)
        position %= self._length
        return self._make(position, random.Random(f"{self._seed}/{self._epoch}/{position}"))


def restrict(query: Query, modality: Modality) -> Query:
    """The query with one modality left, for the baselines that see only the question or only the image."""
    if modality == "question":
        if not query.text.strip():
            raise UserError(f"query '{query.id}' has no question, so data.modality 'question' leaves it empty.")
        return replace(query, images=())
    if modality == "image":
        if not query.images:
            raise UserError(f"query '{query.id}' has no image, so data.modality 'image' leaves it empty.")
        return replace(query, text="")
    return query
