"""Multi-vector folders of PyLate and sentence-transformers: ``modules.json`` names a Transformer and its projection.

A list [Transformer, Dense, ...] of PyLate, or [Transformer, Dense, ..., MultiVectorMask, Normalize] of
sentence-transformers 6. A list with a Pooling is a single-vector model: a plain encoder to us.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.errors import UserError
from core.files import read_json
from models.towers.folders import read_weights

KINDS = ("Transformer", "Dense", "MultiVectorMask", "Normalize")


@dataclass(frozen=True)
class Module:
    """One entry of modules.json: the last part of its class name, and its folder."""

    kind: str
    folder: Path


def modules_of(folder: Path) -> list[Module] | None:
    """The modules of a multi-vector folder; None for any other folder."""
    if not (folder / "modules.json").is_file():
        return None
    raw = read_json(folder / "modules.json", "module list")
    try:
        found = [Module(m["type"].rsplit(".", 1)[-1], folder / m["path"]) for m in raw]
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"'{folder / 'modules.json'}' is not a list of modules with type and path; download the folder again."
        ) from None
    kinds = [m.kind for m in found]
    if "Pooling" in kinds:
        return None
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or kinds[:1] != ["Transformer"] or kinds.count("Transformer") != 1:
        raise UserError(
            f"'{folder / 'modules.json'}' lists {kinds}; supported is a Transformer, then Dense layers, then at most a "
            "MultiVectorMask and a Normalize."
        )
    return found


def trunk_folder(folder: Path) -> Path:
    """Where a text tower's folder keeps the encoder's config, weights and tokenizer."""
    modules = modules_of(folder)
    if modules is None and not (folder / "config.json").is_file() and (folder / "modules.json").is_file():
        return folder / read_json(folder / "modules.json")[0]["path"]  # a single-vector model of the old layout
    return modules[0].folder if modules else folder


def projection(modules: list[Module]) -> Tensor | None:
    """The Dense layers as one matrix [dim, h]; None when there are none.

    Without bias and activation a chain of layers, residual or not, is the product of its matrices.
    """
    total = None
    for module in modules:
        if module.kind == "Dense":
            weight = _matrix(module.folder)
            total = weight if total is None else weight @ total
    return None if total is None else total.float()


def _matrix(folder: Path) -> Tensor:
    config, tensors = read_json(folder / "config.json", "Dense config"), read_weights(folder)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in ("Identity", "None") or "linear.bias" in tensors:
        what = f"the activation {activation}" if activation not in ("Identity", "None") else "a bias"
        raise UserError(
            f"the Dense layer '{folder}' has {what}; late interaction here projects by a matrix alone, use a model "
            "without bias and with the activation Identity."
        )
    if "linear.weight" not in tensors:
        raise UserError(f"the Dense layer '{folder}' holds no linear.weight; download the folder again.")
    weight = tensors["linear.weight"].double()
    if config.get("use_residual"):
        square = weight.shape[0] == weight.shape[1]
        weight = weight + (torch.eye(len(weight)).double() if square else tensors["residual.weight"].double())
    return weight
