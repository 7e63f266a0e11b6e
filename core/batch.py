"""Batch: what a collator hands to an encoder. Splittable, so encode(select) concatenated equals encode(all)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.visual import VisualBatch


@dataclass
class Batch:
    """tensors: name -> [B, ...]. images: the images of all items in order, or None; offsets [B + 1] int64 says that
    item i owns images offsets[i]:offsets[i + 1] (so items may have none, one or several)."""

    tensors: dict[str, Tensor]
    images: VisualBatch | None = None
    offsets: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def image_counts(self) -> Tensor:
        """[B] int64: images per item."""
        return self.offsets[1:] - self.offsets[:-1]

    def select(self, rows: Sequence[int] | Tensor | slice) -> Batch:
        """The sub-batch of the given items, in the given order."""
        index = torch.arange(len(self))[rows] if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.int64)
        device = self.offsets.device
        index = index.to(device)
        counts = self.image_counts[index]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        images = None
        if self.images is not None:
            # Image j of the selection is image j + shift of the batch. Without a loop, which would wait for a GPU.
            shift = torch.repeat_interleave(self.offsets[index] - offsets[:-1], counts)
            picked = torch.arange(len(shift), device=device) + shift
            images = self.images.select(picked) if len(picked) else None
        return Batch({k: v[index.to(v.device)] for k, v in self.tensors.items()}, images, offsets)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        move = {k: v.to(device, non_blocking=non_blocking) for k, v in self.tensors.items()}
        images = None if self.images is None else self.images.to(device, non_blocking)
        return Batch(move, images, self.offsets.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a copy to a GPU need not be waited for."""
        images = None if self.images is None else self.images.pin_memory()
        return Batch({k: v.pin_memory() for k, v in self.tensors.items()}, images, self.offsets.pin_memory())

    @staticmethod
    def image_offsets(counts: Sequence[int]) -> Tensor:
        return torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)
