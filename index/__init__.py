"""Where document vectors live and are searched. Knows ids and vectors only, never a model."""

from __future__ import annotations

import importlib
from pathlib import Path

from core.errors import UserError
from core.files import read_json
from core.protocols import Index

AUTO_EXACT_BELOW = 1000
"""Documents below which ``auto`` takes the exact index: scoring everything is then faster than choosing."""


def choose(documents: int) -> tuple[str, str]:
    """What ``auto`` takes for so many documents, and why."""
    name = "exact" if documents < AUTO_EXACT_BELOW else "plaid"
    return name, f"auto: {documents} documents, exact below {AUTO_EXACT_BELOW}"


def open_index(path: str | Path, encoder: dict | None = None, device: str = "cpu") -> Index:
    """Open a complete index of any format: the manifest names the module of this room that wrote it.

    An index that colbert-ai built is told by its files and opens as it lies (see ``index.colbert_ai``).
    """
    path = Path(path)
    manifest = path / "manifest.json"
    name = read_json(manifest, "index manifest").get("format") if manifest.is_file() else "exact"
    if not manifest.is_file() and path.is_dir() and not (path / "spec.json").is_file():
        from index.colbert_ai import ColbertAIIndex, is_colbert_ai

        if is_colbert_ai(path):
            return ColbertAIIndex.open(path, encoder=encoder, device=device)
        if any(path.iterdir()):  # an empty folder is a build that was killed at its very beginning
            raise UserError(
                f"'{path}' holds no index: it has neither our manifest.json nor colbert-ai's metadata.json and "
                "centroids.pt; give the folder of an index."
            )
    if not (Path(__file__).parent / f"{name}.py").is_file():
        raise UserError(
            f"'{path}' holds an index of format {name!r}, which this version does not know; build it again."
        )
    # Without a manifest the exact index says what is wrong: the folder is absent, or its build did not end.
    return importlib.import_module(f"index.{name}").Index.open(path, encoder=encoder, device=device)
