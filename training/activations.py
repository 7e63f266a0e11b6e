"""Gradient checkpointing: layers that train keep only their input and are computed again in the backward pass.

About a third more time for activations of one layer instead of all: larger batches, hence more negatives. Gradients are
the same, dropout included, because the random state of each layer is put back when it is computed again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.errors import UserError


def layers(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks below ``module`` that train: members of lists of two or more of one kind, outermost first.

    That is what the layers of every transformer look like, whatever their names.
    """
    found: list[nn.Module] = []
    for child in module.modules():
        members = list(child) if isinstance(child, nn.ModuleList) else []
        if len(members) < 2 or len({type(m) for m in members}) > 1:
            continue
        inside = {id(m) for layer in found for m in layer.modules()}
        found += [m for m in members if id(m) not in inside and any(p.requires_grad for p in m.parameters())]
    return found


@contextlib.contextmanager
def recomputed(module: nn.Module) -> Iterator[int]:
    """Checkpoint every layer of ``layers(module)`` meanwhile; yields how many. None is an error."""
    chosen = layers(module)
    if not chosen:
        raise UserError(
            "train.checkpoint_activations: no tower that trains has repeated layers; set it to false or unfreeze one."
        )
    for layer in chosen:
        layer.forward = functools.partial(_forward, layer.forward)  # type: ignore[method-assign]
    try:
        yield len(chosen)
    finally:
        for layer in chosen:
            del layer.forward  # the instance's; the class's shows again


def _forward(forward, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
