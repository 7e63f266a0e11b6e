"""Batches on their device: pinned memory, copies that do not wait, and the next batch made while the device is busy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from core.errors import UserError
from training.batches import TrainBatch
from training.phases import phase

Counted = tuple[TrainBatch, tuple[int, float]]


class Ahead:
    """Micro-batches of ``source`` on ``device``, each with what ``count`` says of it (see ``Meter.count``).

    A GPU computes on its own while the host goes on. ``prepare``, called when the backward pass has been started and
    nothing has waited for it yet, uses that time to collate the next batch and to start its copy. Without a GPU there
    is no such time, and ``prepare`` does nothing. A fault of the data met early is raised when its batch's turn comes.
    """

    def __init__(
        self,
        source: Iterator[TrainBatch],
        device: torch.device,
        count: Callable[[TrainBatch], tuple[int, float]],
        early: bool | None = None,
    ) -> None:
        """early: whether ``prepare`` works; None: on CUDA."""
        self.source, self.device, self.count = source, device, count
        self.early = device.type == "cuda" if early is None else early
        self._ready: Counted | UserError | None = None

    def __iter__(self) -> Ahead:
        return self

    def __next__(self) -> Counted:
        with phase("wait for data"):
            found, self._ready = self._ready, None
            if isinstance(found, UserError):
                raise found
            return self._fetch(next(self.source)) if found is None else found

    def prepare(self) -> None:
        if not self.early or self._ready is not None:
            return
        with phase("wait for data"):
            try:
                batch = next(self.source, None)
            except UserError as error:
                self._ready = error
            else:
                self._ready = None if batch is None else self._fetch(batch)

    def _fetch(self, batch: TrainBatch) -> Counted:
        counted = self.count(batch)
        pinned = batch.pin_memory() if self.device.type == "cuda" else batch
        return pinned.to(self.device, non_blocking=True), counted
