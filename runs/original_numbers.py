"""The numbers, relevance and pairs of the original evaluations, with their rules. Not a command of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.answers import SUBSTRING
from core.protocols import Ranking
from core.records import Query
from evaluation.relevance import Passages, hits
from runs import original_data
from runs.judging import answers_of, knows_answers

KS = (1, 5, 10, 20, 50, 100, 500)


def legacy_numbers(
    style: str, data, split: str, queries: Sequence[Query], rankings: Mapping[str, Ranking], passages: Passages,
    name: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The numbers of an original evaluation, with its keys, its rules and its mistakes.

    style: mire, xknow, flmr or uniir; auto: flmr for M2KR and FLMR's OK-VQA, else mire. name: the original's
    --dataset_name where it is not that of ``data``.
    """
    from evaluation import flmr, legacy
    from evaluation.metrics import evaluate

    entry = original_data.entry_of(data, name)
    if style == "auto":
        style = "flmr" if name is None and data.config.name in ("m2kr", "okvqa_flmr") else "mire"
    if style in ("mire", "xknow"):
        queries = theirs(entry, data, split, queries)
        rankings = {query.id: rankings[query.id] for query in queries if query.id in rankings}
        relevant = relevant_by(style, entry, data, split, queries, rankings, passages)
        return legacy.by_its_rules(rankings, lambda query, document: document in relevant[query])
    depth = max((len(ranking.ids) for ranking in rankings.values()), default=0)
    ks = [k for k in KS if k <= depth] or [1]
    qrels = data.qrels(split)
    if style == "uniir":
        asked = {query.id: qrels[query.id] for query in queries}
        return legacy.uniir(evaluate(rankings, asked, [f"Success@{k}" for k in ks]))
    held = _held(queries, rankings, passages, SUBSTRING) if knows_answers(data) else None
    answered = None if held is None else lambda query, document: document in held[query]
    scores = flmr.judged(rankings, lambda query, document: document in qrels[query], ks, answered)
    return flmr.original_report(scores, rankings)


def saved_pairs(
    args, data, queries: Sequence[Query], rankings: Mapping[str, Ranking], passages: Passages
) -> list[dict]:
    """--save_pairs; with --legacy_metrics of the queries that the original asked, and with its ``meta``."""
    from runs.leaving import pairs

    if not args.legacy_metrics:
        return pairs(queries, rankings, passages)
    entry = original_data.entry_of(data, args.dataset_name)
    asked = {query.id: query for query in sorted(theirs(entry, data, "test", queries), key=_place)}
    style = "xknow" if args.xknow_ckpt else "mire"
    relevant = relevant_by(style, entry, data, "test", list(asked.values()), rankings, passages)
    made = pairs(list(asked.values()), rankings, passages)
    if entry.meta == "answers" and not any(query.meta["answers"] for query in asked.values()):
        golds = data.qrels("test")  # a set without answers: the first relevant id instead
        return [row | {"meta": {"golden_pid": next(iter(golds[row["question_id"]]), "")}} for row in made]
    return [row | pair_meta(entry, asked[row["question_id"]], row["pid"], relevant[row["question_id"]]) for row in made]


def theirs(entry: original_data.Original, data, split: str, queries: Sequence[Query]) -> list[Query]:
    """The queries that the original asked, in our order."""
    if not entry.answered_only:
        return list(queries)
    judged = data.qrels(split)
    return [query for query in queries if judged[query.id]]


def relevant_by(
    style: str, entry: original_data.Original, data, split: str, queries: Sequence[Query],
    rankings: Mapping[str, Ranking], passages: Passages,
) -> dict[str, set[str]]:  # fmt: skip
    """Query id -> what MIRe or Ret-XKnow takes for relevant, by answers only among what was found."""
    rule = entry.rule(style)
    if rule is not None:
        return _held([query for query in queries if query.id in rankings], rankings, passages, rule)
    judged = {} if entry.judged == "never" else data.qrels(split)
    return {query.id: set(judged.get(query.id, ())) for query in queries}


def pair_meta(entry: original_data.Original, query: Query, ids: Sequence[str], relevant: set[str]) -> dict[str, Any]:
    if entry.meta == "hit":
        return {"meta": any(id_ in relevant for id_ in ids)}
    if entry.meta == "answers":
        return {"meta": {"answers": list(query.meta["answers"])}}
    return {"meta": min(relevant, default="")} if entry.meta == "gold" else {}


def _place(query: Query) -> tuple:
    """The originals ask in the order of the ids: numbers by their value, then words."""
    return (0, int(query.id), "") if query.id.isdecimal() else (1, 0, query.id)


def _held(queries, rankings: Mapping[str, Ranking], passages: Passages, rule) -> dict[str, set[str]]:
    """Query id -> those of its passages that hold an answer by the rule."""
    found = hits({query.id: rankings[query.id] for query in queries}, answers_of(queries), passages, rule)
    return {qid: {id_ for id_, hit in zip(rankings[qid].ids, verdicts) if hit} for qid, verdicts in found.items()}
