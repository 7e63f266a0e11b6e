"""Where document vectors live and are searched. Knows ids and vectors only, never a model."""

from __future__ import annotations

import importlib
from pathlib import Path

from core.errors import UserError
from core.files import read_json
from core.protocols import Index


def open_index(path: str | Path, encoder: dict | None = None, device: str = "cpu") -> Index:
    """Open a complete index of any format: the manifest names the module of this room that wrote it."""
    manifest = Path(path) / "manifest.json"
    name = read_json(manifest, "index manifest").get("format") if manifest.is_file() else "exact"
    if not (Path(__file__).parent / f"{name}.py").is_file():
        raise UserError(
            f"'{path}' holds an index of format {name!r}, which this version does not know; build it again."
        )
    # Without a manifest the exact index says what is wrong: the folder is absent, or its build did not end.
    return importlib.import_module(f"index.{name}").Index.open(path, encoder=encoder, device=device)
