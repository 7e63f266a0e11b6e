"""Reading record files: ViD2R-style JSON lists and passage files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_json
from core.records import Document, unique

TEXTS = ("question", "document", "text", "image")
"""Fields that must be strings where they stand."""


def read_records(path: str | Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """A JSON list of objects that all have the ``needed`` fields; ids become strings."""
    try:
        rows = read_json(path, "data file")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(unreadable("data file", path, error)) from None
    if not isinstance(rows, list):
        raise UserError(f"data file '{path}' holds a {type(rows).__name__}; write a JSON list of records.")
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"record {position} of '{path}' is {row!r:.40}; write an object with {', '.join(needed)}.")
        where = f"record {position} of '{path}' (id {row.get('id')!r})"
        missing = [f for f in needed if f not in row]
        if missing:
            raise UserError(f"{where} has no {missing}; add the field.")
        for field in TEXTS:
            if not isinstance(row.get(field, ""), str) and (field != "image" or row[field] is not None):
                raise UserError(f"{where} has the {field} {row[field]!r:.40}; write a string.")
        if "id" in row:
            if row["id"] is None:
                raise UserError(f"{where} has no id; give every record one.")
            row["id"] = str(row["id"])
    return rows


def read_passages(path: str | Path) -> list[Document]:
    """A passages file; ids must be unique.

    JSON lines with ``id`` and ``text`` (optionally ``title``), or a ``.csv`` with the columns ``kid`` (or ``id``) and
    ``text``, as the OKVQA-GS and ReMuQ corpora come.
    """
    documents: list[Document] = []
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            rows = csv.DictReader(handle) if str(path).endswith(".csv") else _json_rows(handle)
            for row in rows:
                documents.append(_passage(row))
    except FileNotFoundError:
        raise UserError(f"passages file '{path}' does not exist; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(unreadable("passages file", path, error)) from None
    except (json.JSONDecodeError, csv.Error, _WrongError) as error:
        raise UserError(
            f"passage {len(documents) + 1} of '{path}' is wrong ({error}); "
            'write {"id": ..., "text": ...} on its line, or the columns id and text.'
        ) from None
    return list(unique(documents))


def is_json_list(path: str | Path) -> bool:
    """Whether a file begins as a JSON list, judged by content: passages files are JSON lines or CSV."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read(4096).lstrip("\ufeff \t\r\n").startswith("[")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(unreadable("passages file", path, error)) from None


def unreadable(what: str, path: str | Path, error: Exception) -> str:
    """One sentence for a file that is absent, a folder, forbidden or not text."""
    if isinstance(error, FileNotFoundError):
        return f"{what} '{path}' does not exist; check the path."
    if isinstance(error, UnicodeDecodeError):
        return f"{what} '{path}' is not UTF-8 (byte {error.start}); save it as UTF-8."
    return f"{what} '{path}' cannot be read ({getattr(error, 'strerror', error)}); give a file."


class _WrongError(Exception):
    """What is wrong with one passage."""


def _passage(row: Any) -> Document:
    if not isinstance(row, dict):
        raise _WrongError(f"it is {row!r:.40}, not an object")
    id_ = row.get("id", row.get("kid"))
    if id_ is None:
        raise _WrongError("it has no id")
    for field in ("text", "title"):
        if not isinstance(row.get(field, "" if field == "title" else None), str):
            raise _WrongError(f"id {str(id_)!r} has the {field} {row.get(field)!r:.40}")
    meta = {k: v for k, v in row.items() if k not in ("id", "kid", "text", "title")}
    return Document(str(id_), row["text"], title=row.get("title", ""), meta=meta)


def _json_rows(handle) -> Iterator[Any]:
    for line in handle:
        if line.strip():
            yield json.loads(line)
