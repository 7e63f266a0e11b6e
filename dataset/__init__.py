"""What is asked and what can answer. ``dataset/<name>.py`` is one data set; ``data.name`` in a YAML is its module."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from core.errors import UserError

HELPERS = {"records_json", "draw"}
"""Modules of this room that are not data sets."""


def names() -> list[str]:
    """Every data set name that a YAML may give."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS)


def module(name: str) -> ModuleType:
    """``dataset/<name>.py``, which exposes ``Config`` and ``build``."""
    if name not in names():
        raise UserError(f"data.name is '{name}'; known data sets are {', '.join(names())}.")
    return importlib.import_module(f"dataset.{name}")


def config_class(section: dict) -> type:
    """The pydantic class of a YAML's ``data`` section."""
    if "name" not in section:
        raise UserError(f"data.name: is missing; add one of {', '.join(names())}")
    return module(str(section["name"])).Config


def build(config):
    """The data set of a validated ``data`` section."""
    return module(config.name).build(config)
