"""The numbers of the original evaluations under their own keys, for comparison with published results.

Their keys mislead, so they live here and in ``evaluation.flmr`` only. MIRe and Ret-XKnow redrew relevance from the
retrieved list at every cut, which makes their "R@k" 1 for any relevant passage in the top k: it is Success@k (or
PseudoSuccess@k), not Recall@k. Their "MRR" looks at the top 5 only. UniIR's "Recall@k" is Success@k as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from core.answers import Answer, Rule
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

    Two rules differ from ours: the mean is over the queries for which something was found, and within each cut
    documents whose scores are equal in single precision stand in descending order of their ids.
    """
    found = {qid: ranking for qid, ranking in rankings.items() if ranking.ids}
    if not found:
        raise UserError("there are no rankings to judge; search first.")
    rows = []
    for qid, ranking in found.items():
        relevant = {doc for doc in ranking.ids[:100] if judge(qid, doc)}
        row = {"P@1": float(ranking.ids[0] in relevant)}
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


def uniir(scores: Scores) -> dict[str, float]:
    """UniIR's table values: Success@k under its name "Recall@k", rounded to four digits as it prints them."""
    found = {name.replace("Success", "Recall"): value for name, value in means(scores).items()}
    if any(not name.startswith("Success@") for name in scores):
        raise UserError(f"UniIR's table has no name for {', '.join(scores)}; evaluate Success@k.")
    return {name: round(value, 4) for name, value in found.items()}


def _pattern(answers: Iterable[Answer], strip: bool, blanks: bool, fall_back: bool) -> Callable[[str], bool]:
    """The answers as regular expressions between word boundaries, unescaped: "u.s." finds "u-s-", "a (b" is none.

    blanks: an answer without a character is looked for too, and stands wherever a word begins. One that is no regular
    expression stops at the first passage that none of the answers before it finds, as it did the originals.
    """
    tests: list[Callable[[str], bool]] = []
    for answer in answers:
        if not isinstance(answer, str):
            raise UserError(f"the originals judge OK-VQA's answers, which are texts; {answer} is none.")
        if not answer and not blanks:
            continue
        word = answer.lower().strip() if strip else answer.lower()
        try:
            found = re.compile(rf"\b{word}\b").search
        except (re.error, OverflowError, RecursionError) as error:
            stops = _stop(
                f"the original's rule stops at the answer '{answer}', which is no regular expression ({error}); "
                "leave --legacy_metrics out, or correct the answer."
            )
            tests.append((lambda text, word=word: word in text) if fall_back else stops)
            continue
        tests.append(lambda text, found=found: found(text) is not None)
    return lambda text: any(test(text) for test in tests)


def _stop(message: str) -> Callable[[str], bool]:
    def stop(text: str) -> bool:
        raise UserError(message)

    return stop


def _rule(name: str, **options: bool) -> Rule:
    return Rule(name, str.lower, lambda answers: _pattern(answers, **options))


PATTERNS = {
    ("mire", "okvqa_gs"): _rule("mire okvqa_gs", strip=True, blanks=True, fall_back=True),
    ("xknow", "okvqa_gs"): _rule("xknow okvqa_gs", strip=False, blanks=True, fall_back=False),
    ("mire", "okvqa"): _rule("mire okvqa", strip=True, blanks=False, fall_back=False),
    ("xknow", "okvqa"): _rule("xknow okvqa", strip=False, blanks=False, fall_back=False),
}
"""How MIRe and Ret-XKnow judge OK-VQA's passages: of Google Search, and of Wikipedia. fall_back: an answer that is no
regular expression is looked for as it stands; without it such an answer stops the evaluation."""
