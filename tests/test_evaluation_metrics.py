"""Metrics against numbers worked out by hand, and against naive implementations on random rankings."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.protocols import Ranking
from evaluation.metrics import BY_QRELS, by_answers, evaluate, in_order, means, parse


def ranked(*ids: str, scores=None) -> Ranking:
    return Ranking(ids, tuple(scores or [float(len(ids) - i) for i in range(len(ids))]))


def test_by_hand_with_several_relevant():
    """Three relevant of which b and d are found at ranks 2 and 4."""
    got = evaluate(
        {"q": ranked("a", "b", "c", "d", "e")},
        {"q": {"b": 1, "d": 1, "z": 1, "a": 0}},
        ["Success@1", "Success@2", "Recall@2", "Recall@5", "MRR@1", "MRR@5", "P@4", "MAP@5", "nDCG@5"],
    )
    dcg = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    wanted = {"Success@1": 0, "Success@2": 1, "Recall@2": 1 / 3, "Recall@5": 2 / 3, "MRR@1": 0, "MRR@5": 1 / 2}
    wanted |= {"P@4": 2 / 4, "MAP@5": (1 / 2 + 2 / 4) / 3, "nDCG@5": dcg / ideal}
    assert list(got) == list(wanted)
    assert {name: values["q"] for name, values in got.items()} == pytest.approx(wanted)


def test_graded_gains_and_negative_grades():
    """nDCG weighs by grade; a grade below 1 is not relevant and costs nothing."""
    got = evaluate({"q": ranked("junk", "two", "one")}, {"q": {"two": 2, "one": 1, "junk": -2}}, ["nDCG@3", "Recall@3"])
    dcg, ideal = 2 / math.log2(3) + 1 / 2, 2 + 1 / math.log2(3)
    assert got["nDCG@3"]["q"] == pytest.approx(dcg / ideal)
    assert got["Recall@3"]["q"] == 1


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")])
def test_ties_keep_the_order_of_the_ranking(order):
    """All metrics see the order of the index, although every score is the same."""
    for place, doc in enumerate(order, 1):
        got = evaluate(
            {"q": ranked(*order, scores=(1.0, 1.0, 1.0))}, {"q": {doc: 1}}, ["Success@1", "MRR@3", "nDCG@3", "MAP@3"]
        )
        assert got["Success@1"]["q"] == (place == 1)
        assert got["MRR@3"]["q"] == got["MAP@3"]["q"] == pytest.approx(1 / place)
        assert got["nDCG@3"]["q"] == pytest.approx(1 / math.log2(place + 1))


def test_k_beyond_the_ranking():
    got = evaluate({"q": ranked("a", "b")}, {"q": {"b": 1}}, ["P@10", "Recall@10", "Success@1000", "MRR@10"])
    assert {name: values["q"] for name, values in got.items()} == pytest.approx(
        {"P@10": 0.1, "Recall@10": 1, "Success@1000": 1, "MRR@10": 0.5}
    )


def test_unanswered_and_hopeless_queries_count_as_zero():
    """absent: no ranking; empty: a ranking without documents; none: nothing is relevant to it."""
    qrels = {"found": {"a": 1}, "absent": {"a": 1}, "empty": {"a": 1}, "none": {"a": 0}, "bare": {}}
    rankings = {"found": ranked("a"), "empty": ranked(), "none": ranked("a"), "bare": ranked("a")}
    got = evaluate(rankings, qrels, ["Success@1", "Recall@1", "MRR@1", "nDCG@1", "P@1", "MAP@1"])
    for values in got.values():
        assert values == {"found": 1, "absent": 0, "empty": 0, "none": 0, "bare": 0}
        assert list(values) == list(qrels)
    assert set(means(got).values()) == {0.2}


def test_ids_of_any_shape():
    got = evaluate(
        {"q 1": ranked("ü\0x", "ü\0y", "日本 語")}, {"q 1": {"日本 語": 1, "ü\0y": 1}}, ["MRR@3", "Recall@3", "P@3"]
    )
    assert means(got) == pytest.approx({"MRR@3": 1 / 2, "Recall@3": 1, "P@3": 2 / 3})


def test_names():
    assert parse("Recall@10") == ("Recall", 10) and parse("PseudoMRR@5") == ("PseudoMRR", 5)
    for wrong in ("R@5", "recall@5", "Success", "Success@0", "Success@-1", "Success@05", "MRR@x", "PseudoMAP@5", ""):
        with pytest.raises(
            UserError, match="Success@k, Recall@k, Precision@k, P@k, MRR@k, MAP@k, nDCG@k, PseudoSuccess"
        ):
            parse(wrong)
    with pytest.raises(UserError, match="'PseudoRecall@5' needs the answer texts"):
        evaluate({"q": ranked("a")}, {"q": {"a": 1}}, ["PseudoRecall@5"])
    with pytest.raises(UserError, match="'Success@5' is judged by qrels"):
        by_answers({"q": [True]}, ["q"], ["Success@5"])


def test_precision_has_a_short_name():
    got = evaluate({"q": ranked("a", "b", "c")}, {"q": {"a": 1, "c": 1}}, ["Precision@2", "P@2"])
    assert got["Precision@2"] == got["P@2"] == {"q": 0.5}


def test_errors_name_the_query():
    with pytest.raises(UserError, match=r"query 'x' has a ranking but no qrels \(1 of 2"):
        evaluate({"q": ranked("a"), "x": ranked("a")}, {"q": {"a": 1}}, ["MRR@1"])
    with pytest.raises(UserError, match="document 'a' stands twice in the ranking of query 'q'"):
        evaluate({"q": ranked("a", "a")}, {"q": {"a": 1}}, ["P@2"])
    with pytest.raises(UserError, match="no query"):
        evaluate({}, {}, ["MRR@1"])


def test_by_answers():
    hits = {"q": [False, False, True, True], "r": [False] * 3 + [True], "few": [True]}
    names = ["PseudoSuccess@1", "PseudoSuccess@3", "PseudoRecall@3", "PseudoPrecision@4", "PseudoMRR@4", "PseudoMRR@2"]
    got = by_answers(hits, ["q", "r", "few", "absent"], names)
    assert list(got) == names
    assert got["PseudoSuccess@1"] == {"q": 0, "r": 0, "few": 1, "absent": 0}
    assert got["PseudoSuccess@3"] == got["PseudoRecall@3"] == {"q": 1, "r": 0, "few": 1, "absent": 0}
    assert got["PseudoPrecision@4"] == {"q": 2 / 4, "r": 1 / 4, "few": 1 / 4, "absent": 0}
    assert got["PseudoMRR@4"] == {"q": 1 / 3, "r": 1 / 4, "few": 1, "absent": 0}
    assert got["PseudoMRR@2"] == {"q": 0, "r": 0, "few": 1, "absent": 0}
    with pytest.raises(UserError, match=r"query 'r' has a ranking but no place among query_ids \(2 of 3"):
        by_answers(hits, ["q"], names)
    with pytest.raises(UserError, match="no queries"):
        by_answers({}, [], names)


def test_equal_scores_stand_in_the_order_of_their_ids():
    best_first = ranked("z", "b", "a", scores=(3.0, 2.0, 1.0))
    assert in_order(best_first) is best_first
    tied = ranked("z", "d10", "d9", "a", scores=(3.0, 1.0, 1.0, 1.0))
    assert in_order(tied) == ranked("z", "a", "d10", "d9", scores=(3.0, 1.0, 1.0, 1.0))
    assert in_order(ranked("a", "b", scores=(1.0, 2.0))).ids == ("b", "a")


DOCS = [f"d{i}" for i in range(12)]


@st.composite
def judged_runs(draw):
    """Rankings with many ties, some unanswered, and qrels with none to several relevant documents."""
    qids = draw(st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=6, unique=True))
    qrels = {qid: draw(st.dictionaries(st.sampled_from(DOCS), st.integers(-1, 3), max_size=6)) for qid in qids}
    rankings = {}
    for qid in draw(st.lists(st.sampled_from(qids), unique=True)):
        ids = draw(st.lists(st.sampled_from(DOCS), max_size=12, unique=True))
        drops = draw(st.lists(st.sampled_from([0.0, 0.0, 0.5]), min_size=len(ids), max_size=len(ids)))
        rankings[qid] = ranked(*ids, scores=[9.0 - sum(drops[: i + 1]) for i in range(len(ids))])
    return rankings, qrels, draw(st.integers(1, 15))


@given(judged_runs())
def test_against_naive(case):
    rankings, qrels, k = case
    got = evaluate(rankings, qrels, [f"{family}@{k}" for family in BY_QRELS])
    for qid, grades in qrels.items():
        relevant = {doc for doc, grade in grades.items() if grade > 0}
        top = rankings[qid].ids[:k] if qid in rankings else ()
        ranks = [rank for rank, doc in enumerate(top, 1) if doc in relevant]
        precisions = [number / rank for number, rank in enumerate(ranks, 1)]
        ideal = sum(g / math.log2(r + 1) for r, g in enumerate(sorted(map(grades.get, relevant), reverse=True)[:k], 1))
        naive = {
            "Success": float(bool(ranks)),
            "Recall": len(ranks) / len(relevant) if relevant else 0.0,
            "MRR": 1 / ranks[0] if ranks else 0.0,
            "P": len(ranks) / k,
            "Precision": len(ranks) / k,
            "MAP": sum(precisions) / len(relevant) if relevant else 0.0,
            "nDCG": sum(grades[top[r - 1]] / math.log2(r + 1) for r in ranks) / ideal if ideal else 0.0,
        }
        assert {name.split("@")[0]: values[qid] for name, values in got.items()} == pytest.approx(naive)


THEIRS = {"Success": "Success", "Recall": "R", "MRR": "RR", "nDCG": "nDCG", "P": "P", "MAP": "AP"}
"""our family -> its name in ir_measures"""


@given(judged_runs())
def test_against_trec_eval(case):
    """The judge that the field uses. Its own order of equal scores is another, so it is given falling ones."""
    import ir_measures

    rankings, qrels, k = case
    falling = {q: {d: float(-place) for place, d in enumerate(r.ids)} for q, r in rankings.items()}
    known = {q: {d: max(0, g) for d, g in grades.items()} for q, grades in qrels.items()}
    got = evaluate(rankings, qrels, [f"{family}@{k}" for family in THEIRS])
    names = {getattr(ir_measures, other) @ k: f"{ours}@{k}" for ours, other in THEIRS.items()}
    compared = 0
    for found in ir_measures.iter_calc(list(names), known, falling):
        assert got[names[found.measure]][found.query_id] == pytest.approx(found.value, abs=1e-9)
        compared += 1
    answered = sum(bool(r.ids) and bool(qrels[q]) for q, r in rankings.items())
    assert compared >= answered * len(names)
