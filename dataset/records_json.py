"""Reading record files: ViD2R-style JSON lists and passage files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_json
from core.records import Document
from dataset.lines import LineCorpus, unreadable

TEXTS = ("question", "document", "text", "image")
"""Fields that must be strings where they stand."""


def read_records(path: str | Path, needed: Sequence[str], id_field: str = "id") -> list[dict[str, Any]]:
    """A JSON list of objects that all have the ``needed`` fields; what is in ``id_field`` becomes a string."""
    try:
        rows = read_json(path, "data file")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(unreadable("data file", path, error)) from None
    if not isinstance(rows, list):
        raise UserError(f"data file '{path}' holds a {type(rows).__name__}; write a JSON list of records.")
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"record {position} of '{path}' is {row!r:.40}; write an object with {', '.join(needed)}.")
        where = f"record {position} of '{path}' ({id_field} {row.get(id_field)!r})"
        missing = [f for f in needed if f not in row]
        if missing:
            raise UserError(f"{where} has no {missing}; add the field.")
        for field in TEXTS:
            if not isinstance(row.get(field, ""), str) and (field != "image" or row[field] is not None):
                raise UserError(f"{where} has the {field} {row[field]!r:.40}; write a string.")
        if id_field in row:
            if row[id_field] is None:
                raise UserError(f"{where} has no {id_field}; give every record one.")
            row[id_field] = str(row[id_field])
    return rows


def read_passages(path: str | Path) -> list[Document]:
    """A passages file (see ``dataset.lines``) that is small enough to be held."""
    return list(LineCorpus(path))


def limited(passages: Sequence[Document], needed: Collection[str], limit: int) -> list[Document]:
    """The passages whose ids are ``needed`` and the first ``limit`` others, in their order."""
    others = islice((d.id for d in passages if d.id not in needed), limit)
    keep = {*needed, *others}
    return [d for d in passages if d.id in keep]


def is_json_list(path: str | Path) -> bool:
    """Whether a file begins as a JSON list, judged by content: passages files are JSON lines or CSV."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read(4096).lstrip("\ufeff \t\r\n").startswith("[")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(unreadable("passages file", path, error)) from None
