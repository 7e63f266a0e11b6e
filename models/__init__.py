"""Who encodes. ``models/<name>.py`` is one retriever family; ``model.name`` in a YAML is the module's name."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from core.errors import UserError
from core.files import read_json

HELPERS = {"towers", "keys", "fusion", "pooling", "artifacts", "originals"}
"""Modules of this room that are not retrievers."""


def names() -> list[str]:
    """Every retriever name that a YAML may give."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS)


def module(name: str) -> ModuleType:
    """``models/<name>.py``, which exposes ``Config`` and ``build``."""
    if name not in names():
        raise UserError(f"model.name is '{name}'; known retrievers are {', '.join(names())}.")
    return importlib.import_module(f"models.{name}")


def config_class(section: dict) -> type:
    """The pydantic class of a YAML's ``model`` section."""
    if "name" not in section:
        raise UserError(f"model.name: is missing; add one of {', '.join(names())}")
    return module(str(section["name"])).Config


def from_pretrained(path: str | Path, **overrides):
    """Load any checkpoint folder this project wrote, whatever its family."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"'{path}' is not a checkpoint folder (no config.json); give a folder that training or "
            "python -m runs.convert_checkpoint wrote."
        )
    raw = read_json(folder / "config.json", "checkpoint config")
    if "retriever" not in raw:
        raise UserError(
            f"'{path}' holds a foreign checkpoint; convert it first: python -m runs.convert_checkpoint {path} OUT."
        )
    return module(raw["retriever"]["name"]).Retriever.from_pretrained(folder, **overrides)
