"""The steps of a PLAID search, over the documents of one process or of a group of them.

Rankings are arrays of int64 keys (see ``index.common``): a score and a position in one number, so that merging what
parts, threads and processes found is a partition of integers and ties fall the same way everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from index import threads
from index.codec import Codec
from index.common import compiled, float_keys, key_positions, top_keys
from index.shards import Group, Stretch, share

QUERY_ROWS = 4096
"""Query rows that one pass over all documents serves."""

SCAN_ROWS = 1 << 14
"""Vectors of one piece of such a pass."""

SHORTLIST = 4
"""Documents that are scored in integers, as a multiple of those that are decompressed (PLAID's ndocs and ndocs / 4)."""

TOGETHER = 16
"""Queries that the members of a group take through the steps of a search together."""

WAVE = 64
"""Pieces whose results are held before they are merged."""

Mask = tuple[np.ndarray | None, int]


class Knobs(Protocol):
    n_probe: int
    threshold: float | None
    n_candidates: int


def _of(mask: np.ndarray | None, base: int, part: Any) -> np.ndarray | None:
    """A part's stretch of a mask of all positions."""
    return None if mask is None else mask[base : base + len(part.segment)]


class Searcher:
    """stretches: (base, first, last, segment), documents first .. last - 1 of a segment with its first position."""

    def __init__(
        self, codec: Codec, devices: Sequence[torch.device], stretches: Sequence[Stretch], group: Group
    ) -> None:
        self.group = group
        if devices[0].type == "cpu" and compiled():
            from index.cpu import CpuCodec, CpuPart

            self.codecs: list[Any] = [CpuCodec(codec)]
            self.parts: list[Any] = [CpuPart(self.codecs[0], s, first, last) for _, first, last, s in stretches]
            self.bases = [base for base, *_ in stretches]
            return
        from index.plain import PlainCodec, PlainPart

        self.codecs, self.parts, self.bases = [PlainCodec(codec, d) for d in devices], [], []
        for number, device_codec in enumerate(self.codecs):  # the devices of a process divide its documents
            for base, first, last, segment in share(stretches, number, len(devices)):
                self.parts.append(PlainPart(device_codec, segment, first, last))
                self.bases.append(base)

    def _look(self, query: np.ndarray) -> dict[Any, Any]:
        """codec -> what it makes of the query."""
        return {codec: codec.look(query) for codec in self.codecs}

    def rank(self, emb: np.ndarray, k: int, masks: Sequence[Mask], effort: Knobs) -> list[np.ndarray]:
        """emb [B, T, D] float32, zero rows do not count; masks: what may be found. -> k descending keys per query.

        A process that is alone takes every query through all steps at once, while what it has looked at is in the
        cache. Members of a group take them together and meet between the steps.
        """
        if self.group.alone:
            return threads.run(lambda i: self._rank(emb[i : i + 1], k, masks[i : i + 1], effort)[0], range(len(emb)))
        out: list[np.ndarray] = []
        together = max(1, min(TOGETHER, QUERY_ROWS // emb.shape[1]))
        for first in range(0, len(emb), together):
            part = slice(first, first + together)
            out += self._rank(emb[part], k, masks[part], effort)
        return out

    def _rank(self, emb: np.ndarray, k: int, masks: Sequence[Mask], effort: Knobs) -> list[np.ndarray]:
        """``rank`` for queries that go through the steps together; a group agrees on every shortlist."""
        rows = [q[q.any(-1)] if q.any() else q[:1] for q in emb]
        n = effort.n_candidates
        asking = [i for i, (_, count) in enumerate(masks) if count > n and emb[i].any()]
        looks = dict(zip(asking, threads.run(lambda i: self._look(rows[i]), asking)))
        found = self._candidates(looks, masks, effort)
        short = self.group.merge(
            threads.run(lambda i: self._shortlist(looks[i], found[i], SHORTLIST * n), asking), SHORTLIST * n
        )
        chosen = {i: np.sort(key_positions(keys)) for i, keys in zip(asking, short)}
        refined = self.group.merge(threads.run(lambda i: self._refine(looks[i], chosen[i], n), asking), n)
        chosen = {i: np.sort(key_positions(keys)) for i, keys in zip(asking, refined)}
        for i, (mask, count) in enumerate(masks):
            if i not in looks:  # all there are; a query of zeros gives every document 0
                chosen[i] = (np.arange(count) if mask is None else np.flatnonzero(mask))[:n]

        def score(i: int) -> np.ndarray:
            if i in looks:
                return top_keys(self._close(looks[i], chosen[i]), k)
            floats = {codec: codec.floats(rows[i]) for codec in self.codecs}
            return top_keys(self._exact(floats, len(rows[i]), chosen[i]), k)

        return self.group.merge(threads.run(score, range(len(emb))), k)

    def _candidates(self, looks: dict[int, Any], masks: Sequence[Mask], effort: Knobs) -> dict[int, list]:
        """Per query the candidates of every part; lists are opened until they hold enough documents."""
        found: dict[int, list] = {}
        probe, floor = effort.n_probe, effort.threshold
        few = [i for i in looks if masks[i][1] <= SHORTLIST * effort.n_candidates]
        pending = [i for i in looks if masks[i][1] > SHORTLIST * effort.n_candidates]
        for i in few:  # all of them go on: there is nothing to choose
            mask = masks[i][0]
            found[i] = [part.everything(_of(mask, base, part)) for base, part in zip(self.bases, self.parts)]

        def gather(i: int) -> list:
            step = looks[i][self.codecs[0]].step
            least = -(2**31) if floor is None else int(np.ceil(floor / max(step, 1e-30)))
            least = max(-(2**31), min(2**31 - 1, least))
            opened = {codec: codec.opened(look, probe, least) for codec, look in looks[i].items()}
            mask = masks[i][0]
            return [
                part.candidates(opened[part.codec], _of(mask, base, part)) for base, part in zip(self.bases, self.parts)
            ]

        while pending:
            found.update(zip(pending, threads.run(gather, pending)))
            counts = self.group.total([sum(len(f) for f in found[i]) for i in pending])
            if probe >= self.codecs[0].n_centroids and floor is None:
                break
            pending = [i for i, count in zip(pending, counts) if count < effort.n_candidates]
            probe, floor = 2 * probe, None
        return found

    def _shortlist(self, looks: dict, found: list, n: int) -> np.ndarray:
        keys = [
            part.shortlist(looks[part.codec], here, n) - base for base, part, here in zip(self.bases, self.parts, found)
        ]
        return top_keys(np.concatenate([np.empty(0, np.int64), *keys]), n)

    def _refine(self, looks: dict, positions: np.ndarray, n: int) -> np.ndarray:
        if len(positions) <= n and self.group.alone:
            return 0xFFFFFFFF - positions  # all of them go on
        keys = [np.empty(0, np.int64)]
        for base, part, here in self._own(positions):
            keys.append(part.refine(looks[part.codec], here, n) - base)
        return top_keys(np.concatenate(keys), n)

    def _own(self, positions: np.ndarray) -> Iterator[tuple[int, Any, np.ndarray]]:
        """(base, part, the part's positions) of ascending positions, those of other processes left out."""
        for base, part in zip(self.bases, self.parts):
            low, high = np.searchsorted(positions, [base + part.first, base + part.last])
            if high > low:
                yield base, part, positions[low:high] - base

    def _close(self, looks: dict, positions: np.ndarray) -> np.ndarray:
        """``_exact`` for a query that has been looked at."""
        keys = [np.empty(0, np.int64)]
        for base, part, here in self._own(positions):
            keys.append(float_keys(part.close(looks[part.codec], here), here + base))
        return np.concatenate(keys)

    def _exact(self, floats: dict, n_rows: int, positions: np.ndarray) -> np.ndarray:
        """Keys of MaxSim with the decompressed documents at ascending positions."""
        starts, keys = np.array([0, n_rows]), [np.empty(0, np.int64)]
        for base, part, here in self._own(positions):
            scores = threads.concatenate(lambda p, part=part: part.rescore(floats[part.codec], starts, p), here, 32)[
                :, 0
            ]
            keys.append(float_keys(scores, here + base))
        return np.concatenate(keys)

    def scan(self, emb: np.ndarray, k: int, masks: Sequence[Mask]) -> list[np.ndarray]:
        """MaxSim with every document that may be found -> at most k descending keys per query."""
        out: list[np.ndarray] = []
        step = max(1, QUERY_ROWS // emb.shape[1])
        for first in range(0, len(emb), step):
            rows = [q[q.any(-1)] for q in emb[first : first + step]]
            packed = np.concatenate(rows) if any(map(len, rows)) else emb[0, :1]
            floats = {codec: codec.floats(packed) for codec in self.codecs}
            starts = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
            out += self._scan(floats, starts, k, masks[first : first + step])
        return self.group.merge(out, k)

    def _scan(self, floats: dict, starts: np.ndarray, k: int, masks: Sequence[Mask]) -> list[np.ndarray]:
        pieces = [
            (base, part, max(first, part.first), min(last, part.last))
            for base, part in zip(self.bases, self.parts)
            for first, last in part.segment.blocks(SCAN_ROWS)
            if last > part.first and first < part.last
        ]

        def work(piece: tuple) -> list[np.ndarray]:
            base, part, first, last = piece
            scores = part.scan(floats[part.codec], starts, first, last)
            here = np.arange(base + first, base + last)
            out = []
            for b, (mask, _) in enumerate(masks):
                keep = slice(None) if mask is None else mask[here].astype(bool)
                out.append(top_keys(float_keys(scores[keep, b], here[keep]), k))
            return out

        best = [np.empty(0, np.int64)] * len(masks)
        for at in range(0, len(pieces), WAVE):
            results = threads.run(work, pieces[at : at + WAVE])
            best = [top_keys(np.concatenate([best[b], *(r[b] for r in results)]), k) for b in range(len(masks))]
        return best
