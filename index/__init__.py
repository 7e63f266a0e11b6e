"""Where document vectors live and are searched. Knows ids and vectors only, never a model."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

from core.errors import UserError
from core.files import read_json, restore_folder
from core.protocols import Index
from index.shards import Group

AUTO_EXACT_BELOW = 1000
"""Documents below which ``auto`` takes the exact index: scoring everything then takes a few milliseconds at most, and
makes no error. (PLAID becomes faster between 300 and 1,000 documents.)"""


def choose(documents: int) -> tuple[str, str]:
    """What ``auto`` takes for so many documents, and why."""
    name = "exact" if documents < AUTO_EXACT_BELOW else "plaid"
    return name, f"auto: {documents} documents, exact below {AUTO_EXACT_BELOW}"


def open_index(path: str | Path, encoder: dict | None = None, device: str = "cpu", group: Group | None = None) -> Index:
    """Open a complete index of any format: the manifest names the module of this room that wrote it.

    group: processes that divide the documents among them (see ``index.shards``); other formats than PLAID are searched
    as a whole by each of them.

    An index that colbert-ai built is told by its files and opens as it lies (see ``index.colbert_ai``).
    """
    path = Path(path)
    manifest = path / "manifest.json"
    if not path.is_dir():  # a rebuild may be putting its folder here this moment; a killed one left the old one aside
        time.sleep(0.1)
        restore_folder(path)
    facts = read_json(manifest, "index manifest") if manifest.is_file() else {"format": "exact"}
    name, built_by = (facts.get("format"), facts.get("encoder")) if isinstance(facts, dict) else ("exact", None)
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
    if (
        encoder is not None and isinstance(built_by, dict) and built_by.get("written_by") == "colbert-ai"
    ):  # see ``index.convert``
        from index.colbert_ai import cannot_compare

        cannot_compare(path, built_by.get("checkpoint"))
        encoder = None
    # Without a manifest the exact index says what is wrong: the folder is absent, or its build did not end.
    cls = getattr(importlib.import_module(f"index.{name}"), "Index", None)
    if cls is None:
        raise UserError(
            f"'{path}' holds an index of format {name!r}, which this version does not know; build it again."
        )
    if group is None or name != "plaid":
        return cls.open(path, encoder=encoder, device=device)
    return cls.open(path, encoder=encoder, device=device, group=group)
