"""A loss over many queries, taken a slice of queries at a time, with its gradient worked out on the way.

Each query's loss needs its own scores with all documents and no other query's. So a slice's loss can be differentiated
as soon as it is known, and what its backward pass keeps is freed before the next slice: memory stays the same however
large the batch, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.maxsim import kept_bytes
from core.tokens import TokenBatch

BUDGET_BYTES = 256 << 20
"""What the loss of one slice may keep until its gradient is known."""

Loss = Callable[[slice, TokenBatch, TokenBatch], dict[str, Tensor]]
"""(which queries, these queries, all documents) -> scalars, each a mean over the queries, "loss" among them."""


def slice_size(queries: TokenBatch, documents: TokenBatch, budget_bytes: int | None = None) -> int:
    """Queries per slice so that the winners of MaxSim and ten numbers per score stay in the budget."""
    (_, rows), (count, document_rows) = queries.mask.shape, documents.mask.shape
    each = kept_bytes(rows, count, document_rows) + 40 * count
    return max(1, (BUDGET_BYTES if budget_bytes is None else budget_bytes) // max(1, each))


def in_slices(loss: Loss, queries: TokenBatch, documents: TokenBatch, size: int) -> dict[str, Tensor]:
    """``loss`` of all queries, as the mean over slices of ``size`` queries; only "loss" has a gradient.

    The gradient reaches queries and documents alone, not parameters that ``loss`` itself might use. A batch that fits
    into one slice is left to autograd.
    """
    if len(queries) <= size:
        return loss(slice(0, len(queries)), queries, documents)
    out: dict[str, Tensor] = {}
    total = _Sliced.apply(queries.embeddings, documents.embeddings, queries.mask, documents.mask, loss, size, out)
    return {**out, "loss": total}


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, d: Tensor, q_mask: Tensor, d_mask: Tensor, loss: Loss, size: int, out: dict) -> Tensor:
        learns = ctx.needs_input_grad[:2]
        leaves = [t.detach().requires_grad_(needed) for t, needed in zip((q, d), learns)]
        grads = [torch.zeros_like(t) if needed else None for t, needed in zip((q, d), learns)]
        for start in range(0, len(q), size):
            part = slice(start, min(start + size, len(q)))
            with torch.enable_grad():
                taken = TokenBatch(leaves[0][part], q_mask[part])
                numbers = loss(part, taken, TokenBatch(leaves[1], d_mask))
                weight = (part.stop - part.start) / len(q)
                wanted = [t for t in (taken.embeddings, leaves[1]) if t.requires_grad]
                found = iter(torch.autograd.grad(numbers["loss"] * weight, wanted) if wanted else ())
            if learns[0]:
                grads[0][part] = next(found)
            if learns[1]:
                grads[1] += next(found)
            for name, value in numbers.items():
                out[name] = out.get(name, 0) + value.detach() * weight
        ctx.save_for_backward(*grads)
        return out["loss"]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        to_q, to_d = ctx.saved_tensors
        return *(None if g is None else g * grad for g in (to_q, to_d)), None, None, None, None, None
