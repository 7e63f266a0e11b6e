"""Reading record files: ViD2R-style JSON lists and passage files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_json
from core.records import Document, unique


def read_records(path: str | Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """A JSON list of objects that all have the ``needed`` fields; ids become strings."""
    rows = read_json(path, "data file")
    if not isinstance(rows, list):
        raise UserError(f"data file '{path}' holds a {type(rows).__name__}; write a JSON list of records.")
    for position, row in enumerate(rows):
        missing = [f for f in needed if f not in row]
        if missing:
            raise UserError(f"record {position} of '{path}' (id {row.get('id')!r}) has no {missing}; add the field.")
        row["id"] = str(row["id"])
    return rows


def read_passages(path: str | Path) -> list[Document]:
    """A passages file: one JSON object a line with ``id`` and ``text``, optionally ``title``; ids must be unique."""
    documents = []
    try:
        with open(path, encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    meta = {k: v for k, v in row.items() if k not in ("id", "text", "title")}
                    documents.append(Document(str(row["id"]), row["text"], title=row.get("title", ""), meta=meta))
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise UserError(
                        f"line {number} of '{path}' is not a passage ({type(error).__name__}: {error}); "
                        'write {"id": ..., "text": ...} on it.'
                    ) from None
    except FileNotFoundError:
        raise UserError(f"passages file '{path}' does not exist; check data.passages.") from None
    return list(unique(documents))
