"""Batches larger than memory: gradient caching (Gao et al. 2021, arXiv 2101.06983).

The contrastive loss needs all vectors at once, but not all activations. So a batch is encoded in small units whose
activations are dropped; the loss of all vectors gives each vector its gradient; then each unit is encoded again and
that gradient goes on into the weights. The second encoding draws the dropout of the first, so the step is exactly the
one of encoding the units side by side with everything kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.batch import Batch
from core.errors import UserError
from core.protocols import Retriever
from core.tokens import TokenBatch
from training.batches import TrainBatch
from training.parallel import StepModule, quiet
from training.phases import phase
from training.units import SIDES, Unit


@dataclass
class Encoded:
    """A unit of a batch, encoded once."""

    unit: Unit
    noise: dict[str, Tensor]  # random states before the first encoding
    learns: bool  # whether the encoding had a gradient (a frozen side has none and is not encoded again)


def backward(
    model: nn.Module,
    batch: TrainBatch,
    scale: float,
    last: bool,
    precision: Callable[[], AbstractContextManager],
) -> dict[str, Tensor]:
    """Add ``scale`` times the gradient of the batch's loss to the weights; the numbers of ``Objective.step``.

    model: a StepModule, perhaps inside DDP. batch: with a plan, its units. last: the step's last micro-batch,
    after which processes exchange their gradients: they do so with the last unit. precision: makes the context in
    which encoders and loss run. Where nothing that trains took part, "loss" has no gradient and nothing was added.
    """
    module: StepModule = model.module if isinstance(model, DistributedDataParallel) else model
    device = batch.keys.device
    units: list[Encoded] = []
    with quiet(model, last=False):
        cached = Cached(module.retriever, batch)
        for side in SIDES:
            parts = []
            for unit in getattr(batch.plan, side):
                noise = noise_state(device)
                # With gradients switched on: kernels and their dropout may differ without. The graph is dropped here.
                with precision():
                    vectors, mask, _ = model(_of(batch, unit), side)
                units.append(Encoded(unit, noise, vectors.requires_grad))
                parts.append(TokenBatch(vectors.detach(), mask))
            cached.keep(side, parts, learns=any(u.learns for u in units if u.unit.side == side))
        with precision(), phase("loss"):
            losses = module.objective.step(batch, cached)
        if not losses["loss"].requires_grad:
            return losses
        with phase("backward"):
            (losses["loss"] * scale).backward()
    after = noise_state(device)
    # Every process takes part in the exchange, also one whose own vectors have no gradient.
    again = [encoded for encoded in units if encoded.learns] or units[-1:]
    for encoded in again:
        closing = encoded is again[-1]
        set_noise_state(encoded.noise, device)
        with quiet(model, last=last and closing), precision():
            vectors, _, anchor = model(_of(batch, encoded.unit), encoded.unit.side, closing)
        given = [(vectors, cached.gradient(encoded.unit, vectors)), (anchor, torch.ones_like(anchor))]
        given = [(tensor, gradient) for tensor, gradient in given if tensor.requires_grad]
        with quiet(model, last=last and closing), phase("backward"):
            torch.autograd.backward(*map(list, zip(*given)))
    set_noise_state(after, device)
    return {name: value.detach() if name != "loss" else value for name, value in losses.items()}


class Cached:
    """What the objective sees in place of the retriever: vectors that are there already, as leaves of its graph."""

    def __init__(self, retriever: Retriever, batch: TrainBatch) -> None:
        self.temperature = retriever.temperature
        self._batch = batch
        self._vectors: dict[str, TokenBatch] = {}

    def keep(self, side: str, parts: list[TokenBatch], learns: bool) -> None:
        device = parts[0].embeddings.device
        self._vectors[side] = TokenBatch.cat(parts).select(self._batch.plan.order(side, device))
        self._vectors[side].embeddings.requires_grad_(learns)

    def gradient(self, unit: Unit, like: Tensor) -> Tensor:
        """What the loss says of a unit's vectors, in the unit's own number of rows."""
        whole = self._vectors[unit.side].embeddings.grad
        return torch.zeros_like(like) if whole is None else whole[unit.rows.to(whole.device), : like.shape[1]]

    def encode_queries(self, batch: Batch) -> TokenBatch:
        return self._give("queries", batch)

    def encode_documents(self, batch: Batch) -> TokenBatch:
        return self._give("documents", batch)

    def _give(self, side: str, batch: Batch) -> TokenBatch:
        if batch is not getattr(self._batch, side):
            raise UserError("this objective encodes more than the batch itself; set train.grad_cache: null.")
        return self._vectors[side]


def _of(batch: TrainBatch, unit: Unit) -> Batch:
    return unit.of(getattr(batch, unit.side))


def noise_state(device: torch.device) -> dict[str, Tensor]:
    """What decides dropout: the random states of the CPU and of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_noise_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif "mps" in state:
        torch.mps.set_rng_state(state["mps"])
