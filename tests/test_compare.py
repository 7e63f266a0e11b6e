"""runs.compare: what differs between two evaluated runs, by how much, how surely, and for which queries."""

from __future__ import annotations

import json
import random

import pytest

from core.errors import UserError
from core.protocols import Ranking
from evaluation import bootstrap, paired
from evaluation.files import PerQuery, read_per_query, write_per_query
from runs import compare

FIELDS = ("capital", "flag", "river")


def per_query(seed: int, chance: float, queries: int = 60) -> tuple[dict, dict, dict]:
    """scores, rankings, facts: q<i> finds its gold g<i> first, second or not at all."""
    rng = random.Random(seed)
    scores = {"Success@1": {}, "MRR@2": {}}
    rankings, facts = {}, {}
    for i in range(queries):
        qid, place = f"q{i:02}", 0 if rng.random() < chance else rng.choice([1, 2])
        ids = [f"x{i}", f"y{i}"]
        ids.insert(place, f"g{i}")
        rankings[qid] = Ranking(tuple(ids[:2]), (2.0, 1.0))
        scores["Success@1"][qid] = float(place == 0)
        scores["MRR@2"][qid] = [1.0, 0.5, 0.0][place]
        facts[qid] = {"question": f"what is {i}?", "gold": [f"g{i}"], "passage": f"text of {ids[0]}",
                      "meta": {"field": FIELDS[i % 3], "country": f"c{i // 2}"}}  # fmt: skip
    return scores, rankings, facts


@pytest.fixture
def runs(tmp_path):
    for name, seed, chance in (("a", 1, 0.2), ("b", 2, 0.8)):
        scores, rankings, facts = per_query(seed, chance)
        write_per_query(tmp_path / name / "runs" / "test.image+question.jsonl", scores, rankings, facts)
    return tmp_path


def compared(runs, *more: str) -> dict:
    compare.run([str(runs / "a"), str(runs / "b"), "--out", str(runs / "out" / "cmp"), *more])
    return json.loads((runs / "out" / "cmp.json").read_text())


def test_the_numbers_are_those_of_the_statistics(runs, capsys):
    result = compared(runs)
    (part,) = result["parts"].values()
    a, b = (per_query(seed, chance)[0] for seed, chance in ((1, 0.2), (2, 0.8)))
    assert part["queries"] == 60 and [r["metric"] for r in part["metrics"]] == ["Success@1", "MRR@2"]
    raw = [paired.randomisation_test(b[name], a[name]) for name in a]
    for row, p, corrected in zip(part["metrics"], raw, paired.holm(raw)):
        ours, theirs = b[row["metric"]], a[row["metric"]]
        found = bootstrap.compare(ours, theirs)
        assert row["A"] == pytest.approx(sum(theirs.values()) / 60) and row["B"] == pytest.approx(
            sum(ours.values()) / 60
        )
        assert (row["difference"], row["low"], row["high"]) == (found.difference, found.low, found.high)
        assert (row["wins"], row["losses"], row["ties"]) == (found.wins, found.losses, found.ties)
        assert row["wins"] == sum(ours[q] > theirs[q] for q in ours) and row["wins"] + row["losses"] + row["ties"] == 60
        assert (row["p"], row["p, Holm"]) == (p, corrected) and row["difference"] > 0.3 and p < 0.01
    text = (runs / "out" / "cmp.md").read_text()
    assert text in capsys.readouterr().out and "corrected for the 2 tests above" in text


def test_the_queries_that_changed_most_are_told(runs):
    (part,) = compared(runs, "--changed", "3")["parts"].values()
    a, b = (per_query(seed, chance)[0] for seed, chance in ((1, 0.2), (2, 0.8)))
    gap = {q: sum(b[m][q] - a[m][q] for m in a) / 2 for q in a["MRR@2"]}
    order = sorted(gap, key=lambda q: (-gap[q], q))
    assert [m["query_id"] for m in part["better"]] == order[:3]
    assert [m["query_id"] for m in part["worse"]] == sorted(gap, key=lambda q: (gap[q], q))[:3]
    best = part["better"][0]
    number = int(best["query_id"][1:])
    assert best["change"] == gap[best["query_id"]] == 1 and best["question"] == f"what is {number}?"
    assert best["A"] == {"top": f"x{number}", "passage": f"text of x{number}", "gold rank": None}
    assert best["B"] == {"top": f"g{number}", "passage": f"text of g{number}", "gold rank": 1}
    text = (runs / "out" / "cmp.md").read_text()
    assert f"**{best['query_id']}** (+1.000) what is {number}?" in text and "gold: not in the top; first: x" in text


def test_groups(runs):
    (part,) = compared(runs, "--by", "field", "--metrics", "MRR@2")["parts"].values()
    assert [g["group"] for g in part["groups"]] == sorted(FIELDS) and sum(g["queries"] for g in part["groups"]) == 60
    total = sum(g["difference"] * g["queries"] for g in part["groups"]) / 60
    assert total == pytest.approx(part["metrics"][0]["difference"])
    (pairs,) = compared(runs, "--together", "country", "--metrics", "MRR@2")["parts"].values()
    (alone, joined) = part["metrics"][0], pairs["metrics"][0]
    assert joined["difference"] == alone["difference"] and (joined["low"], joined["p"]) != (alone["low"], alone["p"])
    groups = {q: f["meta"]["country"] for q, f in per_query(1, 0.2)[2].items()}
    a, b = (per_query(seed, chance)[0]["MRR@2"] for seed, chance in ((1, 0.2), (2, 0.8)))
    assert joined["p"] == paired.randomisation_test(b, a, groups)
    with pytest.raises(UserError, match=r"query 'q00' has no 'colour' in its meta; its fields are country, field"):
        compared(runs, "--by", "colour")


def test_what_is_compared_with_what(runs, capsys):
    scores, rankings, facts = per_query(3, 0.5)
    write_per_query(runs / "a" / "runs" / "test.question.jsonl", scores, rankings, facts)
    write_per_query(runs / "b" / "runs" / "dev.question.jsonl", scores, rankings, facts)
    assert list(compared(runs)["parts"]) == ["test.image+question"]
    out = capsys.readouterr().out
    assert "has test.question; left out" in out and "has dev.question; left out" in out
    two = [str(runs / "a" / "runs" / f"test.{kind}.jsonl") for kind in ("image+question", "question")]
    compare.run([*two, "--out", str(runs / "kinds")])
    (name,) = json.loads((runs / "kinds.json").read_text())["parts"]
    assert name == "test.image+question and test.question"
    (runs / "b" / "runs" / "test.image+question.jsonl").unlink()
    with pytest.raises(UserError, match="nothing of one name"):
        compared(runs)
    with pytest.raises(UserError, match="has no per-query results"):
        compare.run([str(runs / "a"), str(runs / "nowhere")])


def test_limit_takes_the_first_queries(runs):
    (part,) = compared(runs, "--limit", "10")["parts"].values()
    assert part["queries"] == 10 and sum(part["metrics"][0][k] for k in ("wins", "losses", "ties")) == 10


def test_errors(runs):
    scores, rankings, facts = per_query(3, 0.5, queries=59)
    write_per_query(runs / "b" / "runs" / "test.image+question.jsonl", scores, rankings, facts)
    with pytest.raises(UserError, match=r"query 'q59' was judged for one system only"):
        compared(runs)
    with pytest.raises(UserError, match=r"metric 'nDCG@5' is not in both files .* have Success@1, MRR@2 in common"):
        compared(runs, "--metrics", "nDCG@5")
    with pytest.raises(UserError, match="--seed -1"):
        compared(runs, "--seed", "-1")
    with pytest.raises(UserError, match="--changed -1"):
        compared(runs, "--changed", "-1")


def test_a_bare_file_without_texts(tmp_path):
    """What was written by other means: query_id, metrics and top are enough."""
    for name, value in (("a", 0.0), ("b", 1.0)):
        rows = [{"query_id": f"q{i}", "MRR@5": value, "top": [[name, 1.0]]} for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert read_per_query(tmp_path / "a.jsonl") == PerQuery(
        {"MRR@5": {f"q{i}": 0.0 for i in range(8)}}, {f"q{i}": Ranking(("a",), (1.0,)) for i in range(8)},
        {f"q{i}": {} for i in range(8)},
    )  # fmt: skip
    compare.run([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--out", str(tmp_path / "x")])
    (part,) = json.loads((tmp_path / "x.json").read_text())["parts"].values()
    assert part["better"][0]["question"] == "" and part["metrics"][0]["p"] < 0.05 and part["worse"] == []
