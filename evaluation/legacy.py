"""The eight numbers of MIRe's original evaluation, under its keys, for comparison with published results.

Its keys mislead, so they live here only. Relevance was redrawn from the retrieved list at every cut, which makes its
"R@k" 1 for any relevant passage in the top k: it is Success@k, not Recall@k. Its "MRR" looks at the top 5 only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from core.errors import UserError
from core.protocols import Ranking
from evaluation.metrics import Scores, means

KEYS = {
    "P@1": "P@1",
    "MRR": "MRR@5",
    "P@5": "P@5",
    "R@5": "Success@5",
    "R@10": "Success@10",
    "R@20": "Success@20",
    "R@50": "Success@50",
    "R@100": "Success@100",
}
"""MIRe's key, in the order of its file -> our name; ``list(KEYS.values())`` goes into ``metrics.evaluate``"""


def legacy_names(scores: Scores) -> dict[str, float]:
    """Our judged per-query scores as MIRe's JSON: means as fractions under its keys, in its order.

    Equals its own output where the relevant documents are known (gold ids), all queries were answered and no scores
    tie; ``by_its_rules`` follows it in the other cases too.
    """
    missing = [name for name in KEYS.values() if name not in scores]
    if missing:
        raise UserError(f"metric '{missing[0]}' is missing for MIRe's keys; evaluate {', '.join(KEYS.values())}.")
    mean = means(scores)
    return {key: mean[name] for key, name in KEYS.items()}


def by_its_rules(rankings: Mapping[str, Ranking], judge: Callable[[str, str], bool]) -> dict[str, float]:
    """MIRe's eight numbers as it computed them. judge(query id, document id) -> bool, asked for the top 100.

    Two rules differ from ours: the mean is over the queries that have a ranking, and within each cut documents whose
    scores are equal in single precision stand in descending order of their ids.
    """
    if not rankings:
        raise UserError("there are no rankings to judge; search first.")
    rows = []
    for qid, ranking in rankings.items():
        relevant = {doc for doc in ranking.ids[:100] if judge(qid, doc)}
        row = {"P@1": float(bool(ranking.ids) and ranking.ids[0] in relevant)}
        hits = [doc in relevant for doc in _resorted(ranking, 5)]
        row["MRR"] = 1 / (1 + hits.index(True)) if any(hits) else 0.0
        row["P@5"] = sum(hits) / 5
        for k in (5, 10, 20, 50, 100):
            row[f"R@{k}"] = float(any(doc in relevant for doc in ranking.ids[:k]))
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in KEYS}


def _resorted(ranking: Ranking, k: int) -> list[str]:
    """The top k as trec_eval orders them: by single-precision score, then by id, both descending."""
    pairs = zip(ranking.ids[:k], np.float32(ranking.scores[:k]).tolist())
    return [doc for doc, _ in sorted(pairs, key=lambda pair: (pair[1], pair[0]), reverse=True)]
