"""Modes, processes and signals around the loop."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core import distributed
from core.batch import Batch
from core.device import autocast
from core.protocols import Retriever
from training import checkpoint, sharding
from training.batches import TrainBatch
from training.objective import Objective
from training.phases import phase
from training.units import InUnits


class StepModule(nn.Module):
    """Both encodings and the loss as one forward, because DDP synchronises only what runs through its forward."""

    def __init__(self, retriever: Retriever, objective: Objective) -> None:
        super().__init__()
        self.retriever, self.objective = retriever, objective

    def forward(self, batch: TrainBatch | Batch, side: str | None = None, anchor: bool = False) -> Any:
        """The numbers of one micro-batch. With ``side`` "queries" or "documents" (see ``grad_cache``) the vectors,
        their mask and a zero; with ``anchor`` the zero's graph holds every parameter that has a gradient already, so
        that processes exchange also those that this side does not touch."""
        if side is not None:
            tokens = getattr(self.retriever, f"encode_{side}")(batch)
            zero = tokens.embeddings.new_zeros(())
            return tokens.embeddings, tokens.mask, zero + self._nothing() if anchor else zero
        with phase("loss"):  # the encodings in it are phases of their own when somebody watches
            encode = self.retriever if batch.plan is None else InUnits(self.retriever, batch)
            losses = self.objective.step(batch, encode)
            if sharding.is_sharded(self.retriever) and losses["loss"].requires_grad:
                losses["loss"] = losses["loss"] + self._nothing()
            return losses

    def _nothing(self) -> Tensor:
        """A zero that depends on the parameters with a gradient, or on one of them all where none has.

        Of sliced weights: on all that are whole now, because every process must have gradients for the same ones (a
        batch without images leaves the image part out).
        """
        train = [p for p in self.parameters() if p.requires_grad]
        if sharding.is_sharded(self.retriever):
            return sum(p.reshape(-1)[:0].sum() for p in train if not isinstance(p, sharding.DTensor))
        return sum(p.reshape(-1)[:0].sum() for p in [p for p in train if p.grad is not None] or train[:1])


def train_mode(module: nn.Module) -> None:
    """train() where something learns, eval() in every part whose parameters are all frozen (no dropout noise there)."""
    module.train()
    for child in module.modules():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            child.eval()


@contextlib.contextmanager
def before_encoding(retriever: Retriever, do: Callable[[], None]) -> Iterator[None]:
    """``do()`` runs before every encoding of queries or documents meanwhile."""
    verbs = ("encode_queries", "encode_documents")
    own = {verb: vars(retriever)[verb] for verb in verbs if verb in vars(retriever)}  # FSDP has put its own there

    def after(encode: Callable) -> Callable:
        def encode_after(*args: Any, **more: Any) -> Any:
            do()
            return encode(*args, **more)

        return encode_after

    for verb in verbs:
        setattr(retriever, verb, after(getattr(retriever, verb)))
    try:
        yield
    finally:
        for verb in verbs:
            delattr(retriever, verb)
            if verb in own:
                setattr(retriever, verb, own[verb])


def wrap(module: StepModule, device: torch.device, find_unused: bool) -> nn.Module:
    """DDP around the module.

    DDP waits for a gradient of every trainable parameter. A part that gets none (a pooler that nothing reads, an
    image part in a batch without images) would stall it, unless it looks for such parts in every step
    (``find_unused``). Freezing them instead would be wrong where only some batches do without them.
    """
    names = inspect.signature(DistributedDataParallel).parameters  # torch 2.13 has renamed one
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=find_unused,
        **{buffers: False},  # equal from the start; frozen parts do not change theirs
    )


def quiet(model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Gradients travel once per step: micro-batches before the last only add to the local ones."""
    if isinstance(model, StepModule) and sharding.is_sharded(model.retriever):
        return sharding.synchronised(model.retriever, last)
    return contextlib.nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def find_unused(
    module: StepModule, batch: TrainBatch, named: list[tuple[str, nn.Parameter]], device: torch.device, precision: str
) -> bool:
    """Whether some parameter gets no gradient now or later: a pass over the first batch, whose traces are wiped.

    Where some items of the first batch have images and others have none, a later batch may have none at all.
    """
    before, remembered = checkpoint.rng_state(), deepcopy(module.objective.state_dict())
    with autocast(device, precision):
        losses = module(batch.to(device))
    if losses["loss"].requires_grad:  # else all are without: the step itself says what that means
        losses["loss"].backward()
    names = [name for name, p in named if p.grad is None]
    for _, parameter in named:
        parameter.grad = None
    checkpoint.set_rng_state(before)
    module.objective.load_state_dict(remembered)
    names = sorted({n for part in distributed.gather_objects(names) for n in part})
    if names and distributed.is_main():
        print(f"{len(names)} parameters get no gradient, such as {names[0]}; DDP looks for them.", file=sys.stderr)
    mixed = any(0 < int((side.image_counts > 0).sum()) < len(side) for side in (batch.queries, batch.documents))
    return bool(names) or any(distributed.gather_objects(mixed))


def mean_over_processes(numbers: dict[str, Tensor], device: torch.device) -> dict[str, float]:
    """Each scalar averaged over the processes, in one collective and one wait for the device."""
    values = torch.stack([v.detach().float().to(device) for v in numbers.values()])
    if distributed.world() > 1:
        dist.all_reduce(values)
    return dict(zip(numbers, (values / distributed.world()).tolist()))


SAME_SIGNAL_SECONDS = 10.0


@contextlib.contextmanager
def on_signal(ask: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call ``ask`` once; a second one does what it did before.

    A scheduler and torchrun may both pass one SIGTERM on: another within ``SAME_SIGNAL_SECONDS`` is the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked: float | None = None

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked is None:
            asked = time.monotonic()
            print("stopping after this step; once more to stop at once.", file=sys.stderr)
            ask()
        elif number == signal.SIGINT or time.monotonic() - asked > SAME_SIGNAL_SECONDS:
            restore()
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
