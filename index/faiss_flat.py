"""faiss' exact inner-product index of single vectors, for people who serve from faiss: ``IndexFlatIP``, memory-mapped.

The file ``vectors.faiss`` is an ordinary faiss index; document i of ``ids.json`` is its vector i.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import UserError
from core.progress import progress
from core.protocols import Ranking
from core.tokens import TokenBatch
from index.common import Allowed, allowed_positions, check_k, check_queries
from index.manifest import check_positive, exclusive
from index.peers import PeerIndex, checked

BLOCK = 8192


class Index(PeerIndex):
    """One vector per document, all scored in float32. Searches on the CPU whatever ``device`` says."""

    FORMAT, MODULE, PACKAGE, FILES = "faiss_flat", "faiss", "faiss-cpu", "vectors.faiss"

    @classmethod
    def build(
        cls,
        path: str | Path,
        stream: Iterable[tuple[str, np.ndarray | None]],
        *,
        dim: int,
        encoder: dict,
        total: int | None = None,
    ) -> Index:
        """Write the (id, [1, dim]) stream to ``path``; UserError for a document with any other number of vectors.

        Holds all vectors in memory (4 * dim bytes each): faiss writes a flat index in one piece. A killed build leaves
        no manifest; running it again starts anew. encoder, total: as for every index.
        """
        faiss, path = cls.library(), Path(path)
        check_positive(dim=dim)
        with exclusive(path):
            cls.begin(path, {"dim": dim, "encoder": encoder})
            flat, ids, block = faiss.IndexFlatIP(dim), [], []
            for id_, rows in checked(progress(stream, "faiss index", total, unit="doc"), dim, "float32"):
                if len(rows) != 1:
                    raise UserError(
                        f"document '{id_}' has {len(rows)} vectors, the faiss index holds exactly one per document; "
                        "use index.name exact or plaid for it."
                    )
                ids.append(id_)
                block.append(rows)
                if len(block) == BLOCK:
                    flat.add(np.concatenate(block))
                    block = []
            if block:
                flat.add(np.concatenate(block))
            faiss.write_index(flat, str(path / cls.FILES))
            return cls.finish(path, ids, [1] * len(ids), {"dim": dim, "encoder": encoder})

    @cached_property
    def _flat(self) -> Any:
        faiss = self.library()
        try:
            return faiss.read_index(str(self.path / self.FILES), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"index file '{self.path / self.FILES}' is missing or damaged ({reason}); build the index again."
            ) from None

    def search(
        self, queries: TokenBatch, k: int, allowed_ids: Allowed = None, *, effort: str | None = None
    ) -> list[Ranking]:
        """The k best documents of each query [B, T, D] with one unmasked row, ties at the lower position first.

        UserError for a query with several unmasked rows. allowed_ids: one set of ids, or one per query; a ranking is
        shorter than k only when fewer are allowed. effort: accepted so that callers need not know the index; this one
        always scores everything.
        """
        check_k(k, len(self))
        emb = check_queries(queries, self.dim, "cpu")
        rows = queries.mask.sum(1).tolist()
        many = next((b for b, n in enumerate(rows) if n != 1), None)
        if many is not None:
            raise UserError(
                f"query {many} of the batch has {rows[many]} unmasked rows, the faiss index holds single vectors; "
                "pool the rows to one, or use index.name exact or plaid."
            )
        single = emb.sum(1).numpy()  # the other rows are zero
        allowed = allowed_positions(allowed_ids, len(emb), self.find, len(self))
        groups: dict[int, list[int]] = {}  # queries with the same allowed documents are searched together
        for b, positions in enumerate(allowed):
            groups.setdefault(id(positions), []).append(b)
        out: dict[int, Ranking] = {}
        for members in groups.values():
            scores, found = self._best(single[members], k, allowed[members[0]])
            for b, s, f in zip(members, scores, found):
                out[b] = self.ranked(torch.from_numpy(s[f >= 0]), torch.from_numpy(f[f >= 0]), k)
        return [out[b] for b in range(len(emb))]

    def _best(self, single: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """scores and positions [b, >= min(k, documents)], as many as it takes to hold all that tie with the k-th."""
        faiss, among = self.library(), len(self) if allowed is None else len(allowed)
        if among == 0:
            return np.zeros((len(single), 0), np.float32), np.zeros((len(single), 0), np.int64)
        chosen = None if allowed is None else faiss.SearchParameters(sel=faiss.IDSelectorBatch(allowed))
        asked = min(k + 1, among)
        while True:
            scores, found = self._flat.search(single, asked, params=chosen)
            if asked == among or not (scores[:, k - 1] == scores[:, -1]).any():
                return scores, found
            asked = min(2 * asked, among)

    def vectors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every (id, [1, dim] float32) as stored."""
        for first in range(0, len(self), BLOCK):
            block = self._flat.reconstruct_n(first, min(BLOCK, len(self) - first))
            yield from zip(self.ids()[first : first + BLOCK], block[:, None])
