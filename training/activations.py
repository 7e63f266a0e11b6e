"""Gradient checkpointing: layers that train keep only their input and are computed again in the backward pass.

About a third more time for activations of one layer instead of all: larger batches, hence more negatives. Gradients are
the same, dropout included, because the random state of each layer is put back when it is computed again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.errors import UserError


def layers(module: nn.Module, frozen: bool = False) -> list[nn.Module]:
    """The repeated blocks below ``module`` that train: members of lists of two or more of one kind, outermost first.

    That is what the layers of every transformer look like, whatever their names. frozen: also those that do not train.
    """
    found: list[nn.Module] = []
    for child in module.modules():
        members = list(child) if isinstance(child, nn.ModuleList) else []
        if len(members) < 2 or len({type(m) for m in members}) > 1:
            continue
        inside = {id(m) for layer in found for m in layer.modules()}
        learns = (frozen or any(p.requires_grad for p in m.parameters()) for m in members)
        found += [m for m, learn in zip(members, learns) if learn and id(m) not in inside]
    return found


def check(module: nn.Module) -> None:
    """Whether there is anything to checkpoint below ``module``."""
    if not layers(module):
        raise UserError(
            "train.checkpoint_activations: no tower that trains has repeated layers; set it to false or unfreeze one."
        )


@contextlib.contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """Checkpoint every layer of ``layers(module)`` meanwhile."""
    with contextlib.ExitStack() as stack:
        for layer in layers(module):
            stack.enter_context(with_forward(layer, functools.partial(_forward, layer.forward)))
        yield


@contextlib.contextmanager
def with_forward(layer: nn.Module, forward: Callable) -> Iterator[None]:
    """``layer.forward`` is another one meanwhile."""
    before = vars(layer).get("forward")
    layer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward  # the instance's; the class's shows again
        if before is not None:
            layer.forward = before  # type: ignore[method-assign]


def _forward(forward, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
