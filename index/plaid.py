"""PLAID (Santhanam et al. 2022b): centroid numbers find the candidates, compressed residuals rank them.

A search looks at the centroids once per query (integer products, the same on every device), opens the best lists of
every query row, ranks their documents by centroids alone, and decompresses the best of these for MaxSim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from core.errors import UserError
from core.files import read_json
from core.protocols import Ranking
from core.tokens import TokenBatch
from index import plaid_build
from index.codec import Codec
from index.common import NO_VECTORS, Allowed, check_k, check_queries, float_keys
from index.manifest import check_positive
from index.plaid_search import Searcher
from index.segment import Segment, SegmentWriter
from index.shards import Alone, Group
from index.stored import StoredIndex


@dataclass(frozen=True)
class Effort:
    """What a search may cost; never a function of k.

    n_probe: lists opened per query row. threshold: lists whose centroid is less similar to the row than this stay
    closed. When the opened lists hold fewer than n_candidates documents, the threshold is dropped and n_probe doubles
    until they do, so every search gives min(k, allowed) results. n_candidates: documents that are decompressed and
    scored; four times as many, chosen by their centroids alone, are scored in integers to find them.
    """

    n_probe: int
    threshold: float | None
    n_candidates: int


EFFORTS = {"fast": Effort(4, None, 128), "balanced": Effort(8, None, 512)}
"""Two more names: "exhaustive" decompresses and scores every document; "colbert" ranks as colbert-ai does."""


class Index(StoredIndex):
    """A compressed index: about dim * nbits / 8 + 4 bytes per vector."""

    FORMAT = plaid_build.FORMAT

    group: Group = Alone()

    @classmethod
    def open(
        cls, path: str | Path, encoder: dict | None = None, device: str = "cpu", group: Group | None = None
    ) -> Index:
        """Open a complete index. encoder: what encodes the queries now; UserError when it is not what built it.

        device: "cuda" uses all GPUs of this process, "cuda:1" that one. group: ``index.shards.Ranks()`` when the
        processes of torchrun divide the documents among them.
        """
        index = super().open(path, encoder, device)
        index.group = group or Alone()
        if not index.group.agree(index.manifest):
            raise UserError(f"the index '{path}' changed while the processes opened it; start again.")
        return index

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
        sample_vectors: int = 1 << 17,
        iterations: int = 4,
        codec_from: str | Path | None = None,
        device: str = "cpu",
    ) -> Index:
        """Write the (id, [n, dim]) stream to ``path``, reading it once; memory does not grow with it.

        nbits: 1, 2, 4 or 8 per dimension. max_centroids: a cap on PLAID's 2^floor(log2(16 sqrt(vectors))).
        sample_vectors, iterations, seed: of k-means. codec_from: another index whose centroids and buckets are used
        instead of new ones (the four before have no meaning then). device: where k-means and assignment run. The
        float16 stream lies in ``path``/spool until the build is complete. A killed build goes on when it is called
        again with the same stream and options; documents that are ``committed`` are skipped, their vectors may be
        None. It ends with the same bytes for the same options, device and thread count.
        """
        options = {
            "nbits": nbits,
            "seed": seed,
            "max_centroids": max_centroids,
            "sample_vectors": sample_vectors,
            "iterations": iterations,
        }
        plaid_build.build(Path(path), stream, dim, encoder, total, options, codec_from, device)
        return cls.open(path, device=device)

    committed = staticmethod(plaid_build.committed)

    def _take(self, manifest: dict) -> None:
        super()._take(manifest)
        for name in ("_searcher", "_filled"):
            self.__dict__.pop(name, None)

    def _hold(self) -> None:
        super()._hold()
        _ = self.codec

    @cached_property
    def codec(self) -> Codec:
        """Centroids and buckets, on CPU."""
        self._intact(plaid_build.CENTROIDS, plaid_build.CODEBOOK)
        codec, manifest = plaid_build.read_codec(self.path), self.manifest
        wanted = (manifest["options"]["nbits"], manifest["centroids"], manifest["dim"])
        if (codec.nbits, *codec.centroids.shape) != wanted:
            raise UserError(f"the codec of '{self.path}' is not that of its documents; build the index again.")
        return codec

    @cached_property
    def _coder(self) -> plaid_build.Coder:
        return plaid_build.Coder(self.codec, self.device)

    @cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self.codec, devices(self.device), self.group.stretches(self.bases, self.segments), self.group)

    @cached_property
    def _filled(self) -> tuple[np.ndarray | None, int]:
        """Which documents can be found and have vectors ([positions] uint8, None: all), and how many."""
        if not len(self._deleted) and not self.manifest["documents_without_vectors"]:
            return None, len(self)
        mask = self.alive() & (self._all_lengths() > 0)
        return mask.astype(np.uint8), int(mask.sum())

    def _all_lengths(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int64), *(s.lengths for s in self.segments)])

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
    ) -> list[Ranking]:
        """The k best documents of each query [B, T, D]; candidates come from every row that is unmasked and not zero.

        effort: "fast", "balanced" or "exhaustive" (see ``Effort``); n_probe, threshold and n_candidates replace one
        value of the first two. "colbert": see ``index.colbert_preset``. k must not exceed n_candidates. Ties,
        allowed_ids, empty documents and errors are those of the exact index. With a group (see ``index.shards``) every
        member must call this with the same arguments, and every member gets the whole answer.
        """
        check_k(k, len(self))
        if effort == "colbert":
            from index.colbert_preset import search

            return search(self, queries, k, allowed_ids, n_probe, threshold, n_candidates)
        chosen = self._effort(effort or "balanced", k, n_probe=n_probe, threshold=threshold, n_candidates=n_candidates)
        emb = check_queries(queries, self.dim, "cpu").numpy()
        allowed = self._allowed(allowed_ids, len(emb))
        same = {id(a): self._mask(a) for a in allowed}  # one set of ids for all queries is one mask
        masks = [same[id(a)] for a in allowed]
        with torch.inference_mode():
            if chosen is None:
                keys = self._searcher.scan(emb, k, masks)
            else:
                keys = self._searcher.rank(emb, k, masks, chosen)
        return [self._ranking(self._fill(row, k, a)) for row, a in zip(keys, allowed)]

    def _effort(self, name: str, k: int, **given: float | None) -> Effort | None:
        given = {key: value for key, value in given.items() if value is not None}
        if name == "exhaustive":
            if given:
                raise UserError(f"{next(iter(given))} has no meaning with effort='exhaustive'; leave one of them out.")
            return None
        if name not in EFFORTS:
            raise UserError(
                f"effort {name!r} is unknown; use {', '.join(map(repr, EFFORTS))}, 'exhaustive' or 'colbert'."
            )
        effort = Effort(**{**vars(EFFORTS[name]), **given})
        check_positive(n_candidates=effort.n_candidates)
        if isinstance(effort.n_probe, bool) or not isinstance(effort.n_probe, int) or effort.n_probe < 1:
            raise UserError(f"n_probe={effort.n_probe} opens no list; use a whole number of 1 or more.")
        if effort.threshold is not None and not math.isfinite(effort.threshold):
            raise UserError(f"threshold={effort.threshold} is no similarity; give a number, or leave it out.")
        if effort.n_candidates < k:
            raise UserError(
                f"k={k} is more than the n_candidates={effort.n_candidates} of effort={name!r}; "
                f"give n_candidates={k} or more, a higher effort, or a smaller k."
            )
        return effort

    def _mask(self, allowed: np.ndarray | None) -> tuple[np.ndarray | None, int]:
        """As ``_filled``, for one query's allowed positions."""
        mask, count = self._filled
        if allowed is None:
            return mask, count
        chosen = np.zeros(int(self.bases[-1]), np.uint8)
        chosen[allowed] = 1 if mask is None else mask[allowed]
        return chosen, int(chosen.sum())

    def _fill(self, keys: np.ndarray, k: int, allowed: np.ndarray | None) -> np.ndarray:
        """A ranking shorter than k ends with the documents without vectors, in order."""
        if len(keys) == k or not self.manifest["documents_without_vectors"]:
            return keys
        empty = self.alive() & (self._all_lengths() == 0)
        rest = np.flatnonzero(empty) if allowed is None else allowed[empty[allowed]]
        return np.concatenate([keys, float_keys(np.full(len(rest), NO_VECTORS, np.float32), rest)])[:k]

    # -- what a compressed segment is ------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, tuple[str, list[int]]]:
        return plaid_build.arrays(self.codec)

    def _encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        return self._coder.encode(vectors)

    def _complete(self, writer: SegmentWriter) -> Segment:
        return plaid_build.complete(writer, self.codec)

    def _built_distance(self) -> float | None:
        distance = read_json(self.path / plaid_build.CODEBOOK, "index codebook").get("distance")
        return float(distance) if isinstance(distance, float) else None

    def _distance(self, vectors: np.ndarray, rows: dict[str, np.ndarray]) -> float:
        total = 0.0
        for start in range(0, len(vectors), plaid_build.ENCODE_ROWS):
            part = slice(start, start + plaid_build.ENCODE_ROWS)
            centroids = self.codec.centroids[torch.from_numpy(rows["codes"][part].astype(np.int64))]
            total += float((torch.from_numpy(vectors[part]).float() - centroids).square().sum(dtype=torch.float64))
        return total

    def vectors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every (id, [n, dim] float32), decompressed."""
        for ids, lengths, rows in self._live_blocks():
            codes = rows["codes"].astype(np.int64)
            if len(codes) and not 0 <= codes.min() <= codes.max() < len(self.codec.centroids):
                raise UserError(f"the codes of '{self.path}' are damaged (verify says where); build the index again.")
            parts = torch.empty(0, self.dim)
            if len(codes):
                parts = self.codec.decompress(torch.from_numpy(codes), torch.from_numpy(rows["residuals"]))
            edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
            yield from ((id_, parts[a:b].numpy()) for id_, a, b in zip(ids, edges, edges[1:]))

    def stats(self) -> dict:
        options = self.manifest["options"]
        return {**super().stats(), "nbits": options["nbits"], "centroids": self.manifest["centroids"]}


def devices(device: torch.device) -> list[torch.device]:
    """The devices that hold an index: all GPUs for "cuda", else the one that was named."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{device}' is not available here; use device='cpu'.")
    if device.type == "cuda" and device.index is None:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [device]
