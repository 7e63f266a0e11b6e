"""How ``runs.check_data`` looks at queries, relevant passages, passages and images. Not a command of its own."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from core.progress import progress
from core.records import Document, ImageRef, Query

IMAGES, PASSAGES, FIRST, EXAMPLES = 100, 1000, 2, 3
"""Images of each split and passages that are looked at; records shown; examples of each kind of problem."""


def look_at_split(data, split: str, opened, refs: dict[str, ImageRef], problems: list[str]) -> dict[str, Any]:
    """opened: the split's passages, and what answers ``id in``; None when they cannot be read."""
    queries = data.queries(split)
    if not len(queries):
        problems.append(f"{split}: there are no queries")
    out: dict[str, Any] = {"queries": len(queries), "empty": 0, "without_question": 0, "without_image": 0, "first": []}
    shown = set(random.Random(0).sample(range(len(queries)), min(IMAGES, len(queries))))
    names, wrong = array("q"), []
    for place, query in enumerate(progress(each(queries, wrong), f"queries of {split}", total=len(queries))):
        if query is None:
            continue
        names.append(hash(query.id))
        out["without_question"] += not query.text.strip()
        out["without_image"] += not query.images
        out["empty"] += not query.text.strip() and not query.images
        if place in shown:
            refs.update((ref.key, ref) for ref in query.images)
        if len(out["first"]) < FIRST:
            out["first"].append(told_query(query))
    if wrong:
        problems.append(f"{split}: {len(wrong)} queries cannot be read, such as: {'; '.join(wrong[:EXAMPLES])}")
    if names and out["empty"] == len(names):
        problems.append(f"{split}: no query has a text or an image; are the fields called as docs/DATA.md says?")
    out["repeated_ids"] = len(names) - len(np.unique(np.frombuffer(names, dtype=np.int64))) if names else 0
    out["passages"] = 0 if opened is None else len(opened[0])
    if getattr(data, "named", True) or split == data.train_split:
        out |= look_at_gold(data.qrels(split), opened, split, problems)
    return out


def each(queries: Sequence[Query], wrong: list[str]) -> Iterator[Query | None]:
    """Each query; None for one that cannot be read, whose reason goes into ``wrong``."""
    place = 0
    try:
        for query in queries:  # one after the other: that is fast, and ends with the first error
            yield query
            place += 1
    except UserError:
        for later in range(place, len(queries)):
            try:
                yield queries[later]
            except UserError as error:
                wrong.append(str(error))
                yield None


def look_at_gold(qrels, opened, split: str, problems: list[str]) -> dict[str, int]:
    """Whether the relevant passages are among the passages."""
    judged = [(id_, gold) for id_, gold in qrels.items() if gold]
    out = {"without_gold": len(qrels) - len(judged)}
    if qrels and not judged:
        problems.append(f"{split}: no query names a relevant passage")
    if opened is not None:
        corpus, known = opened
        ids = {id_ for _, gold in judged for id_ in gold}
        here = {id_ for id_ in progress(ids, f"relevant passages of {split}") if id_ in known}
        lost = [(id_, next(iter(gold))) for id_, gold in judged if not here & gold.keys()]
        out["gold_missing"] = len(lost)
        if lost and len(lost) == len(judged):
            problems.append(
                f"{split}: the relevant passages of all {len(lost)} queries are missing from the {len(corpus)} "
                f"passages, for one '{lost[0][1]}' of query '{lost[0][0]}'; do these passages belong to these queries?"
            )
    return out


def look_at_passages(corpus: Sequence[Document], refs: dict[str, ImageRef], problems: list[str]) -> dict[str, Any]:
    """Some of the passages, from the first to the last."""
    if not len(corpus):
        problems.append("passages: there are none")
    places = sorted({round(i) for i in np.linspace(0, len(corpus) - 1, min(PASSAGES, len(corpus)))})
    out: dict[str, Any] = {"looked_at": len(places), "empty": 0, "first": []}
    wrong, pictured = [], 0
    for place in places:
        try:
            document = corpus[place]
        except UserError as error:
            wrong.append(str(error))
            continue
        out["empty"] += not document.text.strip() and not document.images
        if document.images and pictured < IMAGES:
            pictured += 1
            refs.update((ref.key, ref) for ref in document.images)
        if len(out["first"]) < FIRST:
            shown = f" [{', '.join(ref.id for ref in document.images)}]" if document.images else ""
            out["first"].append(f"{document.id}: {short(document.text)}{shown}")
    if wrong:
        problems.append(f"passages: {len(wrong)} of {len(places)} cannot be read, such as: {wrong[0]}")
    if 0 < out["empty"] == len(places) - len(wrong):
        problems.append("passages: none has a text or an image; are the fields called as docs/DATA.md says?")
    return out


def look_at_images(refs: Sequence[ImageRef], problems: list[str]) -> dict[str, Any]:
    """Decodes them, JPEGs at a fraction of their size."""
    from core.workers import ahead, default_workers
    from models.towers.images import decode

    def reason(ref: ImageRef) -> str | None:
        try:
            decode(ref, draft=64)
        except UserError as error:
            return str(error)
        return None

    wrong = []
    work: Iterable = ahead(reason, refs, default_workers(), 64)
    for _, why in progress(work, "images", total=len(refs)):
        wrong += [] if why is None else [why]
    if wrong:
        examples = "; ".join(wrong[:EXAMPLES])
        problems.append(f"{len(wrong)} of {len(refs)} images looked at are missing or broken, such as: {examples}")
    return {"looked_at": len(refs), "resolved": len(refs) - len(wrong)}


def told_query(query: Query) -> str:
    shown = f" [{', '.join(ref.id for ref in query.images)}]" if query.images else ""
    return f"{query.id}: {short(query.text)}{shown}"


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."
