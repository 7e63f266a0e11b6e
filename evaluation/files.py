"""Rankings and judgements on disk: TREC run and qrels files, one JSON line per query, and examples to look at.

An evaluation leaves in ``runs`` beside its report.json, for every split and kind of the report, files that begin with
``stem(split, kind)``:

    .trec           the rankings, all eval.k of them
    .qrels          what is relevant, by ids
    .jsonl          one line per query, see ``write_per_query``:
        {"query_id": "q1", "question": "what is this bird called",
         "Success@5": 1.0, "MRR@10": 0.5, ...               every metric; only their names contain an @
         "gold": ["d7"],                                    relevant ids, best grade first, the first 10
         "top": [["d3", 21.5], ["d7", 20.1], ...],          the first 10, best first
         "passage": "the beginning of the first passage",   300 characters
         "meta": {"field": "capital"}}                      what the data set says of the query: texts, numbers, truths
    .examples.json  a sample of the queries with pictures and texts, see ``write_examples``:
        {"split": "test", "kind": "image+question", "queries": 5000, "seed": 0, "examples": [
          {"query_id": ..., "question": ..., "instruction": ..., "answers": [text, ...], "meta": {...},
           "images": [{"id": ..., "path": file or null, "thumbnail": "data:image/jpeg;base64,..." or null}, ...],
           "metrics": {"Success@5": 1.0, ...},
           "gold": [{"id": ..., "title": ..., "text": ..., "rank": 2 or null when not found, "images": [...]}, ...],
           "top": [{"id": ..., "title": ..., "text": ..., "score": 21.5, "relevant": true, false or null (no qrels),
                    "holds_answer": true, false or null (no answers), "images": [...]}, ...]}, ...]}
        texts: their first 1000 characters. relevant: by the qrels. holds_answer: as whole words (``core.answers``).

Lines and examples may lack "question", "gold", "passage" and "meta" (written by something else); readers take them as
empty. TREC formats separate fields by blanks, so ids that contain white space are errors, never rewritten.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import atomic_file, read_object, write_json
from core.protocols import Ranking
from evaluation.metrics import Scores


def write_run(path: str | Path, rankings: Mapping[str, Ranking], tag: str = "run") -> None:
    """Lines ``query-id Q0 document-id rank score tag``, rank from 1, scores in full precision.

    The format cannot say "no answer": a query with an empty ranking has no line, and counts as 0 when judged again.
    Tools that sort a run by score break ties their own way; ``read_run`` goes by the rank.
    """
    _field(tag, "tag", path)
    for doc in {doc for ranking in rankings.values() for doc in ranking.ids}:
        _field(doc, "document id", path)
    with atomic_file(path, "w") as handle:
        for qid, ranking in rankings.items():
            _field(qid, "query id", path)
            rows = enumerate(zip(ranking.ids, ranking.scores, strict=True), 1)
            handle.writelines(
                f"{qid} Q0 {doc} {rank} {_finite(score, qid, doc)!r} {tag}\n" for rank, (doc, score) in rows
            )


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


@dataclass(frozen=True)
class PerQuery:
    """A per-query file: scores (metric -> {query id: value}), the first of the rankings, and what was asked."""

    scores: Scores
    rankings: dict[str, Ranking]
    facts: dict[str, dict[str, Any]]
    """query id -> {"question", "gold", "passage", "meta"} as far as the line has them"""


def stem(split: str, kind: str) -> str:
    """The common beginning of the file names: ``test.image+question_no_image``."""
    return f"{split}.{kind.replace(' ', '_').replace(',', '')}"


def write_per_query(
    path: str | Path,
    scores: Scores,
    rankings: Mapping[str, Ranking],
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    top: int = 10,
) -> None:
    """One JSON line per judged query: query_id, every metric, ``facts`` of the query, and ``top``."""
    judged = dict.fromkeys(qid for values in scores.values() for qid in values)
    facts = facts or {}
    with atomic_file(path, "w") as handle:
        for qid in judged:
            row: dict = {"query_id": qid} | {k: v for k, v in facts.get(qid, {}).items() if k == "question"}
            row |= {name: values[qid] for name, values in scores.items() if qid in values}
            row |= {k: v for k, v in facts.get(qid, {}).items() if k != "question"}
            ranking = rankings.get(qid, Ranking((), ()))
            row["top"] = [[doc, _finite(s, qid, doc)] for doc, s in zip(ranking.ids[:top], ranking.scores)]
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_per_query(path: str | Path) -> PerQuery:
    """What ``write_per_query`` wrote; two files' scores go into ``evaluation.compare``."""
    found = PerQuery({}, {}, {})
    for number, line in enumerate(_text(path), 1):
        try:
            row = json.loads(line)
            qid, top = _id(row.pop("query_id")), row.pop("top")
            if qid in found.rankings or not all(isinstance(row.get(f, ""), str) for f in ("question", "passage")):
                raise ValueError("a second line, or no text")
            found.rankings[qid] = Ranking(tuple(_id(doc) for doc, _ in top), tuple(float(score) for _, score in top))
            found.facts[qid] = {name: value for name, value in row.items() if "@" not in name}
            for name, value in row.items():
                if "@" in name:
                    found.scores.setdefault(name, {})[qid] = float(value)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}:{number}: no line of a per-query file, or a query's second; write it again."
            ) from None
    return found


def _id(value: Any) -> str:
    """Ids may be written as numbers."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError("an id is a text or a whole number")
    return str(value)


def write_examples(path: str | Path, split: str, kind: str, queries: int, seed: int, examples: list[dict]) -> None:
    """The sample of ``queries`` queries that is there to be looked at; atomic."""
    write_json(path, {"split": split, "kind": kind, "queries": queries, "seed": seed, "examples": examples})


def read_examples(path: str | Path) -> dict[str, Any]:
    """What ``write_examples`` wrote; another structure is a UserError."""
    found = read_object(path, "examples")
    listed = found.get("examples")
    if not isinstance(listed, list) or not all(
        isinstance(e, dict) and isinstance(e.get("query_id"), str) for e in listed
    ):
        raise UserError(f"'{path}' holds no list of examples; evaluate again.")
    return found


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
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"file '{path}' does not exist; check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"file '{path}' is not UTF-8 (byte {error.start}); check that it is the right one.") from None
    return lines[:-1] if lines[-1] == "" else lines


def _lines(path: str | Path, width: int, form: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(_text(path), 1):
        fields = line.split()
        if fields and len(fields) != width:
            raise UserError(f"{path}:{number}: {len(fields)} fields instead of {width}; a line is '{form}'.")
        if fields:
            yield f"{path}:{number}", fields
