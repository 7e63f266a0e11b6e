"""MaxSim and its gradient as Triton kernels: no similarity ever leaves the chip.

``core.maxsim.maxsim`` takes ``FusedMaxSim`` for tensors on CUDA where Triton is installed (torch's CUDA builds for
Linux bring it); the same steps in plain torch are its fallback and its reference. Three kernels:

- ``_best``: products of a tile of query rows with a document, a block of document rows at a time; of the products only
  the running maximum of each query row and its place are kept (as Dao et al. 2022 keep a softmax's).
- ``_to_queries``: the gradient of a query row is a weighted sum of the document rows that won, one per document: a
  gather.
- ``_to_documents``: the gradient of a document row is a weighted sum of the query rows for which it won. The winners of
  a tile, written as a matrix of zeros and weights, times the tile: sums in a fixed order, without atomics.

R = all query rows, N documents of Td rows. What has one number per query row and document is laid out [N, R], so that
neighbouring threads write neighbours. Accumulators are float32; products of float32 rows are exact, or TF32 where
``torch.backends.cuda.matmul.fp32_precision`` says so.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.maxsim import chunks, index_type

LOWEST = torch.finfo(torch.float32).min
LARGEST_DIM = 128
"""Wider rows do not fit whole into a tile beside the shared memory of a smaller GPU (100 KB)."""


@triton.jit
def _best(
    rows, docs, keep, best, where, n_rows, td, dim,
    LEARNS: tl.constexpr, EXACT: tl.constexpr, LOWEST: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """rows [R, dim], docs [N, td, dim], keep [N, td] uint8 -> best [N, R] float32, where [N, R] integers."""
    tiles = tl.cdiv(n_rows, ROWS)
    doc, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    r, k = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    inside = k[None, :] < dim
    q = tl.load(rows + r[:, None].to(tl.int64) * dim + k[None, :], (r[:, None] < n_rows) & inside, 0.0)
    top = tl.full([ROWS], LOWEST, tl.float32)
    place = tl.zeros([ROWS], tl.int32)
    for start in range(0, td, BLOCK):
        t = start + tl.arange(0, BLOCK)
        d = tl.load(docs + (doc * td + t)[:, None] * dim + k[None, :], (t[:, None] < td) & inside, 0.0)
        kept = tl.load(keep + doc * td + t, t < td, 0)
        sims = tl.dot(q, tl.trans(d), input_precision="ieee" if EXACT else "tf32")
        sims = tl.where(sims == sims, sims, float("inf"))  # what is no number wins, or nobody would hear of it
        sims = tl.where(kept[None, :] != 0, sims, LOWEST)
        here, at = tl.max(sims, 1, return_indices=True)
        place = tl.where(here > top, at + start, place)
        top = tl.maximum(here, top)
    tl.store(best + doc * n_rows + r, top, r < n_rows)
    if LEARNS:
        tl.store(where + doc * n_rows + r, place.to(where.dtype.element_ty), r < n_rows)


@triton.jit
def _to_queries(
    docs, where, weights, out, n_rows, n_docs, td, dim, ROWS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """docs [N, td, dim], where [N, R], weights [N, R] -> out [R, dim] float32: the sums of the winners."""
    r, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    total = tl.zeros([ROWS, DIM], tl.float32)
    for _ in range(n_docs):
        won = tl.load(where + r, r < n_rows, 0).to(tl.int64)
        weight = tl.load(weights + r, r < n_rows, 0.0)
        d = tl.load(docs + won[:, None] * dim + k[None, :], k[None, :] < dim, 0.0)
        total += weight[:, None] * d.to(tl.float32)
        docs += td * dim
        where += n_rows
        weights += n_rows
    tl.store(out + r[:, None].to(tl.int64) * dim + k[None, :], total, (r[:, None] < n_rows) & (k[None, :] < dim))


@triton.jit
def _to_documents(
    rows, where, weights, out, n_rows, td, dim,
    EXACT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """rows [R, dim], where [N, R], weights [N, R] -> out [N, td, dim]: the sums of the query rows each row won."""
    blocks = tl.cdiv(td, BLOCK)
    doc, start = (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks) * BLOCK
    t, k = start + tl.arange(0, BLOCK), tl.arange(0, DIM)
    inside = k[None, :] < dim
    total = tl.zeros([BLOCK, DIM], tl.float32)
    for tile in range(0, n_rows, ROWS):
        r = tile + tl.arange(0, ROWS)
        won = tl.load(where + doc * n_rows + r, r < n_rows, 0).to(tl.int32)
        weight = tl.load(weights + doc * n_rows + r, r < n_rows, 0.0)
        q = tl.load(rows + r[:, None].to(tl.int64) * dim + k[None, :], (r[:, None] < n_rows) & inside, 0.0)
        shares = tl.where(t[:, None] == won[None, :], weight[None, :], 0.0).to(q.dtype)
        total += tl.dot(shares, q, input_precision="ieee" if EXACT else "tf32")
    there = out + (doc * td + t)[:, None] * dim + k[None, :]
    tl.store(there, total.to(out.dtype.element_ty), (t[:, None] < td) & inside)


def tiles(rows: Tensor, document_rows: int) -> dict[str, int]:
    """Sizes of the tiles: under 100 KB of shared memory at any width of numbers."""
    block = 32 if rows.element_size() > 2 else 64
    block = min(block, max(16, triton.next_power_of_2(document_rows)))
    return {"ROWS": 64, "BLOCK": block, "DIM": max(16, triton.next_power_of_2(rows.shape[-1]))}


def best_rows(rows: Tensor, documents: Tensor, keep: Tensor, where: Tensor, exact: bool) -> Tensor:
    """rows [R, D], documents [N, Td, D] of one dtype, keep [N, Td] bool -> [N, R] float32, the lowest number for a
    document without rows. ``where`` [N, R] integers is filled with the winners' places, unless it has no elements."""
    (count, td, dim), size = documents.shape, tiles(rows, documents.shape[1])
    best = rows.new_empty(count, len(rows), dtype=torch.float32)
    _best[(triton.cdiv(len(rows), size["ROWS"]) * count,)](
        rows, documents, keep.view(torch.uint8), best, where, len(rows), td, dim,
        LEARNS=where.numel() > 0, EXACT=exact, LOWEST=LOWEST, **size,
    )  # fmt: skip
    return best


def to_queries(documents: Tensor, where: Tensor, weights: Tensor) -> Tensor:
    """documents [N, Td, D], where [N, R], weights [N, R] float32 -> [R, D] float32."""
    (count, td, dim), rows = documents.shape, where.shape[1]
    out, block = weights.new_empty(rows, dim), 16
    _to_queries[(triton.cdiv(rows, block),)](
        documents, where, weights, out, rows, count, td, dim, ROWS=block, DIM=tiles(documents, td)["DIM"]
    )
    return out


def to_documents(rows: Tensor, where: Tensor, weights: Tensor, document_rows: int, exact: bool) -> Tensor:
    """rows [R, D], where [N, R], weights [N, R] float32 -> [N, Td, D] in the rows' dtype."""
    size, (n, dim) = tiles(rows, document_rows), rows.shape
    out = rows.new_empty(len(where), document_rows, dim)
    _to_documents[(len(where) * triton.cdiv(document_rows, size["BLOCK"]),)](
        rows, where, weights, out, n, document_rows, dim, EXACT=exact, **size
    )
    return out


class FusedMaxSim(torch.autograd.Function):
    """The same function as ``core.maxsim``'s own, argument for argument."""

    @staticmethod
    def forward(ctx, q: Tensor, q_mask: Tensor, d: Tensor, d_mask: Tensor, budget_bytes: int) -> Tensor:
        """q [Bq, Tq, D], q_mask [Bq, Tq], d [Bd, Td, D], d_mask [Bd, Td] -> [Bq, Bd]."""
        q, d, d_mask = q.contiguous(), d.contiguous(), d_mask.contiguous()
        (bq, tq, _), (bd, td, _), rows = q.shape, d.shape, q.flatten(0, 1)
        learns, exact = any(ctx.needs_input_grad), torch.backends.cuda.matmul.fp32_precision != "tf32"
        scores = q.new_empty(bq, bd, dtype=torch.float32)
        where = torch.empty(bd, len(rows) if learns else 0, dtype=index_type(td), device=q.device)
        with torch.cuda.device_of(q):  # Triton starts kernels on the current GPU, which need not be the tensors'
            for part in chunks(bd, budget_bytes, 4 * len(rows)):
                best = best_rows(rows, d[part], d_mask[part], where[part], exact).view(-1, bq, tq)
                scores[:, part] = best.masked_fill_(~q_mask, 0.0).sum(-1).T
        # A document without rows keeps the lowest number as its maximum, which must not enter a score.
        scores.masked_fill_(~d_mask.any(-1), 0.0)
        ctx.save_for_backward(q, q_mask, d, d_mask, where)
        ctx.budget_bytes, ctx.exact = budget_bytes, exact
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        q, q_mask, d, d_mask, where = ctx.saved_tensors
        rows, (to_q, _, to_d, _, _) = q.flatten(0, 1), ctx.needs_input_grad
        grad = grad.T.masked_fill(~d_mask.any(-1)[:, None], 0.0)
        grad_q = torch.zeros_like(rows, dtype=torch.float32) if to_q else None
        grad_d = torch.empty_like(d) if to_d else None
        with torch.cuda.device_of(q):
            for part in chunks(len(d), ctx.budget_bytes, 4 * len(rows)):
                weights = (grad[part, :, None] * q_mask).flatten(1)
                if grad_q is not None:
                    grad_q += to_queries(d[part], where[part], weights)
                if grad_d is not None:
                    grad_d[part] = to_documents(rows, where[part], weights, d.shape[1], ctx.exact)
        return None if grad_q is None else grad_q.view_as(q).to(q.dtype), None, grad_d, None, None
