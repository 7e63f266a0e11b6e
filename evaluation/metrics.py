"""Metrics with names that cannot lie. Every value is per query, a fraction between 0 and 1.

A document is relevant to a query when its grade in the qrels is 1 or more. With R relevant documents for a query:

    Success@k       1 if any relevant document stands in the top k, else 0 ("hit rate")
    Recall@k        relevant documents in the top k / R
    P@k             relevant documents in the top k / k, also when the ranking is shorter than k
    MRR@k           1 / rank of the first relevant document, 0 when it stands below k
    MAP@k           sum over the relevant documents in the top k of the precision at their rank, / R
    nDCG@k          DCG / ideal DCG, gain = the grade, discount = log2(rank + 1), ideal over all judged documents
    PseudoRecall@k  1 if any document in the top k holds the answer text, else 0 (see ``judged_by_text``)

What is divided by R or by the ideal uses *all* relevant documents, never only those that were retrieved. A query
without a ranking, or without any relevant document, counts as 0 everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from core.errors import UserError
from core.protocols import Ranking

Scores = dict[str, dict[str, float]]
"""metric name -> {query id: value}"""

MEASURES = {"Success": "Success", "Recall": "R", "MRR": "RR", "nDCG": "nDCG", "P": "P", "MAP": "AP"}
"""our family -> its name in ir_measures"""

PSEUDO_RECALL = "PseudoRecall"


def parse(name: str) -> tuple[str, int]:
    """ "Recall@10" -> ("Recall", 10); an unknown family or a cutoff that is no positive number is a UserError."""
    known = ", ".join(f"{family}@k" for family in MEASURES)
    found = re.fullmatch(r"([A-Za-z]+)@([1-9][0-9]*)", name)
    if found and found[1] == PSEUDO_RECALL:
        raise UserError(
            f"metric '{name}' needs the answer texts, which qrels do not hold; use judged_by_text, or one of {known}."
        )
    if not found or found[1] not in MEASURES:
        raise UserError(f"metric '{name}' is not known; write one of {known} with k a positive number.")
    return found[1], int(found[2])


def apart(names: Sequence[str]) -> tuple[list[str], list[int]]:
    """What qrels judge (checked), and the cutoffs of the PseudoRecall@k among the names."""
    texts = [n for n in names if re.fullmatch(rf"{PSEUDO_RECALL}@[1-9][0-9]*", n)]
    others = [n for n in names if n not in texts]
    for name in others:
        parse(name)
    return others, [int(n.split("@")[1]) for n in texts]


def evaluate(rankings: Mapping[str, Ranking], qrels: Mapping[str, Mapping[str, int]], metrics: Sequence[str]) -> Scores:
    """Judge rankings by qrels: metric -> {query id: value}, with every query of ``qrels`` in its order.

    Queries of ``qrels`` without a ranking count as 0. A ranking whose query has no qrels is a UserError: leaving it
    out would silently change what the mean is over.
    """
    import ir_measures

    parsed = [parse(name) for name in metrics]
    if not qrels:
        raise UserError("the qrels name no query; give the relevant documents of at least one query.")
    unjudged = [qid for qid in rankings if qid not in qrels]
    if unjudged:
        raise UserError(
            f"query '{unjudged[0]}' has a ranking but no qrels ({len(unjudged)} of {len(rankings)} queries do not); "
            "use the qrels of the same split, or drop these queries."
        )
    scores: Scores = {name: dict.fromkeys(qrels, 0.0) for name in metrics}
    if not parsed:
        return scores
    depth = max(k for _, k in parsed)
    names = {getattr(ir_measures, MEASURES[family]) @ k: name for name, (family, k) in zip(metrics, parsed)}
    qids = list(qrels)
    judged, run = {}, {}
    for number, qid in enumerate(qids):
        judged[str(number)], run[str(number)] = _anonymous(qid, rankings.get(qid), qrels[qid], depth)
    for found in ir_measures.iter_calc(list(names), judged, run):
        scores[names[found.measure]][qids[int(found.query_id)]] = float(found.value)
    return scores


def _anonymous(
    qid: str, ranking: Ranking | None, grades: Mapping[str, int], depth: int
) -> tuple[dict[str, int], dict[str, float]]:
    """One query's qrels and run with numbers for document ids and strictly falling scores.

    The judge behind ir_measures sorts by score and then by id, in an order that differs between its measures; falling
    surrogate scores keep the order of the Ranking. It also reads ids as C strings, which numbers survive.
    """
    ids = [] if ranking is None else ranking.ids[:depth]
    number: dict[str, str] = {}
    for doc in ids:
        if doc in number:
            raise UserError(f"document '{doc}' stands twice in the ranking of query '{qid}'; keep its best place only.")
        number[doc] = str(len(number))
    run = {name: float(len(ids) - place) for place, name in enumerate(number.values())}
    judged = {number.setdefault(doc, str(len(number))): max(0, int(grade)) for doc, grade in grades.items()}
    return judged, run


def judged_by_text(
    rankings: Mapping[str, Ranking],
    judge: Callable[[str, str], bool],
    k: int | Sequence[int],
    query_ids: Iterable[str] | None = None,
) -> Scores:
    """PseudoRecall@k for one or several k: does any document of the top k hold the answer text?

    judge(query id, document id) -> bool is asked once per document, best first, down to the first that holds the
    answer or the largest k. Which other documents of the corpus hold it is unknown, so the share of them that was
    found cannot be computed: that is why the name says Pseudo. query_ids: all queries that count; those without a
    ranking are 0 (default: the queries of ``rankings``).
    """
    cutoffs = [k] if isinstance(k, int) else list(k)
    if not cutoffs or min(cutoffs) < 1:
        raise UserError(f"k={k!r} is no cutoff; give one or several positive numbers.")
    qids = list(rankings if query_ids is None else query_ids)
    if not qids:
        raise UserError("there are no queries to judge; search first.")
    strays = set(rankings).difference(qids)
    if strays:
        raise UserError(f"query '{min(strays)}' has a ranking but is not among query_ids; give the same queries.")
    first: dict[str, int | None] = {}
    for qid in qids:
        ids = rankings[qid].ids[: max(cutoffs)] if qid in rankings else ()
        first[qid] = next((rank for rank, doc in enumerate(ids, 1) if judge(qid, doc)), None)
    return {
        f"{PSEUDO_RECALL}@{cut}": {qid: float(rank is not None and rank <= cut) for qid, rank in first.items()}
        for cut in cutoffs
    }


def means(scores: Scores) -> dict[str, float]:
    """Mean over the queries of every metric."""
    empty = [name for name, values in scores.items() if not values]
    if empty:
        raise UserError(f"metric '{empty[0]}' has no queries to average; judge at least one.")
    return {name: sum(values.values()) / len(values) for name, values in scores.items()}
