"""MaxSim: for every query row the best document row, summed (ColBERT, Khattab & Zaharia 2020, equation 3)."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from core.tokens import TokenBatch

BUDGET_BYTES = 256 << 20
"""Memory one chunk of the [Bq, Bd, Tq, Td] similarity tensor, or of what its gradient needs, may take."""


def maxsim(queries: TokenBatch, documents: TokenBatch, budget_bytes: int = BUDGET_BYTES) -> Tensor:
    """Scores of every query with every document.

    queries [Bq, Tq, D], documents [Bd, Td, D] -> [Bq, Bd] float32. Masked query rows add 0, masked document rows
    are never the maximum. A document without any row scores 0 (rankings put it behind every other document; see
    ``index``). Sums are taken in float32 whatever the inputs' dtype. Documents are taken in chunks so that no more
    than ``budget_bytes`` of similarities exist at once; values and gradients do not depend on it. For the backward
    pass one or two bytes per query row and document are kept (``kept_bytes``). On CUDA with Triton similarities never
    exist in memory (``core.maxsim_triton``).
    """
    q, d = queries.embeddings, documents.embeddings.to(queries.embeddings.dtype)
    return _function(q, len(d)).apply(q, queries.mask, d, documents.mask, budget_bytes)


def _function(q: Tensor, documents: int) -> type[torch.autograd.Function]:
    """The kernels where they can run; an empty side, and rows wider than a tile, are left to torch."""
    if q.is_cuda and q.numel() and documents and _has_triton():
        from core.maxsim_triton import LARGEST_DIM, FusedMaxSim

        if q.shape[2] <= LARGEST_DIM and q.element_size() <= 4:
            return FusedMaxSim
    return _MaxSim


@functools.cache
def _has_triton() -> bool:
    """It comes with torch's CUDA builds for Linux, not with those for Windows. The one of torch 2.11 needs a C compiler
    and Python's headers to start."""
    if importlib.util.find_spec("triton") is None:
        return False
    from triton.runtime import driver

    try:
        return driver.active is not None
    except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
        said = " ".join(str(error).split())[:200]
        print(f"note: the kernels of MaxSim cannot start ({said}); plain torch does it, slower.", file=sys.stderr)
        return False


def kept_bytes(query_rows: int, documents: int, document_rows: int) -> int:
    """What ``maxsim`` keeps until its backward pass, beside its inputs: for each query row which row of each document
    was the best."""
    return query_rows * documents * index_type(document_rows).itemsize


def index_type(rows: int) -> torch.dtype:
    """The smallest integers that can number the rows of a document."""
    return next(t for t in (torch.uint8, torch.int16, torch.int32) if rows - 1 <= torch.iinfo(t).max)


class _MaxSim(torch.autograd.Function):
    """score[i, j] = sum over rows r of query i of the max over rows t of document j of <q_ir, d_jt>.

    The gradient of a maximum touches one document row per (r, j). Remembering which one makes the backward pass a
    weighted gather of Bd vectors per query row, instead of two dense products with a matrix that is almost all zeros.
    """

    @staticmethod
    def forward(ctx, q: Tensor, q_mask: Tensor, d: Tensor, d_mask: Tensor, budget_bytes: int) -> Tensor:
        """q [Bq, Tq, D], q_mask [Bq, Tq], d [Bd, Td, D], d_mask [Bd, Td] -> [Bq, Bd]."""
        (bq, tq, dim), (bd, td, _) = q.shape, d.shape
        scores = q.new_empty(bq, bd, dtype=torch.float32)
        learns = any(ctx.needs_input_grad)
        where = torch.empty(bq * tq if learns else 0, bd, dtype=index_type(td), device=q.device)
        rows = q.flatten(0, 1)
        for part in chunks(bd, budget_bytes, len(rows) * td * q.element_size()):
            sims = (rows @ d[part].reshape(-1, dim).T).view(len(rows), -1, td)
            sims.masked_fill_(~d_mask[part], torch.finfo(sims.dtype).min)
            best, index = sims.max(-1)
            scores[:, part] = best.view(bq, tq, -1).float().masked_fill_(~q_mask[:, :, None], 0.0).sum(1)
            if learns:
                where[:, part] = index.to(where.dtype)
        # A document without rows keeps the dtype's minimum as its maximum, which must not enter a score.
        scores.masked_fill_(~d_mask.any(-1), 0.0)
        ctx.save_for_backward(q, q_mask, d, d_mask, where)
        ctx.budget_bytes = budget_bytes
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        q, q_mask, d, d_mask, where = ctx.saved_tensors
        (bd, td, _), (to_q, _, to_d, _, _) = d.shape, ctx.needs_input_grad
        rows, grad = q.flatten(0, 1), grad.masked_fill(~d_mask.any(-1), 0.0)
        grad_q = torch.zeros_like(rows) if to_q else None
        grad_d = torch.empty_like(d) if to_d else None
        for part in chunks(bd, ctx.budget_bytes, 40 * len(rows)):  # int64 indices, their sort, weights
            flat = d[part].flatten(0, 1)
            count = where[:, part].shape[1]
            # [R, chunk]: the row of flat that won
            won = (where[:, part].long() + torch.arange(count, device=d.device) * td).flatten()
            weights = (grad[:, None, part] * q_mask[:, :, None]).flatten()
            if grad_q is not None:
                each = torch.full((len(rows),), count, device=d.device)
                grad_q += _weighted_sums(flat, won, weights, each)
            if grad_d is not None:
                keys = won.int() if len(flat) < 2**31 else won  # sorts twice as fast
                order = keys.argsort(stable=True)  # stable: the same sums, bit for bit, every time
                owner = torch.div(order, count, rounding_mode="floor")
                counts = torch.bincount(won, minlength=len(flat))
                grad_d[part] = _weighted_sums(rows, owner, weights[order], counts).view(-1, td, d.shape[2])
        return None if grad_q is None else grad_q.view_as(q), None, grad_d, None, None


def chunks(count: int, budget_bytes: int, each: int) -> Iterator[slice]:
    """Slices of ``range(count)`` whose items, of ``each`` bytes, stay in the budget (one item at least)."""
    size = max(1, budget_bytes // max(1, each))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


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
