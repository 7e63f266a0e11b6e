"""PLAID (Santhanam et al. 2022b): centroid numbers find the candidates, compressed residuals rank them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.protocols import Ranking
from core.tokens import TokenBatch
from index import plaid_build
from index.base import ChunkedIndex
from index.chunks import load_array, row_numbers
from index.codec import Codec
from index.common import (
    NO_VECTORS,
    Allowed,
    allowed_positions,
    best_keys,
    check_k,
    check_queries,
    rank_keys,
    rankings,
    split_keys,
)
from index.ivf import InvertedLists
from index.packed import BUDGET_BYTES, blocks, packed_scores, scan, segment_max


@dataclass(frozen=True)
class Effort:
    """What a search may cost; never a function of k.

    n_probe: lists opened per query row. When they hold fewer than n_candidates documents it doubles until they do,
    so every search gives min(k, allowed) results. threshold: centroids whose best similarity with the query is below
    it are left out of the first approximate scoring (read only when the vectors have length 1: else it means
    nothing). n_candidates: documents that are decompressed and scored with residuals; four times as many survive
    the first approximate scoring.
    """

    n_probe: int
    threshold: float
    n_candidates: int


EFFORTS = {"fast": Effort(2, 0.45, 256), "balanced": Effort(4, 0.4, 1024)}
"""The third effort, "exhaustive", decompresses and scores every document."""


class Index(ChunkedIndex):
    """A compressed index: about dim * nbits / 8 + 2 bytes per vector."""

    FORMAT = plaid_build.FORMAT

    @classmethod
    def build(
        cls,
        path: str | Path,
        stream: Iterable[tuple[str, np.ndarray | None]],
        *,
        dim: int,
        encoder: dict,
        total: int | None = None,
        nbits: int = 2,
        seed: int = 0,
        max_centroids: int = 1 << 14,
        sample_vectors: int = 1 << 18,
        iterations: int = 4,
        chunk_docs: int = 4096,
        device: str = "cpu",
    ) -> Index:
        """Write the (id, [n, dim]) stream to ``path``, reading it once; at most one chunk is in memory.

        nbits: 1, 2, 4 or 8 per dimension. max_centroids: a cap on PLAID's 2^floor(log2(16 sqrt(vectors))); the default
        keeps a CPU build of a million passages to an hour or two. sample_vectors, iterations, seed: of k-means. device:
        where k-means and the assignment run. The float16 stream lies in ``path``/spool until the build is complete.
        Going on after a kill is as in ``exact``; it ends with the same bytes for the same options and thread count.
        """
        plaid_build.build(
            Path(path),
            stream,
            dim=dim,
            encoder=encoder,
            total=total,
            nbits=nbits,
            seed=seed,
            max_centroids=max_centroids,
            sample_vectors=sample_vectors,
            iterations=iterations,
            chunk_docs=chunk_docs,
            device=device,
        )
        return cls.open(path, device=device)

    @staticmethod
    def committed(path: str | Path) -> int:
        """Documents of an unfinished build that need not be encoded again (0 when there is none)."""
        return len(plaid_build.Chunks(Path(path) / plaid_build.SPOOL))

    @cached_property
    def codec(self) -> Codec:
        return plaid_build.read_codec(self.path).to(self.device)

    @cached_property
    def _lists(self) -> InvertedLists:
        return InvertedLists(load_array(self.path / "ivf.positions.npy"), load_array(self.path / "ivf.counts.npy"))

    @cached_property
    def _codes(self) -> Tensor:
        """All centroid numbers [vectors] int32: small enough (4 bytes per vector) to be held, read by every search."""
        codes = self.chunks.take("codes", np.arange(len(self)))
        return torch.from_numpy(codes.astype(np.int32)).to(self.device)

    def search(
        self,
        queries: TokenBatch,
        k: int,
        allowed_ids: Allowed = None,
        *,
        effort: str | None = "balanced",
        n_probe: int | None = None,
        threshold: float | None = None,
        n_candidates: int | None = None,
        budget_bytes: int = BUDGET_BYTES,
    ) -> list[Ranking]:
        """The k best documents of each query [B, T, D]; candidates come from every row that is unmasked and not zero.

        effort: "fast", "balanced" or "exhaustive" (see ``Effort``); n_probe, threshold and n_candidates replace one
        value of the first two. k must not exceed n_candidates. Ties, allowed_ids, empty documents and errors are
        those of the exact index.
        """
        chosen = self._effort(effort or "balanced", k, n_probe=n_probe, threshold=threshold, n_candidates=n_candidates)
        emb = check_queries(queries, self.dim, self.device)
        allowed = allowed_positions(allowed_ids, len(emb), {} if allowed_ids is None else self.where)
        with torch.inference_mode():
            if chosen is None:
                keys = scan(self._read, self.chunks.lengths, emb, k, allowed, budget_bytes)
            else:
                keys = [self._search_one(q, k, a, chosen, budget_bytes) for q, a in zip(emb, allowed)]
        return rankings(keys, self.chunks.ids)

    def _effort(self, name: str, k: int, **given: float | None) -> Effort | None:
        check_k(k, len(self))
        given = {key: value for key, value in given.items() if value is not None}
        if name == "exhaustive":
            if given:
                raise UserError(f"{next(iter(given))} has no meaning with effort='exhaustive'; leave one of them out.")
            return None
        if name not in EFFORTS:
            raise UserError(f"effort {name!r} is unknown; use {', '.join(map(repr, EFFORTS))} or 'exhaustive'.")
        effort = Effort(**{**vars(EFFORTS[name]), **given})
        if effort.n_probe < 1:
            raise UserError(f"n_probe={effort.n_probe} opens no list; use 1 or more.")
        if effort.n_candidates < k:
            raise UserError(
                f"k={k} is more than the n_candidates={effort.n_candidates} of effort={name!r}; "
                f"give n_candidates={k} or more, a higher effort, or a smaller k."
            )
        return effort

    def _search_one(self, query: Tensor, k: int, allowed: np.ndarray | None, effort: Effort, budget: int) -> Tensor:
        """query [T, D] -> at most k descending keys."""
        lengths = self.chunks.lengths
        active = query.any(-1)
        asks = bool(active.any())  # a query of zeros only gives every document 0
        query = query[active] if asks else query[:1]
        pool = np.arange(len(self)) if allowed is None else allowed
        filled = pool[lengths[pool] > 0]
        if len(filled) <= effort.n_candidates or not asks:
            positions = filled[: effort.n_candidates]
        else:
            similar = self.codec.centroids @ query.T  # [K, T]
            positions = self._candidates(similar, filled, effort)
            if self.manifest["unit"]:
                keep = similar.amax(1) >= effort.threshold
                positions = self._shortlist(similar, positions, 4 * effort.n_candidates, keep, budget)
            positions = self._shortlist(similar, positions, effort.n_candidates, None, budget)
        keys = self._exact(query, positions, k, budget)
        if len(filled) < k:  # the rest of the ranking: documents without vectors, in order
            rest = torch.from_numpy(pool[lengths[pool] == 0][:k]).to(self.device)
            last = rank_keys(torch.full(rest.shape, NO_VECTORS, device=self.device), rest)
            keys = best_keys(torch.cat([keys, last]), k)
        return keys

    def _candidates(self, similar: Tensor, filled: np.ndarray, effort: Effort) -> np.ndarray:
        """Ascending positions of the wanted documents in the n_probe best lists of every query row."""
        wanted = np.zeros(len(self), dtype=bool)
        wanted[filled] = True
        probe = effort.n_probe
        while True:
            cells = similar.topk(min(probe, len(similar)), dim=0).indices.unique().cpu().numpy()
            found = np.zeros(len(self), dtype=bool)
            found[self._lists.documents(cells)] = True
            positions = np.flatnonzero(found & wanted)
            if len(positions) >= effort.n_candidates or probe >= len(similar):
                return positions
            probe *= 2

    def _shortlist(
        self, similar: Tensor, positions: np.ndarray, n: int, keep: Tensor | None, budget: int
    ) -> np.ndarray:
        """The n documents whose centroids score best, ascending. keep [K] bool: the centroids that are looked at."""
        if len(positions) <= n:
            return positions
        chunks, best = self.chunks, torch.empty(0, dtype=torch.int64, device=self.device)
        for here in blocks(chunks.lengths, positions, max(1, budget // (8 * (similar.shape[1] + 4)))):
            lengths = torch.from_numpy(chunks.lengths[here]).to(self.device)
            rows = row_numbers(chunks.offsets[here], chunks.lengths[here])
            codes = self._codes[torch.from_numpy(rows).to(self.device)]
            if keep is not None:
                kept = keep[codes]
                owner = torch.repeat_interleave(torch.arange(len(here), device=self.device), lengths)
                codes, lengths = codes[kept], torch.bincount(owner[kept], minlength=len(here))
            scores = segment_max(similar[codes], lengths).sum(1)
            scores = scores.masked_fill_(lengths == 0, NO_VECTORS)
            keys = rank_keys(scores, torch.from_numpy(here).to(self.device))
            best = best_keys(torch.cat([best, best_keys(keys, n)]), n)
        return np.sort(split_keys(best)[1].cpu().numpy())

    def _exact(self, query: Tensor, positions: np.ndarray, k: int, budget: int) -> Tensor:
        lengths, best = self.chunks.lengths, torch.empty(0, dtype=torch.int64, device=self.device)
        for here in blocks(lengths, positions, max(1, budget // (8 * (self.dim + len(query) + 1)))):
            scores = packed_scores(query[None], self._read(here), torch.from_numpy(lengths[here]).to(self.device))[0]
            keys = rank_keys(scores, torch.from_numpy(here).to(self.device))
            best = best_keys(torch.cat([best, keys]), k)
        return best

    def _read(self, positions: np.ndarray) -> Tensor:
        """Decompressed vectors of the documents at ascending positions, packed, [rows, D] float32."""
        chunks = self.chunks
        codes = torch.from_numpy(chunks.take("codes", positions).astype(np.int64)).to(self.device)
        return self.codec.decompress(codes, torch.from_numpy(chunks.take("residuals", positions)).to(self.device))

    def vectors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every (id, [n, dim] float32), decompressed."""
        chunks = self.chunks
        for here in blocks(chunks.lengths, np.arange(len(self)), 65_536):
            parts = self._read(here).cpu().split(chunks.lengths[here].tolist())
            yield from ((chunks.ids[p], part.numpy()) for p, part in zip(here.tolist(), parts))

    def stats(self) -> dict:
        options = self.manifest["options"]
        return {**super().stats(), "nbits": options["nbits"], "centroids": self.manifest["centroids"]}
