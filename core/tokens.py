"""TokenBatch, the one currency between encoders, losses and indexes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.errors import UserError


@dataclass
class Rows:
    """What each row of a TokenBatch is. MaxSim never reads it; heat maps and reports do.

    kind: one name per row ("global", "pooled", "patch", "mapped", "text"), length T, the same for the whole batch.
    source: [T] int64, index of the row within its kind (head, patch or token number).
    """

    kind: tuple[str, ...]
    source: Tensor

    def select(self, kind: str) -> Tensor:
        """[T] bool: the rows of one kind."""
        return torch.tensor([k == kind for k in self.kind], dtype=torch.bool)


@dataclass
class TokenBatch:
    """embeddings [B, T, D] float; mask [B, T] bool, True where a row counts. A single vector is the case T = 1."""

    embeddings: Tensor
    mask: Tensor
    rows: Rows | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 3 or self.mask.shape != self.embeddings.shape[:2]:
            raise UserError(
                f"TokenBatch wants embeddings [B, T, D] and mask [B, T], got {tuple(self.embeddings.shape)} and "
                f"{tuple(self.mask.shape)}; for single vectors use embeddings[:, None]."
            )
        if self.mask.dtype != torch.bool:
            self.mask = self.mask.bool()

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    @property
    def dim(self) -> int:
        return self.embeddings.shape[2]

    def to(self, *args: Any, **kwargs: Any) -> TokenBatch:
        emb = self.embeddings.to(*args, **kwargs)
        return TokenBatch(emb, self.mask.to(emb.device), self.rows, self.extras)

    def detach(self) -> TokenBatch:
        return TokenBatch(self.embeddings.detach(), self.mask, self.rows, self.extras)

    def select(self, index: Tensor | slice | Sequence[int]) -> TokenBatch:
        return TokenBatch(self.embeddings[index], self.mask[index], self.rows)

    def unpad(self) -> list[Tensor]:
        """One [n_i, D] tensor per item: the rows that count, in order."""
        return [e[m] for e, m in zip(self.embeddings, self.mask)]

    @staticmethod
    def pad(vectors: Sequence[Tensor], length: int | None = None) -> TokenBatch:
        """The inverse of ``unpad``: [n_i, D] tensors to one zero-padded batch (at least one row long)."""
        if not vectors:
            raise UserError("TokenBatch.pad got no vectors; give at least one [n, D] tensor.")
        longest = max(1, *(v.shape[0] for v in vectors)) if length is None else length
        first = vectors[0]
        out = first.new_zeros(len(vectors), longest, first.shape[1])
        mask = torch.zeros(len(vectors), longest, dtype=torch.bool, device=first.device)
        for i, v in enumerate(vectors):
            out[i, : v.shape[0]] = v
            mask[i, : v.shape[0]] = True
        return TokenBatch(out, mask)

    @staticmethod
    def cat(batches: Sequence[TokenBatch]) -> TokenBatch:
        """Concatenate along B; shorter batches are padded with masked zero rows."""
        longest = max(b.embeddings.shape[1] for b in batches)
        embs, masks = [], []
        for b in batches:
            gap = longest - b.embeddings.shape[1]
            embs.append(torch.nn.functional.pad(b.embeddings, (0, 0, 0, gap)))
            masks.append(torch.nn.functional.pad(b.mask, (0, gap)))
        same = all(b.embeddings.shape[1] == longest for b in batches)
        return TokenBatch(torch.cat(embs), torch.cat(masks), batches[0].rows if same else None)
