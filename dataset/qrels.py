"""Relevance judgements in a file: TREC's four columns, or two or three columns of a TSV."""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError
from dataset.lines import unreadable


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """query id -> {document id: relevance}, in the file's order; what has relevance 0 or less is not relevant.

    TREC: ``query 0 document relevance``. With tabs: ``query document relevance`` (BEIR, whose first line names the
    columns) or ``query document``. Repeated pairs must agree.
    """
    out: dict[str, dict[str, int]] = {}
    seen: dict[tuple[str, str], int] = {}
    try:
        with open(path, encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip() or (number == 1 and _names_columns(line)):
                    continue
                query, document, relevance = _parsed(line, number, path)
                if seen.setdefault((query, document), relevance) != relevance:
                    raise UserError(
                        f"line {number} of the qrels file '{path}' gives '{document}' the relevance {relevance} for "
                        f"query '{query}', an earlier one {seen[query, document]}; keep one of them."
                    )
                judged = out.setdefault(query, {})
                if relevance > 0:
                    judged[document] = relevance
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(unreadable("qrels file", path, error)) from None
    return out


def _names_columns(line: str) -> bool:
    return line.split("\t")[0].strip().lower() in ("query-id", "query_id", "qid")


def _parsed(line: str, number: int, path: str | Path) -> tuple[str, str, int]:
    fields = [f.strip() for f in line.split("\t")] if "\t" in line else line.split()
    if len(fields) == 4:
        query, _, document, relevance = fields
    elif len(fields) in (2, 3) and "\t" in line:
        query, document, relevance = [*fields, "1"][:3]
    else:
        query = document = relevance = ""
    try:
        if not query or not document or float(relevance) != int(float(relevance)):
            raise ValueError
        return query, document, int(float(relevance))
    except (ValueError, OverflowError):
        raise UserError(
            f"line {number} of the qrels file '{path}' is {line.strip()!r:.60}; write 'query 0 document relevance', or "
            "query, document and relevance with tabs between."
        ) from None
