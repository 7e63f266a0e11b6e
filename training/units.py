"""Units: the parts of a batch that are encoded at one time, cut by rows or by a budget of token positions.

Texts of one length make no padding. So with a budget the items are taken in order of length and a unit is as wide as
its longest item; the vectors come back in the batch's order. Encoding units is exact: no item's vectors depend on its
companions (the contract of ``Retriever``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.batch import Batch
from core.tokens import TokenBatch

SIDES = ("queries", "documents")


@dataclass
class Unit:
    """Items of one side; rows [n] int64 on the CPU. width: text columns that hold all of them; None: as they are."""

    side: str
    rows: Tensor
    width: int | None = None

    def of(self, batch: Batch) -> Batch:
        """These items, cut to ``width`` columns."""
        part = batch.select(self.rows)
        return part if self.width is None else narrowed(part, self.width)


@dataclass
class Plan:
    """How both sides of a micro-batch are cut."""

    queries: list[Unit]
    documents: list[Unit]

    def order(self, side: str, device: torch.device | str = "cpu") -> Tensor:
        """[n] int64: where each item of the batch is among the concatenated units."""
        return torch.cat([unit.rows for unit in getattr(self, side)]).argsort().to(device)


def plan(queries: Batch, documents: Batch, rows: int | None, tokens: int | None) -> Plan | None:
    """rows: most items of a unit; tokens: most token positions, padding included (one item may have more). None of
    both: no plan."""
    if rows is None and tokens is None:
        return None
    return Plan(*(cut(batch, side, rows, tokens) for side, batch in zip(SIDES, (queries, documents))))


def cut(batch: Batch, side: str, rows: int | None, tokens: int | None) -> list[Unit]:
    """Units of one side, longest items first when there is a token budget (what does not fit shows at once)."""
    most = len(batch) if rows is None else rows
    if tokens is None or "mask" not in batch:
        return [Unit(side, torch.arange(s, min(s + most, len(batch)))) for s in range(0, len(batch), most)]
    lengths = widths(batch, side)
    order = lengths.argsort(descending=True, stable=True)
    units, start = [], 0
    while start < len(order):
        width = max(1, int(lengths[order[start]]))
        stop = min(start + max(1, tokens // width), start + most, len(order))
        units.append(Unit(side, order[start:stop], width))
        start = stop
    return units


def widths(batch: Batch, side: str) -> Tensor:
    """[n]: text columns of each item up to the last that counts.

    Of a document that is the last attended one. The [MASK] rows behind a query count without being attended to, so a
    query keeps its whole width.
    """
    mask = batch["mask"].bool().cpu()
    if side == "queries":
        return torch.full((len(batch),), mask.shape[1])
    return (mask * torch.arange(1, mask.shape[1] + 1)).amax(1)


def narrowed(batch: Batch, width: int) -> Batch:
    """The first ``width`` text columns of everything that has text columns ([n, L, ...], L as the mask's)."""
    full = batch["mask"].shape[1]

    def cut_one(tensor: Tensor) -> Tensor:
        return tensor[:, :width] if tensor.ndim > 1 and tensor.shape[1] == full else tensor

    return Batch({k: cut_one(v) for k, v in batch.tensors.items()}, batch.images, batch.offsets)


class InUnits:
    """The retriever as the objective sees it when units are encoded one after the other and everything is kept."""

    def __init__(self, retriever, batch) -> None:
        """batch: a TrainBatch with a plan; another batch is encoded at once."""
        self.temperature = retriever.temperature
        self._retriever, self._batch = retriever, batch

    def encode_queries(self, batch: Batch) -> TokenBatch:
        return self._encode("queries", batch, self._retriever.encode_queries)

    def encode_documents(self, batch: Batch) -> TokenBatch:
        return self._encode("documents", batch, self._retriever.encode_documents)

    def _encode(self, side: str, batch: Batch, verb: Callable[[Batch], TokenBatch]) -> TokenBatch:
        if batch is not getattr(self._batch, side):
            return verb(batch)
        parts = [verb(unit.of(batch)) for unit in getattr(self._batch.plan, side)]
        return TokenBatch.cat(parts).select(self._batch.plan.order(side, parts[0].embeddings.device))
