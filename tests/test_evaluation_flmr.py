"""FLMR's metrics: its golden numbers, and its definitions on cases made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import UserError
from core.protocols import Ranking
from evaluation import flmr
from tests.golden_case import Case
from tests.golden_runners import recall


def test_the_scripts_numbers_are_reproduced():
    case = Case(Path(__file__).parent / "golden" / "recall" / "recall_cases")
    recall.run(case)
    case.finish()
    assert case.mutate() >= len(case.compared)


@pytest.mark.parametrize(
    ("answers", "passage", "expected"),
    [
        (["paris"], "PARIS is a city", True),
        ([" Paris "], "in parish registers", True),  # no word boundaries
        (["rome", "paris"], "paris", True),
        (["cafe"], "café", False),  # no folding
        ([], "anything", False),
        ([" "], "", True),  # the original's habit
    ],
)
def test_holds_answer(answers, passage, expected):
    assert flmr.holds_answer(answers, passage) is expected


def test_any_positive_counts_and_names_say_so():
    rankings = {"a": Ranking(("x", "y", "z"), (3.0, 2.0, 1.0)), "b": Ranking(("y",), (1.0,))}
    gold = {"a": {"y", "z", "w"}, "b": {"x"}}
    scores = flmr.judged(rankings, lambda q, d: d in gold[q], [1, 2], lambda q, d: d == "x")
    assert scores == {
        "Success@1": {"a": 0.0, "b": 0.0}, "Success@2": {"a": 1.0, "b": 0.0},
        "PseudoRecall@1": {"a": 1.0, "b": 0.0}, "PseudoRecall@2": {"a": 1.0, "b": 0.0},
    }  # fmt: skip
    assert flmr.original_means(scores)["Recall@2"] == 0.5
    report = flmr.original_report(scores, rankings)
    assert report["b"] == {
        "Recall@1": 0.0, "Recall@2": 0.0, "Pseudo Recall@1": 0.0, "Pseudo Recall@2": 0.0,
        "retrieved_passage": [{"passage_id": "y", "score": 1.0}],
    }  # fmt: skip
    with pytest.raises(UserError, match="no name for 'MRR@5'"):
        flmr.original_name("MRR@5")


def test_a_file_that_is_no_report(tmp_path):
    (tmp_path / "EVQA.json").write_text(json.dumps({"q": {"Recall@5": 1.0}}))
    with pytest.raises(UserError, match="no report of questions named DATASET_INDEX_MODEL"):
        flmr.published_table(tmp_path.glob("*.json"))
