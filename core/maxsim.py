"""MaxSim: for every query row the best document row, summed (ColBERT, Khattab & Zaharia 2020, equation 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from core.tokens import TokenBatch

BUDGET_BYTES = 256 << 20
"""Memory one chunk of the [Bq, Bd, Tq, Td] similarity tensor may take during a forward pass."""


def maxsim(queries: TokenBatch, documents: TokenBatch, budget_bytes: int = BUDGET_BYTES) -> Tensor:
    """Scores of every query with every document.

    queries [Bq, Tq, D], documents [Bd, Td, D] -> [Bq, Bd] float32. Masked query rows add 0, masked document rows
    are never the maximum. A document without any row scores 0 (rankings put it behind every other document; see
    ``index``). Sums are taken in float32 whatever the inputs' dtype. Documents are taken in chunks so that no more
    than ``budget_bytes`` of similarities exist at once in the forward pass; values and gradients do not depend on it.
    """
    per_document = max(1, len(queries) * queries.mask.shape[1] * documents.mask.shape[1] * 4)
    chunk = max(1, budget_bytes // per_document)
    scores = [
        _block(queries.embeddings, queries.mask, documents.embeddings[s : s + chunk], documents.mask[s : s + chunk])
        for s in range(0, len(documents), chunk)
    ]
    return torch.cat(scores, dim=1) if scores else queries.embeddings.new_zeros(len(queries), 0, dtype=torch.float32)


def _block(q: Tensor, q_mask: Tensor, d: Tensor, d_mask: Tensor) -> Tensor:
    bq, tq, dim = q.shape
    bd, td, _ = d.shape
    sims = q.reshape(bq * tq, dim) @ d.reshape(bd * td, dim).to(q.dtype).T
    sims = sims.view(bq, tq, bd, td).masked_fill(~d_mask[None, None], torch.finfo(sims.dtype).min)
    best = sims.amax(-1).float()
    counts = q_mask[:, :, None] & d_mask.any(-1)[None, None]
    return best.masked_fill(~counts, 0.0).sum(1)


def maxsim_pairs(queries: TokenBatch, documents: TokenBatch) -> Tensor:
    """Scores of query i with its own documents.

    queries [B, Tq, D]; documents [B * n, Td, D], n consecutive documents per query -> [B, n] float32.
    """
    b, _, dim = queries.embeddings.shape
    n = len(documents) // b
    d = documents.embeddings.view(b, n, -1, dim).to(queries.embeddings.dtype)
    d_mask = documents.mask.view(b, n, -1)
    sims = torch.einsum("bqd,bntd->bnqt", queries.embeddings, d)
    best = sims.masked_fill(~d_mask[:, :, None], torch.finfo(sims.dtype).min).amax(-1).float()
    counts = queries.mask[:, None] & d_mask.any(-1)[:, :, None]
    return best.masked_fill(~counts, 0.0).sum(-1)


def maxsim_packed(query: Tensor, vectors: Tensor, lengths: Tensor, floor: float | None = None) -> Tensor:
    """Scores of one query with packed documents, as an index holds them.

    query [Tq, D]; vectors [sum(lengths), D], the rows of all documents one after another; lengths [N] int64
    -> [N] float32. A document of length 0 scores 0. ``floor=0.0`` reproduces colbert-ai's CPU search, which starts
    every row maximum at 0, so a row whose best similarity is negative counts 0 there.
    """
    best = segment_max((vectors.to(query.dtype) @ query.T).float(), lengths)
    if floor is not None:
        best = best.clamp(min=floor)
    return best.masked_fill((lengths == 0)[:, None], 0.0).sum(1)


def segment_max(values: Tensor, lengths: Tensor) -> Tensor:
    """values [sum(lengths), C], lengths [n] int64 -> [n, C]: the maximum over each segment, dtype-min where empty.

    scatter_reduce is 3 to 20 times faster on CPU than torch.segment_reduce (6 ms against 70 ms for 60,000 x 512).
    """
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
    out = values.new_full((len(lengths), values.shape[1]), torch.finfo(values.dtype).min)
    return out.scatter_reduce_(0, owner[:, None].expand(-1, values.shape[1]), values, "amax")
