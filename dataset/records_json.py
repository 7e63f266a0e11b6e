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
    """A passages file; ids must be unique.

    JSON lines with ``id`` and ``text`` (optionally ``title``), or a ``.csv`` with the columns ``kid`` (or ``id``) and
    ``text``, as the OKVQA-GS and ReMuQ corpora come.
    """
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            rows = _csv_rows(handle) if str(path).endswith(".csv") else _json_rows(handle)
            documents = []
            while True:
                try:
                    row = next(rows)
                    meta = {k: v for k, v in row.items() if k not in ("id", "kid", "text", "title")}
                    id_ = row["id"] if "id" in row else row["kid"]
                    documents.append(Document(str(id_), row["text"], title=row.get("title", ""), meta=meta))
                except StopIteration:
                    break
                except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(
                        f"passage {len(documents) + 1} of '{path}' is wrong ({type(error).__name__}: {error}); "
                        'write {"id": ..., "text": ...} on its line.'
                    ) from None
    except FileNotFoundError:
        raise UserError(f"passages file '{path}' does not exist; check the path.") from None
    return list(unique(documents))


def _json_rows(handle) -> Iterator[dict]:
    for line in handle:
        if line.strip():
            yield json.loads(line)


def _csv_rows(handle) -> Iterator[dict]:
    yield from csv.DictReader(handle)
