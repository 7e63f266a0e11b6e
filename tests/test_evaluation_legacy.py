"""MIRe's eight numbers against the outputs of its own evaluation script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import UserError
from core.protocols import Ranking
from evaluation import legacy
from evaluation.metrics import evaluate

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics" / "mire.json").read_text(encoding="utf-8"))["cases"]


def golden_case(name):
    queries = GOLDEN[name]["queries"]
    relevant = {qid: set(q["relevant"]) for qid, q in queries.items()}
    rankings = {
        qid: Ranking(tuple(q["ids"].split()), tuple(map(float, q["scores"].split()))) for qid, q in queries.items()
    }
    return rankings, relevant, GOLDEN[name]["metrics"]


@pytest.mark.parametrize("name", GOLDEN)
def test_legacy_numbers_are_those_of_mire(name):
    rankings, relevant, wanted = golden_case(name)
    got = legacy.by_its_rules(rankings, lambda qid, doc: doc in relevant[qid])
    assert list(got) == list(wanted)
    assert got == pytest.approx(wanted, abs=1e-12)
    assert 0 < wanted["P@1"] < wanted["R@100"]  # the case is not empty


@pytest.mark.parametrize("name", GOLDEN)
def test_legacy_names_of_our_metrics(name):
    """The relevant documents that were found as qrels: our names under MIRe's keys give MIRe's numbers."""
    rankings, relevant, wanted = golden_case(name)
    qrels = {qid: dict.fromkeys(docs, 1) for qid, docs in relevant.items()}
    got = legacy.legacy_names(evaluate(rankings, qrels, list(legacy.KEYS.values())))
    assert list(got) == list(wanted)
    assert got == pytest.approx(wanted, abs=1e-12)


def test_legacy_ties_and_missing():
    """MIRe's judge puts equal scores in descending order of ids, within each cut; P@1 sees the first document only."""
    rankings = {"q": Ranking(("a", "b", "c"), (1.0, 1.0 - 1e-12, 0.5))}
    assert legacy.by_its_rules(rankings, lambda _, doc: doc == "a")["P@1"] == 1
    assert legacy.by_its_rules(rankings, lambda _, doc: doc == "a")["MRR"] == 0.5
    assert legacy.by_its_rules(rankings, lambda _, doc: doc == "b")["MRR"] == 1
    with pytest.raises(UserError, match="metric 'P@1' is missing"):
        legacy.legacy_names({"MRR@5": {"q": 1.0}})
    with pytest.raises(UserError, match="no rankings"):
        legacy.by_its_rules({}, lambda *_: True)


@pytest.mark.parametrize(
    ("answer", "passage", "held"),
    [  # of (mire okvqa_gs, xknow okvqa_gs, mire okvqa, xknow okvqa); None: it stops
        ("new york", "in New York.", (True, True, True, True)),
        (" new york ", "in New York.", (True, False, True, False)),
        ("u.s", "a u-s-b plug", (True, True, True, True)),  # "." stands for anything
        ("art", "a party", (False, False, False, False)),
        ("c#", "C# tools", (False, False, False, False)),  # no word ends behind "#"
        ("", "a word", (True, True, False, False)),
        ("a (b", "costs a (b", (True, None, None, None)),
    ],
)
def test_the_patterns_of_ok_vqa(answer, passage, held):
    for (style, data), expected in zip(
        [("mire", "okvqa_gs"), ("xknow", "okvqa_gs"), ("mire", "okvqa"), ("xknow", "okvqa")], held, strict=True
    ):
        rule = legacy.PATTERNS[style, data]
        if expected is None:
            with pytest.raises(UserError, match=r"stops at the answer 'a \(b'"):
                rule.holds([answer], passage)
        else:
            assert rule.holds([answer], passage) is expected, (style, data)


def test_uniir_says_recall_to_success():
    assert legacy.uniir({"Success@5": {"a": 1.0, "b": 0.0, "c": 0.0}}) == {"Recall@5": 0.3333}
    with pytest.raises(UserError, match="no name for MRR@5"):
        legacy.uniir({"MRR@5": {"a": 1.0}})
