"""Which index a run uses: names, --backend, options, and what auto takes. Not a command of its own."""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from core.config import Strict, check
from core.errors import UserError

BACKENDS = {"plaid": "plaid", "exact": "exact", "fast-plaid": "fast_plaid", "faiss": "faiss_flat", "auto": "auto"}
"""--backend -> index.name."""


def known_options(name: str) -> dict[str, tuple]:
    """The options of an index: name -> (type, default), the keyword-only parameters of its ``build``."""
    import inspect
    from typing import get_type_hints

    build = index_module(name).Index.build
    hints, ours = get_type_hints(build), {"dim", "encoder", "total", "device"}  # device is run.device
    return {
        p.name: (hints[p.name], p.default)
        for p in inspect.signature(build).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ours
    }


def build_options(name: str, options: dict[str, Any]) -> None:
    """Check ``index.options`` against what the index's ``build`` takes, types included."""
    known = known_options("plaid" if name == "auto" else name)
    unknown = [key for key in options if key not in known]
    if unknown:
        raise UserError(f"index.options.{unknown[0]}: unknown; the options of '{name}' are {', '.join(known)}.")
    check(create_model("Options", __base__=Strict, **known), options, "index.options")


def index_module(name: str):
    """``index/<name>.py``."""
    import importlib
    import pkgutil

    import index

    known = sorted(m.name for m in pkgutil.iter_modules(index.__path__))
    module = importlib.import_module(f"index.{name}") if name in known else None
    if module is None or not hasattr(module, "Index"):
        found = [n for n in known if _exposes_index(n)]
        raise UserError(f"index.name is '{name}'; known indexes are {', '.join(found)}, auto.")
    return module


def _exposes_index(name: str) -> bool:
    import importlib

    try:
        return hasattr(importlib.import_module(f"index.{name}"), "Index")
    except ImportError:  # compiled loops where nothing compiles them
        return False


def with_backend(section, name: str | None):
    """``section`` with another index (None: the same), without the options that are not that one's."""
    found = section.name if name is None else BACKENDS[name]
    if found == section.name:
        return section
    known = known_options("plaid" if found == "auto" else found)
    for key in sorted(section.options.keys() - known.keys()):
        print(f"note: index.options.{key} is an option of '{section.name}' and left out with --backend {name}")
    options = {key: value for key, value in section.options.items() if key in known}
    return type(section)(**{**section.model_dump(), "name": found, "options": options})


def resolved(section, documents: int):
    """(section, None), or for index.name auto the section of what it takes for so many documents, and why."""
    from index import choose

    if section.name != "auto":
        return section, None
    name, why = choose(documents)
    known = known_options(name)
    options = {key: value for key, value in section.options.items() if key in known}
    print(f"index: {name} ({why})")
    return section.model_copy(update={"name": name, "options": options}), why
