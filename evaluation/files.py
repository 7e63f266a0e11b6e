"""Rankings and judgements on disk: TREC run and qrels files, and one JSON line per query.

TREC formats separate fields by blanks, so ids that contain white space are errors, never rewritten.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from core.errors import UserError
from core.files import atomic_file
from core.protocols import Ranking
from evaluation.metrics import Scores


def write_run(path: str | Path, rankings: Mapping[str, Ranking], tag: str = "run") -> None:
    """Lines ``query-id Q0 document-id rank score tag``, rank from 1, scores in full precision.

    The format cannot say "no answer": a query with an empty ranking has no line, and counts as 0 when judged again.
    Tools that sort a run by score break ties their own way; ``read_run`` goes by the rank.
    """
    _field(tag, "tag", path)
    with atomic_file(path, "w") as handle:
        for qid, ranking in rankings.items():
            _field(qid, "query id", path)
            for rank, (doc, score) in enumerate(zip(ranking.ids, ranking.scores, strict=True), 1):
                _field(doc, "document id", path)
                handle.write(f"{qid} Q0 {doc} {rank} {_finite(score, qid, doc)!r} {tag}\n")


def read_run(path: str | Path) -> dict[str, Ranking]:
    """Query id -> Ranking, by rank. A score that rises with the rank, or a document twice, is a UserError."""
    rows: dict[str, dict[str, tuple[int, float]]] = {}
    for where, fields in _lines(path, 6, "query-id Q0 document-id rank score tag"):
        qid, _, doc, rank, score, _ = fields
        mine = rows.setdefault(qid, {})
        if doc in mine:
            raise UserError(f"{where}: document '{doc}' stands twice for query '{qid}'; keep one line.")
        value = _finite(_number(float, score, "score", where), qid, doc)
        mine[doc] = (_number(int, rank, "rank", where), value)
    out = {}
    for qid, mine in rows.items():
        order = sorted(mine, key=lambda doc: mine[doc][0])
        scores = tuple(mine[doc][1] for doc in order)
        if any(a < b for a, b in itertools.pairwise(scores)):
            raise UserError(f"run file '{path}': ranks and scores of query '{qid}' disagree; number them best first.")
        out[qid] = Ranking(tuple(order), scores)
    return out


def write_qrels(path: str | Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Lines ``query-id 0 document-id grade``. A query without any judged document cannot be written: UserError."""
    with atomic_file(path, "w") as handle:
        for qid, grades in qrels.items():
            _field(qid, "query id", path)
            if not grades:
                raise UserError(
                    f"query '{qid}' has no judged document, which a qrels file cannot say; "
                    "drop the query or give one document the grade 0."
                )
            for doc, grade in grades.items():
                _field(doc, "document id", path)
                handle.write(f"{qid} 0 {doc} {int(grade)}\n")


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Query id -> {document id: grade}. Two grades for one document are a UserError."""
    qrels: dict[str, dict[str, int]] = {}
    for where, (qid, _, doc, grade) in _lines(path, 4, "query-id 0 document-id grade"):
        value = _number(int, grade, "grade", where)
        if qrels.setdefault(qid, {}).setdefault(doc, value) != value:
            raise UserError(f"{where}: document '{doc}' has two grades for query '{qid}'; keep one.")
    return qrels


def write_per_query(path: str | Path, scores: Scores, rankings: Mapping[str, Ranking], top: int = 10) -> None:
    """One JSON line per judged query: query_id, every metric, and ``top``: [[document id, score], ...] best first."""
    judged = dict.fromkeys(qid for values in scores.values() for qid in values)
    with atomic_file(path, "w") as handle:
        for qid in judged:
            row: dict = {"query_id": qid} | {name: values[qid] for name, values in scores.items() if qid in values}
            ranking = rankings.get(qid, Ranking((), ()))
            row["top"] = [[doc, _finite(s, qid, doc)] for doc, s in zip(ranking.ids[:top], ranking.scores)]
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_per_query(path: str | Path) -> tuple[Scores, dict[str, Ranking]]:
    """The scores and the written top of the rankings; two files' scores go into ``bootstrap.compare``."""
    scores: Scores = {}
    rankings: dict[str, Ranking] = {}
    for number, line in enumerate(_text(path), 1):
        try:
            row = json.loads(line)
            qid, top = row.pop("query_id"), row.pop("top")
            if qid in rankings:
                raise ValueError("a second line")
            rankings[qid] = Ranking(tuple(doc for doc, _ in top), tuple(float(score) for _, score in top))
            for name, value in row.items():
                scores.setdefault(name, {})[qid] = float(value)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}:{number}: no line of a per-query file, or a query's second; write it again."
            ) from None
    return scores, rankings


def _field(value: str, what: str, path: str | Path) -> None:
    if value.split() != [value]:
        raise UserError(
            f"{what} {value!r} is empty or contains white space, which separates the fields of '{path}'; rename it."
        )


def _finite(score: float, qid: str, doc: str) -> float:
    if not math.isfinite(score):
        raise UserError(f"document '{doc}' has the score {score} for query '{qid}'; check the encoder and the index.")
    return float(score)


def _number(kind: type, text: str, what: str, where: str):
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{where}: {what} '{text}' is not a number; correct the line.") from None


def _text(path: str | Path) -> list[str]:
    try:
        # Not splitlines(): it also cuts at characters that JSON strings may hold unescaped, such as U+2028.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"file '{path}' does not exist; check the path.") from None
    return lines[:-1] if lines[-1] == "" else lines


def _lines(path: str | Path, width: int, form: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(_text(path), 1):
        fields = line.split()
        if fields and len(fields) != width:
            raise UserError(f"{path}:{number}: {len(fields)} fields instead of {width}; a line is '{form}'.")
        if fields:
            yield f"{path}:{number}", fields
