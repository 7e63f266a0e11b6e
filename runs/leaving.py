"""What an evaluation leaves to read and look at (formats: ``evaluation.files``). Not a command of its own."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.answers import WORDS, Range
from core.errors import UserError
from core.protocols import Ranking
from core.records import Document, ImageRef, Query
from runs.judging import TOP, Judgement, answers_of, gold

SAMPLE, SEED = 40, 0
TEXT, BEGINNING = 1000, 300
PICTURES = 4  # of a query or passage; FLMR's has ten, most of them regions
EDGE = 224  # pixels of a thumbnail's longer side
NOTHING = Ranking((), ())


def sample(queries: Sequence[Query]) -> list[Query]:
    """Some of the queries, drawn at random, the same every time, in their order."""
    if len(queries) <= SAMPLE:
        return list(queries)
    return [queries[i] for i in sorted(random.Random(SEED).sample(range(len(queries)), SAMPLE))]


def leave(
    folder: Path,
    split: str,
    kind: str,
    queries: Sequence[Query],
    rankings: Mapping[str, Ranking],
    judgement: Judgement,
    tag: str,
) -> None:
    """Write the run, the qrels, the per-query file and the examples."""
    from evaluation.files import stem, write_examples, write_per_query, write_qrels, write_run

    base = folder / stem(split, kind)
    known = {qid: grades for qid, grades in judgement.qrels.items() if grades}
    ids = {id_ for r in rankings.values() for id_ in r.ids} | {id_ for grades in known.values() for id_ in grades}
    for suffix in (".trec", ".qrels"):  # of an earlier evaluation
        ending(base, suffix).unlink(missing_ok=True)
    if odd := next((id_ for id_ in (*rankings, *known, *ids) if id_.split() != [id_]), None):
        print(f"note: the id {odd!r} holds white space, which TREC files cannot say; '{base}.trec' is not written")
    else:
        write_run(ending(base, ".trec"), rankings, tag="_".join(tag.split()) or "run")
        if known:
            write_qrels(ending(base, ".qrels"), known)
    facts = {query.id: fact(query, rankings.get(query.id, NOTHING), judgement) for query in queries}
    write_per_query(ending(base, ".jsonl"), judgement.scores, rankings, facts, TOP)
    made = [example(query, rankings.get(query.id, NOTHING), judgement) for query in judgement.shown]
    write_examples(ending(base, ".examples.json"), split, kind, len(queries), SEED, made)


def ending(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)


def fact(query: Query, ranking: Ranking, judgement: Judgement) -> dict[str, Any]:
    """What a line of the per-query file says beside numbers."""
    first = text_of(judgement.passages[ranking.ids[0]], BEGINNING) if ranking.ids else ""
    relevant = gold(judgement.qrels, query.id)[:TOP]
    return {"question": query.text, "gold": relevant, "passage": first, "meta": meta(query)}


def meta(query: Query) -> dict[str, Any]:
    """The scalars among a query's meta, and its task."""
    found = {key: value for key, value in query.meta.items() if isinstance(value, (str, int, float, bool))}
    return found | ({"task": query.task} if query.task else {})


def example(query: Query, ranking: Ranking, judgement: Judgement) -> dict[str, Any]:
    """One query with everything that explains its numbers."""
    relevant, answers = gold(judgement.qrels, query.id), answers_of([query])[query.id]
    holds = WORDS.test(answers)
    places = {id_: rank for rank, id_ in enumerate(ranking.ids, 1)}
    passages = judgement.passages
    lacking = {"title": "", "text": "", "images": []}  # M2KR names answers that its own passages do not hold
    found = [shown(passages[id_]) if id_ in passages else {"id": id_, **lacking} for id_ in relevant[:TOP]]
    top = [
        {
            **shown(passages[id_]),
            "score": score,
            "relevant": id_ in relevant if judgement.qrels else None,
            "holds_answer": holds(WORDS.text(passages[id_].text)) if answers else None,
        }
        for id_, score in zip(ranking.ids[:TOP], ranking.scores)
    ]
    return {
        "query_id": query.id,
        "question": query.text,
        "instruction": query.instruction,
        "answers": [f"{a.low:g} to {a.high:g}" if isinstance(a, Range) else a for a in answers],
        "meta": meta(query),
        "images": [picture(ref) for ref in query.images[:PICTURES]],
        "metrics": {name: values[query.id] for name, values in judgement.scores.items() if query.id in values},
        "gold": [{**passage, "rank": places.get(passage["id"])} for passage in found],
        "top": top,
    }


def shown(document: Document) -> dict[str, Any]:
    images = [picture(ref) for ref in document.images[:PICTURES]]
    return {"id": document.id, "title": document.title, "text": text_of(document, TEXT), "images": images}


def text_of(document: Document, length: int) -> str:
    text = document.text
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def said(document: Document) -> str:
    """Its text, or where its picture is."""
    return document.text or next((ref.path or ref.id for ref in document.images), "")


def picture(ref: ImageRef) -> dict[str, Any]:
    """An image small enough to stand in a page; without a thumbnail when it is missing or broken."""
    from models.towers.images import decode

    path = ref.path or (ref.tsv[0] if ref.tsv else None)
    try:
        image = decode(ref, draft=EDGE)
    except (UserError, OSError):
        return {"id": ref.id, "path": path, "thumbnail": None}
    image.thumbnail((EDGE, EDGE))
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=80)
    encoded = base64.b64encode(out.getvalue()).decode()
    return {"id": ref.id, "path": path, "thumbnail": f"data:image/jpeg;base64,{encoded}"}


def pairs(queries: Sequence[Query], rankings: Mapping[str, Ranking], passages, top: int = 5) -> list[dict[str, Any]]:
    """What --save_pairs writes: the first passages of every query that has any."""
    passages.fetch(id_ for ranking in rankings.values() for id_ in ranking.ids[:top])
    return [
        {
            "question_id": query.id,
            "question": query.text,
            "passages": [said(passages[id_]) for id_ in rankings[query.id].ids[:top]],
            "pid": list(rankings[query.id].ids[:top]),
            "retrieval_score": list(rankings[query.id].scores[:top]),
        }
        for query in queries
        if rankings.get(query.id, NOTHING).ids
    ]
