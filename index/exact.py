"""The exact index: every vector as it came, every document scored. The oracle the others are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import UserError
from core.progress import progress
from core.protocols import Ranking
from core.tokens import TokenBatch
from index.common import NO_VECTORS, QUERY_ROWS, SCAN_ROWS, Allowed, check_k, check_queries, compiled, scan
from index.manifest import SPEC, VERSION, begin, check_positive, entry, exclusive, finished, write_manifest
from index.packed import packed_scores
from index.segment import SegmentWriter, file_facts
from index.stored import StoredIndex
from index.stream import blocks

FIRST = "seg-00000"


class Index(StoredIndex):
    """Packed vectors on disk, read block by block, scored with MaxSim in float32."""

    FORMAT = "exact"

    @classmethod
    def build(
        cls,
        path: str | Path,
        stream: Iterable[tuple[str, np.ndarray | None]],
        *,
        dim: int,
        encoder: dict,
        total: int | None = None,
        dtype: str = "float16",
    ) -> Index:
        """Write the (id, [n, dim]) stream to ``path``, reading it once; memory does not grow with it.

        encoder: JSON-able, names what made the vectors (``open`` compares it). total: documents, for the progress.
        A killed build goes on when it is called again with the same stream and options; documents that are
        ``committed`` are skipped, and their vectors may be None.
        """
        if dtype not in ("float16", "float32"):
            raise UserError(f"dtype {dtype!r} is not offered; use 'float16' or 'float32'.")
        check_positive(dim=dim)
        path = Path(path)
        with exclusive(path):
            begin(path, {"format": cls.FORMAT, "dim": dim, "dtype": dtype, "encoder": encoder})
            segment = finished(path / FIRST)
            if segment is None:
                writer = SegmentWriter(path / FIRST, {"vectors": (dtype, [dim])})
                for block in blocks(
                    progress(stream, "exact index", total, unit="doc", memory=True), writer, dim, dtype
                ):
                    writer.append(block.ids, block.lengths, {"vectors": block.vectors})
                segment = writer.finish()
            write_manifest(
                path,
                {
                    "format": cls.FORMAT,
                    "version": VERSION,
                    "generation": 0,
                    "dim": dim,
                    "dtype": dtype,
                    "documents": len(segment),
                    "vectors": segment.vectors,
                    "documents_without_vectors": segment.facts["documents_without_vectors"],
                    "segments": [entry(segment)],
                    "last_segment": 0,
                    "deleted": None,
                    "encoder": encoder,
                    "files": {SPEC: file_facts(path / SPEC)},
                },
            )
        return cls.open(path)

    @staticmethod
    def committed(path: str | Path) -> int:
        """Documents of an unfinished build that need not be encoded again (0 when there is none)."""
        segment = finished(Path(path) / FIRST)
        return SegmentWriter.committed(Path(path) / FIRST) if segment is None else len(segment)

    def search(
        self, queries: TokenBatch, k: int, allowed_ids: Allowed = None, *, effort: str | None = None
    ) -> list[Ranking]:
        """The k best documents of each query [B, T, D], ties at the lower position first.

        Masked and zero rows add 0; documents without vectors come after all others (score NO_VECTORS). allowed_ids:
        one set of ids, or one per query; a ranking is shorter than k only when fewer are allowed. effort: accepted
        so that callers need not know the index; this one always scores everything.
        """
        check_k(k, len(self))
        emb = check_queries(queries, self.dim, "cpu").numpy()
        allowed = self._allowed(allowed_ids, len(emb))
        out: list[np.ndarray] = []
        step = max(1, QUERY_ROWS // emb.shape[1])
        with torch.inference_mode():
            for first in range(0, len(emb), step):
                masks = [self._mask(a) for a in allowed[first : first + step]]
                out += self._scan(emb[first : first + step], k, masks)
        return [self._ranking(keys) for keys in out]

    @cached_property
    def _alive(self) -> np.ndarray | None:
        return self.alive() if len(self._deleted) else None

    def _take(self, manifest: dict) -> None:
        super()._take(manifest)
        self.__dict__.pop("_alive", None)

    def _mask(self, allowed: np.ndarray | None) -> np.ndarray | None:
        """[positions] bool, None for all. Positions of ``allowed`` are never deleted ones."""
        if allowed is None:
            return self._alive
        mask = np.zeros(int(self.bases[-1]), dtype=bool)
        mask[allowed] = True
        return mask

    def _scan(self, emb: np.ndarray, k: int, masks: list[np.ndarray | None]) -> list[np.ndarray]:
        pieces = [
            (base, segment, first, last)
            for base, segment in zip(self.bases.tolist(), self.segments)
            for first, last in segment.blocks(SCAN_ROWS)
            if any(m is None or m[base + first : base + last].any() for m in masks)
        ]
        score = self._compiled(emb) if self.device.type == "cpu" and compiled() else self._plain(emb)

        def scored(piece: tuple) -> tuple[np.ndarray, np.ndarray]:
            base, segment, first, last = piece
            return score(segment, first, last), np.arange(base + first, base + last)

        return scan(scored, pieces, masks, k)

    def _compiled(self, emb: np.ndarray):
        """Scores [n, B] of a stretch of documents by the compiled loops."""
        from index import scoring

        rows = [q[q.any(-1)] for q in emb]
        starts = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        floats = scoring.tiles(np.concatenate(rows) if starts[-1] else emb[0, :1])

        def score(segment, first: int, last: int) -> np.ndarray:
            low, high = int(segment.offsets[first]), int(segment.offsets[last])
            vectors = segment.array("vectors")[low:high].reshape(-1)
            vectors = vectors.view(np.uint16) if vectors.dtype == np.float16 else vectors
            out = np.empty((last - first, len(emb)), np.float32)
            offsets, positions = segment.offsets[first : last + 1] - low, np.arange(last - first)
            scoring.score_vectors(vectors, self.dim, offsets, positions, floats, starts, np.float32(NO_VECTORS), out)
            return out

        return score

    def _plain(self, emb: np.ndarray):
        """The same by torch, on any device."""
        queries = torch.from_numpy(emb).to(self.device)

        def score(segment, first: int, last: int) -> np.ndarray:
            vectors = segment.read("vectors", int(segment.offsets[first]), int(segment.offsets[last]))
            lengths = torch.from_numpy(segment.lengths[first:last]).to(self.device)
            return packed_scores(queries, torch.from_numpy(vectors).to(self.device).float(), lengths).T.cpu().numpy()

        return score

    # -- what a segment of vectors is ------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, tuple[str, list[int]]]:
        return {"vectors": (self.manifest["dtype"], [self.dim])}

    def _dtype(self) -> str:
        return self.manifest["dtype"]

    def _encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        return {"vectors": vectors}

    def vectors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every (id, [n, dim]) as stored."""
        for ids, lengths, rows in self._live_blocks():
            edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
            yield from ((id_, rows["vectors"][a:b]) for id_, (a, b) in zip(ids, pairwise(edges)))

    def stats(self) -> dict[str, Any]:
        return {**super().stats(), "dtype": self.manifest["dtype"]}
