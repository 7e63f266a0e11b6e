"""torch.compile for the layers of the towers: fused kernels, after a minute or more of compiling.

Each layer is compiled, not the model: layers of one kind share their code, so a tower of 24 compiles once for each
circumstance (training or not, with and without a mask of padding, precision) and not for each length: lengths and batch
sizes are symbols. What exceeds ``LIMIT`` circumstances runs uncompiled.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator

import torch
from torch import nn

from core.errors import UserError
from training.activations import layers, with_forward

LIMIT = 16
"""Compilations of one kind of layer."""

BACKEND = "inductor"


def check(device: torch.device) -> None:
    """Whether the compiler's own compiler is here: C++ for a CPU, Triton for CUDA."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("train.compile needs Triton on CUDA; pip install triton, or set train.compile: false.")
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError(
            "train.compile needs a C++ compiler on a CPU; install one (apt install g++) or set CXX to it, or set "
            "train.compile: false."
        )


@contextlib.contextmanager
def compiled(module: nn.Module) -> Iterator[int]:
    """Every repeated layer below ``module`` runs compiled meanwhile; yields how many. None is an error."""
    chosen = layers(module, frozen=True)
    if not chosen:
        raise UserError("train.compile: no tower has repeated layers; set it to false.")
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=LIMIT), contextlib.ExitStack() as stack:
        for layer in chosen:
            stack.enter_context(with_forward(layer, torch.compile(layer.forward, dynamic=True, backend=BACKEND)))
        yield len(chosen)
