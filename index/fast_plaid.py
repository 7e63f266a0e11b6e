"""fast-plaid's index (https://github.com/lightonai/fast-plaid), for people who serve from it or from PyLate.

The folder ``fast-plaid`` is an ordinary FastPlaid index. Its document numbers count the documents that have vectors,
in the order of ``ids.json``; fast-plaid keeps a lock file there, so the folder must be writable even for a search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.progress import progress
from core.protocols import Ranking
from core.tokens import TokenBatch
from index.common import Allowed, allowed_positions, check_k, check_queries
from index.manifest import check_positive, exclusive
from index.peers import PeerIndex, checked

EFFORTS = {"fast": (4, 1024), "balanced": (8, 4096)}
"""effort -> n_ivf_probe, n_full_scores; "balanced" is fast-plaid's default. The third, "exhaustive", takes all."""

EXACTLY_SCORED = 4
"""fast-plaid scores the best n_full_scores / 4 documents exactly, and ranks no others."""


class Index(PeerIndex):
    """Residual-compressed vectors, searched by fast-plaid on ``device``."""

    FORMAT, MODULE, PACKAGE, FILES = "fast_plaid", "fast_plaid", "fast-plaid", "fast-plaid"
    VOLATILE = ("plaid.lock", ".manifest.json")

    @classmethod
    def build(
        cls,
        path: str | Path,
        stream: Iterable[tuple[str, np.ndarray | None]],
        *,
        dim: int,
        encoder: dict,
        total: int | None = None,
        nbits: int = 4,
        kmeans_niters: int = 4,
        batch_docs: int = 25_000,
        seed: int = 42,
        device: str = "cpu",
    ) -> Index:
        """Write the (id, [n, dim]) stream to ``path``; UserError when fast-plaid cannot train on what was given.

        At most ``batch_docs`` documents are in memory (as float16): the first batch makes the index, so the codec is
        trained on it alone, and fast-plaid's ``update`` adds the others and opens centroids for what lies far from all.
        Small batches cost quality and time (overlap@20 with exact of 4,000 documents at 4 bits, one batch, 4, 16:
        .958, .954, .925, and .956, .937, .921 when sorted by topic). A killed build leaves no manifest; running it
        again starts anew. encoder, total: as for every index.
        """
        if nbits not in (1, 2, 4, 8):
            raise UserError(f"nbits={nbits!r} is not offered; use 1, 2, 4 or 8.")
        check_positive(dim=dim, kmeans_niters=kmeans_niters, batch_docs=batch_docs)
        if dim % 8:
            raise UserError(f"dim={dim} is not a multiple of 8, which fast-plaid needs; use index.name exact or plaid.")
        cls.library()
        path = Path(path)
        options = {"nbits": nbits, "kmeans_niters": kmeans_niters, "batch_docs": batch_docs, "seed": seed}
        with exclusive(path):
            cls.begin(path, {"dim": dim, "encoder": encoder, "options": options})
            ids: list[str] = []
            lengths: list[int] = []
            batch: list[Tensor] = []
            writer = _Writer(path / cls.FILES, device, {k: v for k, v in options.items() if k != "batch_docs"})
            for id_, rows in checked(progress(stream, "fast-plaid index", total, unit="doc"), dim, "float16"):
                ids.append(id_)
                lengths.append(len(rows))
                if len(rows):
                    batch.append(torch.from_numpy(rows))
                if len(batch) == batch_docs:
                    writer.write(batch)
                    batch = []
            if batch or (ids and not any(lengths)):
                writer.write(batch)
            writer.close()
            return cls.finish(path, ids, lengths, {"dim": dim, "encoder": encoder, "options": options}, device)

    @cached_property
    def _peer(self) -> Any:
        self.library()
        written, here = self.manifest["library"].split()[1], version(self.PACKAGE)
        if written.split(".")[:3] != here.split(".")[:3]:  # the fourth number is its torch
            raise UserError(
                f"the index '{self.path}' was written by fast-plaid {written} and {here} is installed, which would "
                "fail on its files or rewrite them; install the version that wrote it, or build the index again."
            )
        return _opened(self.path / self.FILES, self.device)

    @cached_property
    def _filled(self) -> np.ndarray:
        """[documents of fast-plaid] int64: position of each."""
        return np.flatnonzero(self.lengths)

    def search(
        self,
        queries: TokenBatch,
        k: int,
        allowed_ids: Allowed = None,
        *,
        effort: str | None = None,
        n_ivf_probe: int | None = None,
        n_full_scores: int | None = None,
        n_processes: int = 1,
    ) -> list[Ranking]:
        """The k best documents of each query [B, T, D] among fast-plaid's candidates: a ranking may be shorter than k.

        Masked and zero rows are not handed over; documents without vectors fill the end of a short ranking. Scores
        that tie are ordered by position, but which of them are among the k best is fast-plaid's choice. allowed_ids:
        one set of ids, or one per query (fast-plaid's subset). effort: "fast", "balanced" (fast-plaid's defaults) or
        "exhaustive"; n_ivf_probe (lists opened per row) and n_full_scores (documents scored on their codes, a quarter
        of them exactly) replace one part of it. n_processes: fast-plaid's threads for batches on CPU.
        """
        check_k(k, len(self))
        emb = check_queries(queries, self.dim, "cpu")
        allowed = allowed_positions(allowed_ids, len(emb), self.find, len(self))
        probe, full = self._effort(effort or "balanced", k, n_ivf_probe, n_full_scores)
        check_positive(n_processes=n_processes)
        settings = {"n_ivf_probe": probe, "n_full_scores": full, "n_processes": n_processes, "show_progress": False}
        groups: dict[int, list[int]] = {}  # fast-plaid pads: only queries of the same length go together
        rows = [one[(one != 0).any(1)] if one.any() else one[:1] for one in emb]
        number = np.cumsum(self.lengths > 0) - 1  # position -> fast-plaid's number
        subsets = [None if a is None else number[a[self.lengths[a] > 0]].tolist() for a in allowed]
        for b, subset in enumerate(subsets):
            if subset is None or subset:  # an empty subset would mean "all" to fast-plaid
                groups.setdefault(len(rows[b]), []).append(b)
        found: list[list[tuple[int, float]]] = [[] for _ in rows]
        for members in groups.values():
            subset = None if subsets[members[0]] is None else [subsets[b] for b in members]
            stacked = torch.stack([rows[b] for b in members])
            for b, best in zip(members, self._peer.search(stacked, top_k=k, subset=subset, **settings)):
                found[b] = best
        empty = np.flatnonzero(self.lengths == 0)
        return [
            self._ranking(best, k, empty if a is None else a[self.lengths[a] == 0]) for best, a in zip(found, allowed)
        ]

    def _ranking(self, best: list[tuple[int, float]], k: int, empty: np.ndarray) -> Ranking:
        positions = torch.from_numpy(self._filled[[number for number, _ in best]]) if best else torch.zeros(0)
        return self.ranked(torch.tensor([score for _, score in best]), positions, k, empty)

    def _effort(self, name: str, k: int, probe: int | None, full: int | None) -> tuple[int, int]:
        """n_ivf_probe and n_full_scores of a named effort, with what was given in its place."""
        if name != "exhaustive" and name not in EFFORTS:
            raise UserError(f"effort {name!r} is unknown; use {', '.join(map(repr, EFFORTS))} or 'exhaustive'.")
        centroids = np.load(self.path / self.FILES / "centroids.npy", mmap_mode="r").shape[0]
        usual = EFFORTS.get(name, (centroids, EXACTLY_SCORED * len(self)))
        probe, full = usual[0] if probe is None else probe, usual[1] if full is None else full
        check_positive(n_ivf_probe=probe, n_full_scores=full)
        if k > full // EXACTLY_SCORED:
            raise UserError(
                f"k={k} is more than the {full // EXACTLY_SCORED} documents that n_full_scores={full} scores exactly; "
                f"give n_full_scores={EXACTLY_SCORED * k} or more, or effort='exhaustive'."
            )
        return min(probe, centroids), full

    def vectors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every (id, [n, dim] float32) as fast-plaid decompresses it."""
        step, first = 1024, 0
        for start in range(0, len(self), step):
            here = self.lengths[start : start + step]
            n = int((here > 0).sum())
            block = iter(self._peer.get_embeddings(list(range(first, first + n))))
            first += n
            for id_, length in zip(self.ids()[start : start + step], here.tolist()):
                yield id_, next(block).float().cpu().numpy() if length else np.zeros((0, self.dim), np.float32)


def _opened(folder: Path, device: str) -> Any:
    from fast_plaid.search import FastPlaid

    return FastPlaid(str(folder), device=device)


class _Writer:
    """The first batch creates the index, the others update it."""

    def __init__(self, folder: Path, device: str, options: dict) -> None:
        self.folder, self.device, self.options = folder, device, options
        self.peer: Any = None

    def write(self, batch: list[Tensor]) -> None:
        """batch: [n, dim] float16 tensors, none empty."""
        # start_from_scratch=0: fast-plaid keeps no copy of the raw vectors and never rebuilds; buffer_size=1: every
        # batch may open centroids at once.
        options = {k: v for k, v in self.options.items() if self.peer is None or k != "nbits"}
        options |= {"start_from_scratch": 0} | ({} if self.peer is None else {"buffer_size": 1})
        with torch.random.fork_rng(devices=[]):  # its k-means seeds the global generator
            try:
                if self.peer is None:
                    self.peer = _opened(self.folder, self.device)
                    self.peer.create(batch, **options)
                else:
                    self.peer.update(batch, **options)
            except (RuntimeError, ValueError, IndexError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"fast-plaid could not index a batch of {len(batch)} documents with vectors ({reason}); "
                    "give it more documents, or use index.name exact."
                ) from error

    def close(self) -> None:
        if self.peer is not None:
            self.peer.close()
