"""How much of the machine's arithmetic a step uses: MFU, model FLOPs utilisation (Chowdhery et al. 2022, appendix B).

Counted: products with the weight matrices of layers that run, for real tokens (padding is waste, so it does not count),
once forward and once backward for each of weight and input that has a gradient; and MaxSim's products forward. Not
counted: what is computed a second time (checkpointed activations, the second pass of a gradient cache), attention's
products among tokens (a few percent at these lengths), and everything that is no matrix product. So the number is
rather too small than too large. The ceiling is measured: a large matrix product in the run's precision.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from core import distributed
from core.batch import Batch
from core.device import autocast
from core.protocols import Retriever
from training import checkpoint
from training.batches import TrainBatch

SAMPLE = 4
"""Queries or documents that one measurement encodes."""


@dataclass
class Side:
    """FLOPs of one side's encoder."""

    per_token: float  # forward and backward, of layers that see every token position
    per_image: float  # of the others, where there are images
    per_item: float  # of the others, where there are none
    rows: float  # rows that an item has in MaxSim
    dim: int


class Flops:
    """FLOPs of micro-batches, from one small sample of each side."""

    def __init__(self, retriever: Retriever, batch: TrainBatch, device: torch.device, precision: str) -> None:
        """Encode a few items of ``batch`` with their gradients' graph; the random state is put back."""
        before = checkpoint.rng_state()
        with autocast(device, precision):
            self.sides = {
                side: _measure(retriever, getattr(batch, side), side, device) for side in ("queries", "documents")
            }
        checkpoint.set_rng_state(before)
        self.ceiling = ceiling(device, precision)

    def of(self, batch: TrainBatch) -> float:
        """A micro-batch of this process, on the CPU or not; in-batch negatives of all processes included."""
        sides = self.sides["queries"], self.sides["documents"]
        encoding = sum(_encoding(side, part) for side, part in zip(sides, (batch.queries, batch.documents)))
        pairs = len(batch.queries) * len(batch.documents) * distributed.world()
        return encoding + 2 * pairs * sides[0].rows * sides[1].rows * sides[0].dim

    def utilisation(self, flops: float, seconds: float) -> float:
        """Share of what all processes' devices could have done; flops: of all processes."""
        return flops / max(seconds, 1e-9) / (self.ceiling * distributed.world())


def real_tokens(batch: Batch) -> int:
    """Token positions that the encoder attends to."""
    return int(batch["mask"].sum()) if "mask" in batch else 0


def _encoding(side: Side, batch: Batch) -> float:
    images = int(batch.offsets[-1])
    return side.per_token * real_tokens(batch) + side.per_image * images + side.per_item * len(batch)


def _measure(retriever: Retriever, batch: Batch, side: str, device: torch.device) -> Side:
    # Items with images first, so that what images cost is seen.
    order = batch.image_counts.argsort(descending=True, stable=True)[:SAMPLE]
    part = batch.select(order.cpu()).to(device)
    shape = tuple(part["mask"].shape) if "mask" in part else None
    per_token, others = 0.0, 0.0

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal per_token, others
        given = inputs[0] if inputs else None
        if not isinstance(given, Tensor) or not isinstance(output, Tensor):
            return
        passes = 1 + module.weight.requires_grad + given.requires_grad if torch.is_grad_enabled() else 1
        each = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight.shape[1]
        work = 2.0 * passes * output.numel() * each
        if shape is not None and output.shape[:2] == shape:
            per_token += work / (shape[0] * shape[1])
        else:
            others += work

    kinds = (nn.Linear, nn.Conv2d)
    handles = [m.register_forward_hook(seen) for m in retriever.modules() if isinstance(m, kinds)]  # type: ignore[attr-defined]
    try:
        tokens = getattr(retriever, f"encode_{side}")(part)
    finally:
        for handle in handles:
            handle.remove()
    images = int(part.offsets[-1])
    return Side(
        per_token,
        others / images if images else 0.0,
        0.0 if images else others / len(part),
        float(tokens.mask.sum()) / len(part),
        tokens.dim,
    )


@cache
def ceiling(device: torch.device, precision: str = "fp32", seconds: float = 0.05) -> float:
    """FLOPs per second of the best of several square matrix products in this precision, on this device alone.

    fp32 means what torch does by default (on CUDA without TF32 unless that was switched on).
    """
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))

    def once() -> float:
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        return time.perf_counter() - began

    best = min(once() for _ in range(2))
    for _ in range(min(20, max(2, int(seconds / best)))):
        best = min(best, once())
    return 2 * side**3 / best
