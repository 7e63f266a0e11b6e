"""Records of retrieved contexts, as OK-VQA with Google Search and ReMuQ are released: a JSON list of {question_id,
img_id, question, ctxs: [{id, text}], answers: {answer: weight}}, with ``caption`` and ``negs`` in some files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from core.errors import UserError
from core.records import Document, ImageRef, Query
from dataset.pairs import Pair, hard, texts_of
from dataset.records_json import read_records

NEEDED = ("question_id", "img_id", "question", "ctxs", "answers")


def read(path: str, image: Callable[[str], ImageRef], gold: int | None = None) -> Iterator[Pair]:
    """image: of an ``img_id``. gold: how many of the first contexts answer the question; null: all.

    The caption is taken out of the question, which these files hold with the caption behind it.
    """
    for row in read_records(path, NEEDED, "question_id"):
        where = f"question '{row['question_id']}' of '{path}'"
        answers = texts_of(row["answers"], where, "answers")
        question = row["question"]
        if isinstance(row.get("caption"), str):
            question = question.replace(row["caption"], "").strip()
        query = Query(row["question_id"], question, (image(str(row["img_id"])),), meta={"answers": answers})
        contexts = tuple(_context(c, where) for c in _list(row["ctxs"], where, "ctxs"))
        yield Pair(query, contexts[:gold], hard(query.id, texts_of(row.get("negs", []), where, "negs")))


def _list(found: Any, where: str, what: str) -> list:
    if not isinstance(found, list):
        raise UserError(f"{where} has the {what} {found!r:.60}; write a list.")
    return found


def _context(found: Any, where: str) -> Document:
    if not isinstance(found, dict) or found.get("id") is None or not isinstance(found.get("text"), str):
        raise UserError(f"{where} has the context {found!r:.60}; write an object with id and text.")
    return Document(str(found["id"]), found["text"].strip())
