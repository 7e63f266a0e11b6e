"""Files of other systems that carry pickled objects, read without running any of their code.

torch's weights-only unpickler builds tensors and plain containers. Every other class a file names is replaced by an
inert stub that only remembers what it was given; nothing of the named module is imported or called. Modules that
torch blocks by itself (``os``, ``sys``, ...) are refused with a sentence.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError


class Stub:
    """Stands for an object of an unknown class: its arguments, its state and its items, none of them interpreted."""

    name = ""

    def __init__(self, *args: Any) -> None:
        self.args, self.state, self.items = args, None, {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stub) and (self.name, self.args, self.state) == (other.name, other.args, other.state)


def load(path: str | Path) -> Any:
    """Tensors and containers of a ``torch.save`` file (zip format); unknown classes are ``Stub`` objects, on CPU."""
    if not Path(path).is_file():
        raise UserError(f"the checkpoint '{path}' does not exist; check the path.")
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stubs = [(type("Stub", (Stub,), {"name": name}), name) for name in unknown]
        with torch.serialization.safe_globals(stubs):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "blocked" in line), "")
        raise UserError(
            f"the checkpoint '{path}' is refused: it holds something other than weights and settings "
            f"({reason.strip() or str(error).splitlines()[0]}); get it from a source you trust."
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"the checkpoint '{path}' cannot be read ({str(error).splitlines()[0]}); it is truncated or not a "
            "torch.save file of torch 1.6 or later."
        ) from None


def omegaconf_to_plain(node: Any) -> Any:
    """Containers and values of a stubbed OmegaConf config, ``${...}`` strings unresolved."""
    if isinstance(node, Stub):
        state = node.state if isinstance(node.state, dict) else {}
        if "_content" in state:
            return omegaconf_to_plain(state["_content"])
        if "_val" in state:
            return omegaconf_to_plain(state["_val"])
        return {k: omegaconf_to_plain(v) for k, v in state.items()} or [omegaconf_to_plain(a) for a in node.args]
    if isinstance(node, dict):
        return {omegaconf_to_plain(k): omegaconf_to_plain(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [omegaconf_to_plain(v) for v in node]
    return node


def resolve_config(node: Any) -> dict:
    """A stubbed DictConfig as plain containers with its interpolations resolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.create(omegaconf_to_plain(node)), resolve=True)
