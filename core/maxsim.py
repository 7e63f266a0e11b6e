"""MaxSim: for every query row the best document row, summed (ColBERT, Khattab & Zaharia 2020, equation 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

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
    q, d = queries.embeddings, documents.embeddings.to(queries.embeddings.dtype)
    # A document without rows keeps the dtype's minimum as its maximum, which must not enter the sum.
    counts = queries.mask[:, :, None] & documents.mask.any(-1)[None, None]  # [Bq, Tq, Bd]
    best = _BestRows.apply(q.flatten(0, 1), d, documents.mask, budget_bytes)
    return best.view(*queries.mask.shape, len(documents)).float().masked_fill(~counts, 0.0).sum(1)


class _BestRows(torch.autograd.Function):
    """best[r, j] = max over rows t of document j of <q_r, d_jt>.

    The gradient of a maximum touches one document row per (r, j). Remembering which one makes the backward pass a
    weighted gather of Bd vectors per query row, instead of two dense products with a matrix that is almost all zeros.
    """

    @staticmethod
    def forward(ctx, q: Tensor, d: Tensor, mask: Tensor, budget_bytes: int) -> Tensor:
        """q [R, D], d [Bd, Td, D], mask [Bd, Td] -> [R, Bd]."""
        bd, td, dim = d.shape
        best = q.new_empty(len(q), bd)
        where = torch.empty(len(q), bd, dtype=torch.int64, device=q.device)
        chunk = max(1, budget_bytes // max(1, 4 * len(q) * td))
        for start in range(0, bd, chunk):
            part = slice(start, min(start + chunk, bd))
            sims = (q @ d[part].reshape(-1, dim).T).view(len(q), -1, td)
            sims.masked_fill_(~mask[part], torch.finfo(sims.dtype).min)
            best[:, part], where[:, part] = sims.max(-1)
        ctx.save_for_backward(q, d, where)
        return best

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        q, d, where = ctx.saved_tensors
        flat = d.flatten(0, 1)
        rows = where + torch.arange(len(d), device=d.device) * d.shape[1]  # [R, Bd]: row of flat that won
        grad_q = grad_d = None
        if ctx.needs_input_grad[0]:
            grad_q = _weighted_sums(flat, rows.flatten(), grad.flatten(), torch.full_like(rows[:, 0], rows.shape[1]))
        if ctx.needs_input_grad[1]:
            order = rows.flatten().argsort(stable=True)  # stable: the same sums, bit for bit, every time
            owner = torch.div(order, rows.shape[1], rounding_mode="floor")
            counts = torch.bincount(rows.flatten(), minlength=len(flat))
            grad_d = _weighted_sums(q, owner, grad.flatten()[order], counts).view_as(d)
        return grad_q, grad_d, None, None


def _weighted_sums(vectors: Tensor, index: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Sums of ``weights[k] * vectors[index[k]]`` over consecutive groups of ``counts`` items: [len(counts), D]."""
    offsets = counts.cumsum(0) - counts
    return embedding_bag(index, vectors, offsets, mode="sum", per_sample_weights=weights.to(vectors.dtype))


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
