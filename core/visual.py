"""What a retriever sees of images: pixels, or features that a frozen tower computed before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from core.errors import UserError
from core.records import ImageRef


@dataclass
class VisualBatch:
    """N images, either as pixels [N, 3, H, W] float or as tower features: global_ [N, v] and patches [N, P, v]."""

    pixels: Tensor | None = None
    global_: Tensor | None = None
    patches: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels if self.pixels is not None else self.global_)

    def select(self, index: Tensor) -> VisualBatch:
        return VisualBatch(*(None if t is None else t[index.to(t.device)] for t in self._parts()))

    def to(self, device: torch.device | str) -> VisualBatch:
        return VisualBatch(*(None if t is None else t.to(device) for t in self._parts()))

    def _parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.pixels, self.global_, self.patches


@runtime_checkable
class VisualSource(Protocol):
    """Gives pixels or stored features for image references. Models never open files or stores themselves."""

    fingerprint: dict
    """What made the values (tower, layers, preprocessing, dtype); a retriever refuses a source made by another."""

    def fetch(self, refs: Sequence[ImageRef]) -> VisualBatch: ...


class StoredVisual:
    """A VisualSource over a feature store whose items are [1 + P, v]: row 0 global, the others patches."""

    def __init__(self, store) -> None:
        self.store = store
        self.fingerprint = store.spec

    def fetch(self, refs: Sequence[ImageRef]) -> VisualBatch:
        items = self.store.get([ref.key for ref in refs])
        if not items:
            raise UserError("no images were asked for; give at least one ImageRef.")
        stacked = torch.stack([torch.from_numpy(x) for x in items]).float()
        return VisualBatch(global_=stacked[:, 0], patches=stacked[:, 1:])
