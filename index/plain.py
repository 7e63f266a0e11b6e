"""The loops of ``index.kernels`` in plain torch and numpy: the reference they are tested against, what runs without
numba, and what runs on an accelerator, where a part keeps its codes and residuals in device memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.maxsim import segment_max
from index.codec import Codec
from index.common import NO_VECTORS, best_keys
from index.ivf import InvertedLists, row_numbers
from index.segment import Segment

BUDGET_BYTES = 256 << 20
"""Memory that one step of a search may take."""


@dataclass
class Look:
    """What one query makes of the centroids. products [K, T] int32; table [K, T] uint8; floats [T, D], the rows;
    integers [T, D], the same in multiples of their step."""

    products: Tensor
    table: Tensor
    floats: Tensor
    integers: Tensor
    step: float

    def shorten(self) -> None:
        """Drop what only the choice of a shortlist needs."""
        self.products = self.table = self.products.new_empty(0)


class PlainCodec:
    def __init__(self, codec: Codec, device: torch.device) -> None:
        self.codec, self.device = codec.to(device), device
        self.n_centroids, self.dim, self.levels = len(codec.centroids), codec.dim, codec.levels
        # float32 holds these integers and their sums exactly; its matrix product exists on every device.
        self.integers = self.codec.integers.float()

    def look(self, query: np.ndarray) -> Look:
        rows = torch.from_numpy(query).to(self.device)
        top = rows.abs().max()
        scale = torch.where(top > 0, torch.div(torch.full_like(top, self.levels), top), 0.0)  # not the reciprocal
        integers = torch.round(rows * scale)
        with torch.autocast(self.device.type, enabled=False):  # these products must be exact
            products = (self.integers @ integers.T).to(torch.int32)
        low, high = products.min(), products.max()
        spread = torch.clamp(high - low, min=1).float()
        # (a number over a tensor would be a product with the reciprocal, which rounds otherwise)
        table = ((products - low).float() * torch.div(torch.full_like(spread, 255), spread)).to(torch.uint8)
        return Look(products, table, rows, integers, float(top) / self.levels * self.codec.step)

    def floats(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.device)

    def opened(self, look: Look, n_probe: int, floor: int) -> Tensor:
        """[K] bool: the n_probe largest products of every row that reach ``floor``; ties at the lower centroid."""
        number = torch.arange(self.n_centroids, device=self.device)[:, None]
        keys = (look.products.long() << 32) | (0xFFFFFFFF - number)
        best = keys.topk(min(n_probe, self.n_centroids), dim=0).values
        cells = (0xFFFFFFFF - (best & 0xFFFFFFFF))[(best >> 32) >= floor]
        out = torch.zeros(self.n_centroids, dtype=torch.bool, device=self.device)
        out[cells] = True
        return out


class PlainPart:
    """Documents first .. last - 1 of a segment; positions are the segment's."""

    def __init__(self, codec: PlainCodec, segment: Segment, first: int, last: int) -> None:
        self.codec, self.segment, self.first, self.last = codec, segment, first, last
        device = codec.device
        offsets = segment.offsets[first : last + 1]
        start, stop = int(offsets[0]), int(offsets[-1])
        self.offsets = offsets - start
        self._starts = torch.from_numpy(self.offsets).to(device)
        self._start = start
        lists = InvertedLists.read(segment, codec.n_centroids)
        here = (lists.positions >= first) & (lists.positions < last)
        counts = np.add.reduceat(np.append(here, False).astype(np.int64), lists.starts[:-1])
        counts[np.diff(lists.starts) == 0] = 0
        self._owner = torch.repeat_interleave(
            torch.arange(codec.n_centroids, device=device, dtype=torch.int32), torch.from_numpy(counts).to(device)
        )
        self._listed = torch.from_numpy(lists.positions[here] - np.int32(first)).to(device)
        self._held = self._hold(start, stop)  # last: it takes what memory is left

    def _hold(self, start: int, stop: int) -> dict[str, Tensor]:
        """What fits on an accelerator, the codes before the residuals; the rest is read where it is mapped."""
        if self._on_host():
            return {}
        held, room = {}, free_bytes(self.codec.device)
        for name in ("codes", "residuals"):
            facts = self.segment.facts["arrays"][name]
            size = (stop - start) * max(1, math.prod(facts["shape"])) * (4 if name == "codes" else 1)
            if size <= room:
                held[name] = self._as_tensor(name, self.segment.read(name, start, stop)).to(self.codec.device)
                room -= size
        return held

    def _on_host(self) -> bool:
        return self.codec.device.type == "cpu"

    def _as_tensor(self, name: str, rows: np.ndarray) -> Tensor:
        if name == "codes":  # a damaged code must not read beside the table
            rows = np.clip(rows, 0, self.codec.n_centroids - 1).astype(np.int32)
        return torch.from_numpy(rows)

    def _take(self, name: str, at: Tensor) -> Tensor:
        """Rows of an array on the device, from there or from the file."""
        if name in self._held:
            return self._held[name][at]
        return self._as_tensor(name, self.segment.array(name)[at.cpu().numpy() + self._start]).to(self.codec.device)

    def candidates(self, opened: Tensor, wanted: np.ndarray | None) -> Tensor:
        """Ascending positions (from 0 at ``first``) of the wanted documents in the opened lists."""
        found = torch.zeros(self.last - self.first, dtype=torch.bool, device=self.codec.device)
        found[self._listed[opened[self._owner.long()]].long()] = True
        if wanted is not None:
            found &= torch.from_numpy(wanted[self.first : self.last]).to(found.device).bool()
        return found.nonzero().flatten()

    def everything(self, wanted: np.ndarray | None) -> Tensor:
        """Ascending positions (from 0 at ``first``) of the wanted documents of this part."""
        here = np.arange(self.last - self.first)
        if wanted is not None:
            here = np.flatnonzero(wanted[self.first : self.last])
        return torch.from_numpy(here).to(self.codec.device)

    def shortlist(self, look: Look, positions: Tensor, n: int) -> np.ndarray:
        """The n best keys (approximate score << 32 | 2^32 - 1 - position)."""
        best = torch.empty(0, dtype=torch.int64, device=self.codec.device)
        width = look.table.shape[1]
        for here in self._runs(positions, BUDGET_BYTES // (8 * (width + 4))):
            lengths = self._starts[here + 1] - self._starts[here]
            codes = self._take("codes", self._rows(here, lengths)).long()
            scores = segment_max(look.table[codes].float(), lengths).clamp_(min=0).sum(1)
            keys = (scores.long() << 32) | (0xFFFFFFFF - (here + self.first))
            best = best_keys(torch.cat([best, keys]), n)
        return best.cpu().numpy()

    def refine(self, looks: Sequence[Look], positions: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
        """Per query the n best keys of its ascending positions: MaxSim in integers << 32 | 2^32 - 1 - position."""
        return [self._refine(look, here, n) for look, here in zip(looks, positions)]

    def _refine(self, look: Look, positions: np.ndarray, n: int) -> np.ndarray:
        best = torch.empty(0, dtype=torch.int64, device=self.codec.device)
        local = torch.from_numpy(np.asarray(positions, dtype=np.int64) - self.first).to(self.codec.device)
        for here in self._runs(local, BUDGET_BYTES // (8 * (self.codec.dim + len(look.integers) + 1))):
            lengths = self._starts[here + 1] - self._starts[here]
            at = self._rows(here, lengths)
            vectors = self.codec.codec.rebuild(self._take("codes", at), self._take("residuals", at))
            with torch.autocast(vectors.device.type, enabled=False):
                products = vectors @ look.integers.T
            scores = segment_max(products, lengths).long().sum(1) >> self.codec.codec.shift(len(look.integers))
            best = best_keys(torch.cat([best, (scores << 32) | (0xFFFFFFFF - (here + self.first))]), n)
        return best.cpu().numpy()

    def close(self, looks: Sequence[Look], positions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Per query [n] float32: ``rescore`` for a query that has been looked at."""
        rows = [look.floats for look in looks]
        return [self.rescore(r, np.array([0, len(r)]), here)[:, 0] for r, here in zip(rows, positions)]

    def rescore(self, rows: Tensor, starts: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """[n, B] float32: MaxSim of the queries whose rows are rows[starts[b] : starts[b + 1]], positions ascending."""
        out = []
        owner = torch.repeat_interleave(
            torch.arange(len(starts) - 1, device=rows.device), torch.from_numpy(np.diff(starts)).to(rows.device)
        )
        local = torch.from_numpy(np.asarray(positions, dtype=np.int64) - self.first).to(rows.device)
        for here in self._runs(local, BUDGET_BYTES // (8 * (self.codec.dim + len(rows) + 1))):
            lengths = self._starts[here + 1] - self._starts[here]
            at = self._rows(here, lengths)
            vectors = self.codec.codec.decompress(self._take("codes", at), self._take("residuals", at))
            with torch.autocast(vectors.device.type, enabled=False):
                best = segment_max(vectors @ rows.T, lengths)
            scores = best.new_zeros(len(here), len(starts) - 1).index_add_(1, owner, best[:, : len(owner)])
            out.append(scores.masked_fill_((lengths == 0)[:, None], NO_VECTORS))
        return torch.cat(out).cpu().numpy()

    def scan(self, rows: Tensor, starts: np.ndarray, first: int, last: int) -> np.ndarray:
        """``rescore`` of all documents first .. last - 1."""
        return self.rescore(rows, starts, np.arange(first, last))

    def _rows(self, here: Tensor, lengths: Tensor) -> Tensor:
        ends = lengths.cumsum(0)
        shift = torch.repeat_interleave(self._starts[here] - (ends - lengths), lengths)
        return shift + torch.arange(len(shift), device=shift.device)

    def _runs(self, positions: Tensor, max_rows: int) -> list[Tensor]:
        """Runs of documents of at most ``max_rows`` vectors (at least one document each)."""
        lengths = (self._starts[positions + 1] - self._starts[positions]).cpu().numpy()
        ends, runs, start, before = np.cumsum(lengths), [], 0, 0
        while start < len(positions):
            stop = max(start + 1, int(np.searchsorted(ends, before + max(1, max_rows), "right")))
            runs.append(positions[start:stop])
            before, start = int(ends[stop - 1]), stop
        return runs or [positions]


def free_bytes(device: torch.device) -> int:
    """What an index may take of an accelerator's memory: four fifths of what is free; a search needs the rest."""
    if device.type == "cuda":
        return int(0.8 * torch.cuda.mem_get_info(device)[0])
    return 4 << 30  # Apple's and others' memory is the machine's own


def count_pairs(codes: np.ndarray, lengths: np.ndarray, first: int, last: np.ndarray, counts: np.ndarray) -> None:
    cells, _ = _distinct(codes, lengths, first)
    counts += np.bincount(cells, minlength=len(counts))


def place_pairs(codes, lengths, first, last, low, high, cursor, out) -> None:
    cells, where = _distinct(codes, lengths, first)
    inside = (cells >= low) & (cells < high)
    here = np.bincount(cells[inside], minlength=len(cursor))
    used = np.flatnonzero(here)
    out[row_numbers(cursor[used], here[used])] = where[inside]
    cursor += here


def _distinct(codes: np.ndarray, lengths: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Different (code, document) pairs, ordered by code, then document."""
    documents = np.repeat(np.arange(first, first + len(lengths)), lengths)
    keys = np.unique((codes.astype(np.int64) << 32) | documents)
    return keys >> 32, keys & 0xFFFFFFFF
