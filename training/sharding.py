"""FSDP2 for towers too large for one device: each process keeps a slice of every weight, gradient and moment.

A layer's weights are gathered when it runs and dropped again. Only the loop sees slices: a checkpoint holds whole
weights, so nothing that reads one knows of it, and a run may be evaluated anywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree

from core import distributed
from core.protocols import Retriever
from core.tokens import TokenBatch
from training.activations import layers

VERBS = ("encode_queries", "encode_documents", "text_states")
"""Methods of a retriever that compute with its weights: around each of them they are gathered."""


def shard(retriever: Retriever, device: torch.device) -> None:
    """Slice every layer of the towers, and what is around them as one more, over all processes."""
    _see_into_tokens()
    mesh = init_device_mesh(device.type, (distributed.world(),))
    module: Any = retriever
    for layer in layers(module, frozen=True):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for verb in VERBS:
        if hasattr(module, verb):
            register_fsdp_forward_method(module, verb)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def reshard(retriever: nn.Module) -> None:
    """Drop the whole weights that a pass without gradients has left."""
    for module in retriever.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def synchronised(retriever: FSDPModule, now: bool) -> Iterator[None]:
    """Whether gradients are exchanged in this backward pass, or only added up."""
    retriever.set_requires_gradient_sync(now)
    try:
        yield
    finally:
        retriever.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor of a slice; another tensor as it is. Every process calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, slice_: Tensor) -> Tensor:
    """This process's slice of a whole tensor that every process has, as another is sliced."""
    if not isinstance(slice_, DTensor) or isinstance(tensor, DTensor):
        return tensor
    moved = tensor.to(slice_.device)
    return distribute_tensor(moved, slice_.device_mesh, slice_.placements, src_data_rank=None)


@contextlib.contextmanager
def gathered(retriever: nn.Module) -> Iterator[None]:
    """Whole weights on the CPU of the first process meanwhile, for writing them. Every process calls it."""
    reshard(retriever)
    found = [(m, name, p) for m in retriever.modules() for name, p in m._parameters.items() if isinstance(p, DTensor)]
    try:
        for module, name, parameter in found:
            value = parameter.detach().full_tensor()
            if distributed.is_main():
                module._parameters[name] = nn.Parameter(value.cpu(), requires_grad=parameter.requires_grad)
        yield
    finally:
        for module, name, parameter in found:
            module._parameters[name] = parameter


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``state_dict`` with whole tensors on the CPU. Every process calls it."""
    state = optimizer.state_dict()
    moments = {
        i: {k: whole(v).cpu() if isinstance(v, DTensor) else v for k, v in one.items()}
        for i, one in state["state"].items()
    }
    return {**state, "state": moments}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of ``optimizer_state``."""
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = like(value, parameter)


def _see_into_tokens() -> None:
    """torch looks for tensors in what a verb returns, to know when its backward pass begins."""
    if TokenBatch not in _pytree.SUPPORTED_NODES:
        _pytree.register_pytree_node(
            TokenBatch,
            lambda t: ([t.embeddings, t.mask], (t.rows, t.extras)),
            lambda parts, kept: TokenBatch(*parts, *kept),
        )
