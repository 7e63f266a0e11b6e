"""The optimizer: AdamW, the learning rate of each step and the parameter groups it is for."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from core.errors import UserError
from training.config import Config


def lr_factor(step: int, total: int, warmup: int = 0, schedule: str = "constant") -> float:
    """Factor on the peak rate for step 0 .. total - 1.

    Rises linearly over ``warmup`` steps, 1 / warmup in step 0 (a step at rate 0 would be wasted), 1 in step
    ``warmup - 1``; then constant, or down to 0 (reached after the last step) as half a cosine or a line. A function
    of the step alone, so a checkpoint needs no scheduler state.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def trainable(*modules: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of everything with requires_grad, each parameter once."""
    seen: dict[int, tuple[str, nn.Parameter]] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                seen.setdefault(id(parameter), (name, parameter))
    return list(seen.values())


def param_groups(named: Iterable[tuple[str, nn.Parameter]], config: Config) -> list[dict]:
    """AdamW groups, one per (factor of lr_scale, decays or not), in order of appearance.

    Each carries "scale" (factor on the scheduled rate) and "names". A prefix that fits no name is an error.
    """
    named = list(named)
    for prefix in config.lr_scale:
        if not any(name.startswith(prefix) for name, _ in named):
            raise UserError(
                f"train.lr_scale names '{prefix}', but no trainable parameter begins so; "
                f"they begin with {', '.join(sorted({n.split('.')[0] for n, _ in named}))}."
            )
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in named:
        fitting = [prefix for prefix in config.lr_scale if name.startswith(prefix)]
        scale = config.lr_scale[max(fitting, key=len)] if fitting else 1.0
        decays = parameter.ndim >= 2
        group = groups.setdefault(
            (scale, decays),
            {"params": [], "names": [], "scale": scale, "weight_decay": config.weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def optimizer(groups: list[dict], lr: float, device: torch.device) -> torch.optim.AdamW:
    """AdamW as one kernel over all parameters where torch has that ("fused": CPU, CUDA, MPS), else one by one."""
    return torch.optim.AdamW(groups, lr=lr, fused=True if device.type in ("cpu", "cuda", "mps") else None)
