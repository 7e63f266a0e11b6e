"""What a retriever sees of images: pixels, or features that a frozen tower computed before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> VisualBatch:
        return VisualBatch(*(None if t is None else t.to(device, non_blocking=non_blocking) for t in self._parts()))

    def pin_memory(self) -> VisualBatch:
        return VisualBatch(*(None if t is None else t.pin_memory() for t in self._parts()))

    def _parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.pixels, self.global_, self.patches


@runtime_checkable
class VisualSource(Protocol):
    """Gives pixels or stored features for image references. Models never open files or stores themselves."""

    fingerprint: dict
    """What made the values (tower, layers, preprocessing, dtype); a retriever refuses a source made by another."""

    def fetch(self, refs: Sequence[ImageRef]) -> VisualBatch: ...


def stamp_of(ref: ImageRef) -> str | None:
    """Size and time of the file the image stands in; None for bytes in memory, and for a file that is not there."""
    try:
        found = os.stat(ref.path or ref.tsv[0]) if ref.data is None else None
    except OSError:
        return None  # reading it says what is wrong
    where = "" if ref.tsv is None else f"-{ref.tsv[1]}"
    return None if found is None else f"{found.st_size}-{found.st_mtime_ns}{where}"


class StoredVisual:
    """A VisualSource over a feature store whose items are [1 + P, v]: row 0 global, the others patches."""

    def __init__(self, store) -> None:
        self.store = store
        self.fingerprint = store.spec
        self._checked: set[int] = set()  # hashes of keys and places whose file was looked at

    def fetch(self, refs: Sequence[ImageRef]) -> VisualBatch:
        items = self.store.get([ref.key for ref in refs])
        if not items:
            raise UserError("no images were asked for; give at least one ImageRef.")
        for ref in refs:
            name = hash((ref.key, ref.path or str(ref.tsv)))
            if name not in self._checked:
                self._check(ref)
                self._checked.add(name)
        stacked = torch.stack([torch.from_numpy(x) for x in items]).float()
        return VisualBatch(global_=stacked[:, 0], patches=stacked[:, 1:])

    def _check(self, ref: ImageRef) -> None:
        """Two data sets can use one file name. Of an image file that is here the size must be the stored one's.

        Not its time, which copying changes; and a file that is not here says nothing (features may travel alone).
        """
        stored, found = self.store.stamps[ref.key], stamp_of(ref)
        if stored is None or found is None:
            return
        was, now = (stamp.split("-")[0] for stamp in (stored, found))
        if was != now:
            raise UserError(
                f"the features of image '{ref.id}' in '{self.store.path}' are of another file: it had {was} bytes, "
                f"'{ref.path or ref.tsv[0]}' has {now}; run python -m runs.run_visual_embedder for this data set "
                "again, and if another data set with the same file names uses this cache, give each its own "
                "visual.cache."
            )


HOW = ("dtype", "precision", "draft")
"""Fields of a feature store's spec that say how exactly, not by which tower. A reader takes what is there."""


def as_stored(wanted: dict, found: dict) -> dict:
    """The spec ``wanted`` with the choices of the store whose spec is ``found``."""
    return {**{k: v for k, v in wanted.items() if k not in HOW}, **{k: found[k] for k in HOW if k in found}}


# ---- caches of the original systems: beside x.jpg a float32 array [1 + P, v] in x.npy, row 0 global


def is_original(folder: str | Path) -> bool:
    """Whether ``folder`` is no store of ours and has .npy files in it or below."""
    if (Path(folder) / "spec.json").is_file():
        return False
    return any(name.endswith("npy") for _, _, names in os.walk(folder) for name in names)


class OriginalVisual:
    """A VisualSource over such files. They say nothing of the tower; their shape is all that can be checked."""

    fingerprint = {"kind": "npy"}

    def __init__(self, folder: str | Path, width: int, grid: int | None = None) -> None:
        """width: of the model's vision tower. grid: cells per side that the model wants, None for all patches."""
        self.folder, self.width, self.grid = Path(folder), width, grid

    def fetch(self, refs: Sequence[ImageRef]) -> VisualBatch:
        items = [self._load(ref) for ref in refs]
        for ref, item in zip(refs, items):
            if len(item) != len(items[0]):
                raise UserError(
                    f"the stored features of '{ref.id}' have {len(item)} rows, those of '{refs[0].id}' "
                    f"{len(items[0])}; they are of two towers: make them again."
                )
        stacked = torch.from_numpy(np.stack(items)).float()
        return VisualBatch(global_=stacked[:, 0], patches=stacked[:, 1:])

    def _load(self, ref: ImageRef) -> np.ndarray:
        if ref.box is not None:
            raise UserError(f"image '{ref.id}' has a box, but a .npy cache holds whole images; build a feature cache.")
        # The original replaces the last three letters of the image's path, so that x.jpeg has x.jnpy.
        places = [self.folder / f"{ref.id[:-3]}npy", *([Path(f"{ref.path[:-3]}npy")] if ref.path else [])]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            shown = " or ".join(f"'{place}'" for place in dict.fromkeys(map(str, places)))
            raise UserError(
                f"image '{ref.id}' has no stored features: no {shown}; make them, or build a feature cache."
            )
        try:
            rows = np.load(found)  # no pickles
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"'{found}' cannot be read ({error}); make it again or build a feature cache.") from None
        wanted = f"[1 + {self.grid or 'P'}{'²' if self.grid else ''}, {self.width}]"
        fits = rows.ndim == 2 and rows.shape[1] == self.width and len(rows) > 1
        if not fits or rows.dtype.kind != "f" or (self.grid and len(rows) != 1 + self.grid**2):
            raise UserError(
                f"'{found}' is {rows.dtype} {list(rows.shape)}, this model wants floats {wanted}; it was made "
                "by another tower or setting: build a feature cache with python -m runs.run_visual_embedder."
            )
        return rows
