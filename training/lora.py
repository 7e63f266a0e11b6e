"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) in place of training a whole tower, through ``peft``.

A tower's weights stand still; beside each of its matrices W learns a product B A of rank r. Gradients, optimizer state
and what processes exchange shrink to a few percent. A checkpoint holds W + (alpha / r) B A under the tower's own names,
so evaluation, indexing and export know nothing of adapters; the adapters alone lie beside it in ``lora/``, as peft
reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config import Strict
from core.errors import UserError

NAME = "default"


class Lora(Strict):
    """``train.lora``. towers: prefixes of parameter names, such as text.trunk; all else trains as ``model.frozen``
    says. targets: last names of the linear layers that get an adapter, such as [query, value]; null: every one."""

    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | None = None
    towers: list[str] = Field(["text.trunk"], min_length=1)


@contextlib.contextmanager
def adapted(retriever: nn.Module, config: Lora | None, seed: int) -> Iterator[None]:
    """Adapters are in the retriever meanwhile, zero at first; then they are merged into its weights.

    seed: of their start, the same on every process.
    """
    if config is None:
        yield
        return
    learned = {name: p.requires_grad for name, p in retriever.named_parameters()}
    with torch.random.fork_rng(devices=[]):  # adapters are drawn on the CPU
        torch.manual_seed(seed)
        _adapt(retriever, config, learned)
    try:
        yield
    finally:
        with merged(retriever) as layers:
            pass
        for name, layer in layers.items():
            _set(retriever, name, layer)
        for name, parameter in retriever.named_parameters():
            parameter.requires_grad_(learned[name])
        del retriever.peft_config


def _adapt(retriever: nn.Module, config: Lora, learned: dict[str, bool]) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("train.lora needs peft; pip install -r requirements-lora.txt") from None
    names = [name for tower in config.towers for name in _targets(retriever, tower, config.targets, learned)]
    made = LoraConfig(r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=names)
    inject_adapter_in_model(made, retriever, NAME)
    for name, parameter in retriever.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(True)
        else:  # peft has stopped everything; outside the towers what learned learns on
            plain = name.replace(".base_layer.", ".")
            parameter.requires_grad_(learned[plain] and not plain.startswith(tuple(f"{t}." for t in config.towers)))


def _targets(retriever: nn.Module, tower: str, targets: list[str] | None, learned: dict[str, bool]) -> list[str]:
    inside = {n: m for n, m in retriever.named_modules() if n.startswith(f"{tower}.") and isinstance(m, nn.Linear)}
    if not inside:
        tops = sorted({n for n, m in retriever.named_modules() if 0 < n.count(".") + 1 < 3 and any(m.children())})
        raise UserError(
            f"train.lora.towers names '{tower}', which has no linear layers here; parts are {', '.join(tops)}."
        )
    if not any(learns for n, learns in learned.items() if n.startswith(f"{tower}.")):
        raise UserError(
            f"train.lora.towers names '{tower}', which is frozen, so no gradient reaches its adapters; take it out of "
            "model.frozen (its own weights stand still all the same)."
        )
    last = {n.rsplit(".", 1)[-1] for n in inside}
    if targets is not None and not last & set(targets):
        raise UserError(
            f"train.lora.targets {targets} names no linear layer of '{tower}'; there are {', '.join(sorted(last))}."
        )
    # A pooler on top is read by nothing.
    return [n for n in inside if (targets is None or n.rsplit(".", 1)[-1] in targets) and ".pooler." not in n]


@contextlib.contextmanager
def merged(retriever: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """The retriever with plain layers that compute the same, under their own names, meanwhile. Yields these."""
    found = {n: m for n, m in retriever.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}
    plain = {name: _plain(layer) for name, layer in found.items()}
    try:
        for name, layer in plain.items():
            _set(retriever, name, layer)
        yield plain
    finally:
        for name, layer in found.items():
            _set(retriever, name, layer)


def _plain(layer: Any) -> nn.Linear:
    base = layer.base_layer
    made = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    with torch.no_grad():
        made.weight = nn.Parameter(base.weight + layer.get_delta_weight(NAME))
    made.bias = base.bias
    return made.train(layer.training)


def digest(retriever: nn.Module) -> str:
    """16 hex digits over what does not learn: adapters mean something only beside these weights."""
    made = hashlib.sha256()
    for name, parameter in retriever.named_parameters():
        if not parameter.requires_grad:
            made.update(name.encode() + parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return made.hexdigest()[:16]


def files(retriever: nn.Module) -> Callable[[Path], None]:
    """A function that writes the adapters as they are now into a folder, as peft reads them."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(retriever, adapter_name=NAME)
    plain = {f"base_model.model.{k}": v.detach().cpu().contiguous() for k, v in tensors.items()}
    config = retriever.peft_config[NAME]  # type: ignore[union-attr,index]

    def write(folder: Path) -> None:
        from safetensors.torch import save_file

        (folder / "lora").mkdir()
        config.save_pretrained(str(folder / "lora"))
        save_file(plain, folder / "lora" / "adapter_model.safetensors", metadata={"format": "pt"})

    return write


def _set(retriever: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(retriever.get_submodule(parent), own, layer)
