"""Modes, processes and signals around the loop."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core import distributed
from core.protocols import Retriever
from training.batches import TrainBatch
from training.objective import Objective


class StepModule(nn.Module):
    """Both encodings and the loss as one forward, because DDP synchronises only what runs through its forward."""

    def __init__(self, retriever: Retriever, objective: Objective) -> None:
        super().__init__()
        self.retriever, self.objective = retriever, objective

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        return self.objective.step(batch, self.retriever)


def train_mode(module: nn.Module) -> None:
    """train() where something learns, eval() in every part whose parameters are all frozen (no dropout noise there)."""
    module.train()
    for child in module.modules():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            child.eval()


def wrap(module: StepModule, device: torch.device, find_unused: bool) -> nn.Module:
    """DDP around the module, or the module itself in a single process.

    DDP waits for a gradient of every trainable parameter. A part that gets none (a pooler that nothing reads, an
    image part in a batch without images) would stall it, unless it looks for such parts in every step
    (``find_unused``). Freezing them instead would be wrong where only some batches do without them.
    """
    if distributed.world() == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,  # equal from the start; frozen parts do not change theirs
        find_unused_parameters=find_unused,
    )


def quiet(model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Gradients travel once per step: micro-batches before the last only add to the local ones."""
    return contextlib.nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def mean_over_processes(numbers: dict[str, Tensor], device: torch.device) -> dict[str, float]:
    """Each scalar averaged over the processes, in one collective and one wait for the device."""
    values = torch.stack([v.detach().float().to(device) for v in numbers.values()])
    if distributed.world() > 1:
        dist.all_reduce(values)
    return dict(zip(numbers, (values / distributed.world()).tolist()))


@contextlib.contextmanager
def on_signal(ask: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call ``ask`` once; a second one does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        print("stopping after this step; once more to stop at once.", file=sys.stderr)
        ask()
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
