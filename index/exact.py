"""The exact index: every vector as it came, every document scored. The oracle the others are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.files import write_json
from core.progress import progress
from core.protocols import Ranking
from core.tokens import TokenBatch
from index.base import ChunkedIndex
from index.chunks import MANIFEST, Chunks, ChunkWriter, begin, check_positive, chunk_files
from index.common import Allowed, allowed_positions, check_k, check_queries, rankings
from index.packed import BUDGET_BYTES, scan

CHUNK_DOCS = 4096


class Index(ChunkedIndex):
    """Packed vectors on disk, memory-mapped, scored block by block with MaxSim in float32."""

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
        chunk_docs: int = CHUNK_DOCS,
    ) -> Index:
        """Write the (id, [n, dim]) stream to ``path``, reading it once; at most one chunk is in memory.

        encoder: JSON-able, names what made the vectors (``open`` compares it). total: documents, for the progress.
        A killed build goes on when it is called again with the same stream and options; documents that are
        ``committed`` are skipped, and their vectors may be None.
        """
        if dtype not in ("float16", "float32"):
            raise UserError(f"dtype {dtype!r} is not offered; use 'float16' or 'float32'.")
        check_positive(dim=dim, chunk_docs=chunk_docs)
        path = Path(path)
        begin(path, {"format": cls.FORMAT, "dim": dim, "dtype": dtype, "chunk_docs": chunk_docs, "encoder": encoder})
        watched = progress(stream, "exact index", total, unit="doc")
        chunks = ChunkWriter(path, dim, dtype, chunk_docs).extend(watched)
        write_json(
            path / MANIFEST,
            {
                "format": cls.FORMAT,
                "dim": dim,
                "dtype": dtype,
                "documents": len(chunks),
                "vectors": int(chunks.offsets[-1]),
                "documents_without_vectors": int((chunks.lengths == 0).sum()),
                "chunks": chunks.count,
                "encoder": encoder,
                "files": chunk_files(chunks),
            },
        )
        return cls.open(path)

    @staticmethod
    def committed(path: str | Path) -> int:
        """Documents of an unfinished build that need not be encoded again (0 when there is none)."""
        return len(Chunks(Path(path)))

    def search(
        self,
        queries: TokenBatch,
        k: int,
        allowed_ids: Allowed = None,
        *,
        effort: str | None = None,
        budget_bytes: int = BUDGET_BYTES,
    ) -> list[Ranking]:
        """The k best documents of each query [B, T, D], ties at the lower position first.

        Masked and zero rows add 0; documents without vectors come after all others (score NO_VECTORS). allowed_ids:
        one set of ids, or one per query; a ranking is shorter than k only when fewer are allowed. effort: accepted
        so that callers need not know the index; this one always scores everything.
        """
        check_k(k, len(self))
        emb = check_queries(queries, self.dim, self.device)
        allowed = allowed_positions(allowed_ids, len(emb), {} if allowed_ids is None else self.where)
        with torch.inference_mode():
            return rankings(scan(self._read, self.chunks.lengths, emb, k, allowed, budget_bytes), self.chunks.ids)

    def _read(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(self.chunks.take("vectors", positions)).to(self.device).float()

    def vectors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every (id, [n, dim]) as stored."""
        chunks = self.chunks
        for number in range(chunks.count):
            array, before = chunks.array("vectors", number), chunks.offsets[chunks.starts[number]]
            for p in range(chunks.starts[number], chunks.starts[number + 1]):
                yield chunks.ids[p], np.array(array[chunks.offsets[p] - before : chunks.offsets[p + 1] - before])

    def stats(self) -> dict[str, Any]:
        return {**super().stats(), "dtype": self.manifest["dtype"]}
