"""Metrics with names that cannot lie. Every value is per query, a fraction between 0 and 1.

A document is relevant to a query when its grade in the qrels is 1 or more. With R relevant documents for a query:

    Success@k          1 if any relevant document stands in the top k, else 0 ("hit rate")
    Recall@k           relevant documents in the top k / R
    Precision@k        relevant documents in the top k / k, also when the ranking is shorter than k (P@k for short)
    MRR@k              1 / rank of the first relevant document, 0 when it stands below k
    MAP@k              sum over the relevant documents in the top k of the precision at their rank, / R
    nDCG@k             DCG / ideal DCG, gain = the grade, discount = log2(rank + 1), ideal over all judged documents

A document is pseudo-relevant when it holds an answer as whole words (``core.answers.WORDS``):

    PseudoSuccess@k    1 if any of the top k holds an answer, else 0
    PseudoPrecision@k  how many of the top k hold an answer, / k
    PseudoMRR@k        1 / rank of the first that holds an answer, 0 when it stands below k
    PseudoRecall@k     what PreFLMR publishes as Pseudo Recall@k: as PseudoSuccess@k, by the looser rule of its scripts
                       (``core.answers.SUBSTRING``: "art" stands in "party")

Which other documents of the corpus hold an answer is unknown, so neither the share of them that was found nor anything
else that divides by their number can be computed: that is why there is no PseudoMAP, and why PseudoRecall is one only
in name. What is divided by R or by the ideal uses *all* relevant documents, never only those that were retrieved.

A query without a ranking, or without any relevant document, counts as 0 everywhere.

Rankings are judged in their own order. ``in_order`` makes it unique: by score, equal scores by id.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from core.errors import UserError
from core.protocols import Ranking

Scores = dict[str, dict[str, float]]
"""metric name -> {query id: value}"""

Found = Sequence[tuple[int, int]]
"""(rank from 1, grade) of every relevant document of a ranking, best rank first."""


def _within(found: Found, k: int) -> int:
    return sum(rank <= k for rank, _ in found)


def _success(found: Found, k: int, ideal: Sequence[int]) -> float:
    return float(bool(found) and found[0][0] <= k)


def _recall(found: Found, k: int, ideal: Sequence[int]) -> float:
    return _within(found, k) / len(ideal)


def _precision(found: Found, k: int, ideal: Sequence[int]) -> float:
    return _within(found, k) / k


def _mrr(found: Found, k: int, ideal: Sequence[int]) -> float:
    return 1 / found[0][0] if found and found[0][0] <= k else 0.0


def _map(found: Found, k: int, ideal: Sequence[int]) -> float:
    return sum(number / rank for number, (rank, _) in enumerate(found, 1) if rank <= k) / len(ideal)


def _ndcg(found: Found, k: int, ideal: Sequence[int]) -> float:
    return _dcg(found, k) / _dcg(list(enumerate(ideal, 1)), k)


def _dcg(found: Found, k: int) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in found if rank <= k)


Measure = Callable[[Found, int, Sequence[int]], float]
"""(what was found, k, the grades of all relevant documents, best first) -> value; those that read the last are only
asked when it is not empty."""

BY_QRELS: dict[str, Measure] = {
    "Success": _success, "Recall": _recall, "Precision": _precision, "P": _precision, "MRR": _mrr, "MAP": _map,
    "nDCG": _ndcg,
}  # fmt: skip
BY_ANSWERS: dict[str, Measure] = {
    "PseudoSuccess": _success, "PseudoPrecision": _precision, "PseudoMRR": _mrr, "PseudoRecall": _success,
}  # fmt: skip

PSEUDO_RECALL = "PseudoRecall"
"""The one family that asks ``SUBSTRING`` instead of ``WORDS``."""


def parse(name: str) -> tuple[str, int]:
    """ "Recall@10" -> ("Recall", 10); an unknown family or a cutoff that is no positive number is a UserError."""
    found = re.fullmatch(r"([A-Za-z]+)@([1-9][0-9]*)", name)
    if not found or found[1] not in BY_QRELS | BY_ANSWERS:
        known = ", ".join(f"{family}@k" for family in BY_QRELS | BY_ANSWERS)
        raise UserError(f"metric '{name}' is not known; write one of {known} with k a positive number.")
    return found[1], int(found[2])


def apart(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names (checked) that qrels judge, and those that answer texts judge."""
    by_answers = [name for name in names if parse(name)[0] in BY_ANSWERS]
    return [name for name in names if name not in by_answers], by_answers


def evaluate(rankings: Mapping[str, Ranking], qrels: Mapping[str, Mapping[str, int]], metrics: Sequence[str]) -> Scores:
    """Judge rankings by qrels: metric -> {query id: value}, with every query of ``qrels`` in its order.

    Queries of ``qrels`` without a ranking count as 0. A ranking whose query has no qrels is a UserError: leaving it
    out would silently change what the mean is over.
    """
    if not qrels:
        raise UserError("the qrels name no query; give the relevant documents of at least one query.")
    asked = _asked(metrics, BY_QRELS, "needs the answer texts, which qrels do not hold; use by_answers")
    _check(rankings, qrels, "qrels", "use the qrels of the same split, or drop these queries.")
    depth = max((k for *_, k in asked), default=0)
    scores: Scores = {name: dict.fromkeys(qrels, 0.0) for name in metrics}
    for qid, grades in qrels.items():
        ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
        if not ideal or qid not in rankings:
            continue
        ids = rankings[qid].ids[:depth]
        if len(set(ids)) != len(ids):
            twice = next(doc for doc in ids if ids.count(doc) > 1)
            raise UserError(
                f"document '{twice}' stands twice in the ranking of query '{qid}'; keep its best place only."
            )
        found = [(rank, grade) for rank, doc in enumerate(ids, 1) if (grade := grades.get(doc, 0)) > 0]
        for name, measure, k in asked if found else ():
            scores[name][qid] = measure(found, k, ideal)
    return scores


def by_answers(hits: Mapping[str, Sequence[bool]], query_ids: Iterable[str], metrics: Sequence[str]) -> Scores:
    """Pseudo metrics: metric -> {query id: value} for every one of ``query_ids``.

    hits: query id -> does the document of each rank hold an answer (see ``evaluation.relevance``). A query without
    counts as 0.
    """
    asked = _asked(metrics, BY_ANSWERS, "is judged by qrels; use evaluate")
    qids = list(query_ids)
    if not qids:
        raise UserError("there are no queries to judge; search first.")
    _check(hits, set(qids), "place among query_ids", "give the same queries.")
    found = {qid: [(rank, 1) for rank, hit in enumerate(hits.get(qid, ()), 1) if hit] for qid in qids}
    return {name: {qid: measure(found[qid], k, ()) for qid in qids} for name, measure, k in asked}


def _asked(names: Sequence[str], here: Mapping[str, Measure], otherwise: str) -> list[tuple[str, Measure, int]]:
    for name in names:
        if parse(name)[0] not in here:
            known = ", ".join(f"{family}@k" for family in here)
            raise UserError(f"metric '{name}' {otherwise}, or one of {known}.")
    return [(name, here[family], k) for name in names for family, k in [parse(name)]]


def _check(found: Iterable[str], known, what: str, remedy: str) -> None:
    ids = list(found)
    strays = [qid for qid in ids if qid not in known]
    if strays:
        raise UserError(
            f"query '{strays[0]}' has a ranking but no {what} ({len(strays)} of {len(ids)} queries do not); {remedy}"
        )


def in_order(ranking: Ranking) -> Ranking:
    """By score, highest first; equal scores by id, lowest first. A ranking in that order comes back as it is.

    An index gives equal scores in the order of its documents, which says nothing and changes when it is built anew.
    Which of several documents with the score of the last place are in the ranking at all stays the index's choice.
    """
    if all(a > b for a, b in pairwise(ranking.scores)):
        return ranking
    pairs = sorted(zip(ranking.ids, ranking.scores, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return Ranking(tuple(doc for doc, _ in pairs), tuple(score for _, score in pairs))


def means(scores: Scores) -> dict[str, float]:
    """Mean over the queries of every metric."""
    empty = [name for name, values in scores.items() if not values]
    if empty:
        raise UserError(f"metric '{empty[0]}' has no queries to average; judge at least one.")
    return {name: sum(values.values()) / len(values) for name, values in scores.items()}
