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
from index.common import QUERY_ROWS, SCAN_ROWS, compiled, float_keys, key_positions, scan, top_keys
from index.shards import Group, Stretch, share

SHORTLIST = 4
"""Documents that are scored in integers, as a multiple of those that are decompressed (PLAID's ndocs and ndocs / 4)."""

BATCH = 64
"""Queries whose shortlists are scored together: what several of them ask for is decompressed once."""

TOGETHER = 16
"""Queries that the members of a group take to their shortlists together."""

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

        Shortlists are scored together, document by document. To its shortlist, a process that is alone takes one query
        at a time, while what it has looked at is in the cache; members of a group take some and meet between the steps.
        """
        out: list[np.ndarray] = []
        batch = max(1, min(BATCH, QUERY_ROWS // emb.shape[1]))
        for first in range(0, len(emb), batch):
            part = slice(first, first + batch)
            out += self._rank(emb[part], k, masks[part], effort)
        return out

    def _rank(self, emb: np.ndarray, k: int, masks: Sequence[Mask], effort: Knobs) -> list[np.ndarray]:
        """``rank`` for queries whose shortlists are scored together; a group agrees on every shortlist."""
        rows = [q[q.any(-1)] if q.any() else q[:1] for q in emb]
        n = effort.n_candidates
        asking = [i for i, (_, count) in enumerate(masks) if count > n and emb[i].any()]
        looks, short = self._shortlists(rows, asking, masks, effort)
        refined = self._refine(looks, short, n)
        closest = self._close(looks, {i: np.sort(key_positions(keys)) for i, keys in refined.items()})

        def score(i: int) -> np.ndarray:
            if i in looks:
                return top_keys(closest[i], k)
            mask, count = masks[i]  # all there are; a query of zeros gives every document 0
            chosen = (np.arange(count) if mask is None else np.flatnonzero(mask))[:n]
            floats = {codec: codec.floats(rows[i]) for codec in self.codecs}
            return top_keys(self._exact(floats, len(rows[i]), chosen), k)

        return self.group.merge(threads.run(score, range(len(emb))), k)

    def _shortlists(
        self, rows: Sequence[np.ndarray], asking: Sequence[int], masks: Sequence[Mask], effort: Knobs
    ) -> tuple[dict[int, Any], dict[int, np.ndarray]]:
        """Per query what every codec makes of it, and the ascending positions of its shortlist."""
        n = SHORTLIST * effort.n_candidates

        def choose(some: Sequence[int]) -> list[tuple[int, Any, np.ndarray]]:
            looks = dict(zip(some, threads.run(lambda i: self._look(rows[i]), some)))
            found = self._candidates(looks, masks, effort)
            keys = self.group.merge(threads.run(lambda i: self._shortlist(looks[i], found[i], n), some), n)
            for look in (look for of_codecs in looks.values() for look in of_codecs.values()):
                look.shorten()
            return [(i, looks[i], np.sort(key_positions(best))) for i, best in zip(some, keys)]

        if self.group.alone:
            chosen = threads.run(lambda i: choose([i])[0], asking)
        else:  # in turn, since members meet
            chosen = [one for at in range(0, len(asking), TOGETHER) for one in choose(asking[at : at + TOGETHER])]
        return {i: look for i, look, _ in chosen}, {i: short for i, _, short in chosen}

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

    def _refine(self, looks: dict[int, Any], chosen: dict[int, np.ndarray], n: int) -> dict[int, np.ndarray]:
        """Per query the n best keys of its ascending positions, by integers."""
        long = {i: positions for i, positions in chosen.items() if len(positions) > n or not self.group.alone}
        keys = {i: [np.empty(0, np.int64) if i in long else 0xFFFFFFFF - p] for i, p in chosen.items()}  # all go on
        for base, part, own in self._own(long):
            for i, best in zip(own, part.refine([looks[i][part.codec] for i in own], list(own.values()), n)):
                keys[i].append(best - base)
        merged = self.group.merge([top_keys(np.concatenate(k), n) for k in keys.values()], n)
        return dict(zip(keys, merged))

    def _own(self, chosen: dict[int, np.ndarray]) -> Iterator[tuple[int, Any, dict[int, np.ndarray]]]:
        """(base, part, per query the part's positions) of ascending positions, those of other processes left out."""
        for base, part in zip(self.bases, self.parts):
            low, high = base + part.first, base + part.last
            own = {i: p[slice(*np.searchsorted(p, [low, high]))] - base for i, p in chosen.items()}
            own = {i: p for i, p in own.items() if len(p)}
            if own:
                yield base, part, own

    def _close(self, looks: dict[int, Any], chosen: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Per query keys of MaxSim with the decompressed documents at its ascending positions."""
        keys = {i: [np.empty(0, np.int64)] for i in chosen}
        for base, part, own in self._own(chosen):
            for i, scores in zip(own, part.close([looks[i][part.codec] for i in own], list(own.values()))):
                keys[i].append(float_keys(scores, own[i] + base))
        return {i: np.concatenate(k) for i, k in keys.items()}

    def _exact(self, floats: dict, n_rows: int, positions: np.ndarray) -> np.ndarray:
        """``_close`` for one query that has not been looked at."""
        starts, keys = np.array([0, n_rows]), [np.empty(0, np.int64)]
        for base, part, own in self._own({0: positions}):
            scores = threads.concatenate(lambda p, part=part: part.rescore(floats[part.codec], starts, p), own[0], 32)
            keys.append(float_keys(scores[:, 0], own[0] + base))
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

        def score(piece: tuple) -> tuple[np.ndarray, np.ndarray]:
            base, part, first, last = piece
            return part.scan(floats[part.codec], starts, first, last), np.arange(base + first, base + last)

        return scan(score, pieces, [mask for mask, _ in masks], k)
