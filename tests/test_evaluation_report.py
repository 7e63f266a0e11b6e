"""Intervals, files, reports and plots."""

from __future__ import annotations

import json

import numpy as np
import pytest

from core.errors import UserError
from core.protocols import Ranking
from evaluation import files, report
from evaluation.bootstrap import compare, interval

QRELS = {"q1": {"d1": 1, "d2": 0}, "q2": {"d3": 2}}
RANKINGS = {"q1": Ranking(("d2", "d1", "ä"), (0.1 + 0.2, 0.25, 0.25)), "q2": Ranking(("d3",), (-1e-30,))}


def test_interval_covers_the_truth():
    """Of 400 samples of 100 queries with success rate 0.3, about 95 % of the intervals hold 0.3."""
    rng = np.random.default_rng(7)
    bounds = [interval((rng.random(100) < 0.3).astype(float).tolist(), 1000, seed=i) for i in range(400)]
    assert 0.91 <= np.mean([low <= 0.3 <= high for low, high in bounds]) <= 0.98
    assert np.mean([high - low for low, high in bounds]) == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 100), rel=0.05)


def test_interval_is_reproducible_and_blind_to_order():
    values = {f"q{i}": float(i % 3) + i / 97 for i in range(50)}
    backwards = dict(reversed(values.items()))
    assert interval(values) == interval(values) == interval(backwards)
    assert interval(values) != interval(values, seed=1)
    low, high = interval(values)
    narrow = interval(values, level=0.5)
    assert low < narrow[0] < np.mean(list(values.values())) < narrow[1] < high
    assert interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_interval_of_many_queries_goes_in_blocks(monkeypatch):
    values = np.random.default_rng(0).random(300).tolist()
    whole = interval(values)
    monkeypatch.setattr("evaluation.bootstrap._CELLS", 7000)
    assert interval(values) == pytest.approx(whole, abs=1e-3)


def test_interval_errors():
    for values, options in (([], {}), ([float("nan")], {}), ([1.0], {"resamples": 100}), ([1.0], {"level": 95})):
        with pytest.raises(UserError):
            interval(values, **options)


def test_paired_comparison():
    """A small gain on every query is seen by pairing, although the queries differ far more than the systems."""
    rng = np.random.default_rng(0)
    theirs = {f"q{i}": float(rng.random()) for i in range(60)}
    ours = {qid: value + 0.01 + 0.01 * float(rng.random()) for qid, value in theirs.items()}
    found = compare(ours, theirs)
    assert found.differs and 0.01 <= found.low <= found.difference <= found.high <= 0.02
    assert (found.wins, found.losses, found.ties) == (60, 0, 0)
    assert interval(ours)[0] < interval(theirs)[1]
    same = compare(theirs, dict(theirs))
    assert (same.difference, same.low, same.high, same.ties, same.differs) == (0, 0, 0, 60, False)
    with pytest.raises(UserError, match="query 'q0' was judged for one system only"):
        compare({k: v for k, v in ours.items() if k != "q0"}, theirs)


def test_trec_round_trips(tmp_path):
    files.write_run(tmp_path / "a.trec", RANKINGS, tag="mire")
    files.write_qrels(tmp_path / "a.qrels", QRELS)
    assert (tmp_path / "a.trec").read_text(encoding="utf-8").splitlines()[1] == "q1 Q0 d1 2 0.25 mire"
    assert files.read_run(tmp_path / "a.trec") == RANKINGS  # also the order of the tie, and every bit of the scores
    assert files.read_qrels(tmp_path / "a.qrels") == QRELS


@pytest.mark.parametrize("bad", ["a b", "a\tb", "a\u00a0b", " a", ""])
def test_white_space_in_ids(tmp_path, bad):
    path = tmp_path / "file"
    for write in (
        lambda: files.write_run(path, {bad: Ranking(("d",), (1.0,))}),
        lambda: files.write_run(path, {"q": Ranking((bad,), (1.0,))}),
        lambda: files.write_run(path, RANKINGS, tag=bad),
        lambda: files.write_qrels(path, {bad: {"d": 1}}),
        lambda: files.write_qrels(path, {"q": {bad: 1}}),
    ):
        with pytest.raises(UserError, match="white space"):
            write()
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize(
    "text, reason",
    [
        ("q Q0 d 1 0.5", r"run:1: 5 fields instead of 6"),
        ("q Q0 d one 0.5 t", "rank 'one' is not a number"),
        ("q Q0 d 1 nan t", "score nan"),
        ("q Q0 d 1 0.5 t\nq Q0 d 2 0.4 t", "run:2: document 'd' stands twice"),
        ("q Q0 d 1 0.5 t\nq Q0 e 2 0.6 t", "ranks and scores of query 'q' disagree"),
    ],
)
def test_damaged_runs(tmp_path, text, reason):
    (tmp_path / "run").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        files.read_run(tmp_path / "run")


def test_other_file_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        files.read_run(tmp_path / "absent")
    with pytest.raises(UserError, match="query 'q' has no judged document"):
        files.write_qrels(tmp_path / "x", {"q": {}})
    with pytest.raises(UserError, match="score nan"):
        files.write_run(tmp_path / "x", {"q": Ranking(("d",), (float("nan"),))})
    (tmp_path / "y").write_text("q 0 d 1\nq 0 d 2\n", encoding="utf-8")
    with pytest.raises(UserError, match="two grades"):
        files.read_qrels(tmp_path / "y")


def test_per_query_file(tmp_path):
    scores = {"MRR@5": {"q1": 0.5, "q2": 1.0, "q3": 0.0}, "P@1": {"q1": 0.0, "q2": 1.0, "q3": 0.0}}
    rankings = RANKINGS | {"q3": Ranking((), ()), "q2": Ranking(("line\u2028end",), (1.0,))}
    files.write_per_query(tmp_path / "a.jsonl", scores, rankings, top=2)
    first = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first == {"query_id": "q1", "MRR@5": 0.5, "P@1": 0.0, "top": [["d2", 0.1 + 0.2], ["d1", 0.25]]}
    again = files.read_per_query(tmp_path / "a.jsonl")
    assert again.scores == scores
    tops = again.rankings
    assert tops["q1"].ids == ("d2", "d1") and tops["q2"] == rankings["q2"] and tops["q3"].ids == ()
    (tmp_path / "b.jsonl").write_text('\ufeff{"query_id": 5, "MRR@5": 1, "top": [[7, 1]]}', encoding="utf-8")
    assert files.read_per_query(tmp_path / "b.jsonl").rankings == {"5": Ranking(("7",), (1.0,))}
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        files.read_per_query(tmp_path / "b.jsonl")
    twice = '{"query_id": "q", "top": []}\n{"query_id": "q", "top": []}'
    for damaged in ('{"query_id": "q"}', "[]", "{", '{"query_id": "q", "question": 5, "top": []}', twice):
        (tmp_path / "b.jsonl").write_text(damaged, encoding="utf-8")
        with pytest.raises(UserError, match=r"b\.jsonl:\d"):
            files.read_per_query(tmp_path / "b.jsonl")


@pytest.fixture
def small_report():
    def cell(hits: int) -> dict:
        return {metric: {f"q{i}": float(i < hits) for i in range(10)} for metric in report.METRICS}

    return {
        "test": {kind: report.entry(cell(8 - i), 1.25) for i, kind in enumerate(report.KINDS)},
        "test_country": {"question": report.entry(cell(10))},
    }


def test_report_round_trip_and_table(tmp_path, small_report):
    cell = small_report["test"]["image+question"]
    assert cell["queries"] == 10 and cell["Success@5"] == 0.8 and cell["ms per query"] == 1.25
    low, high = cell["Success@5 95%"]
    assert 0.4 <= low < 0.8 < high <= 1
    report.write(tmp_path / "report.json", small_report)
    assert report.read(tmp_path / "report.json") == small_report
    lines = report.table(small_report).splitlines()
    assert len(lines) == 2 + 5 + 1 and len(set(map(len, lines))) == 1  # header, rule, one per split and kind; aligned
    header = [name.strip() for name in lines[0].strip("|").split("|")]
    assert header == ["split", "query", "queries", *report.METRICS, "ms per query"]
    assert f"0.800 [{low:.3f}, {high:.3f}]" in lines[2] and "1.2" in lines[2]
    assert "1.000 [1.000, 1.000]" in lines[-1] and lines[-1].rstrip(" |").endswith("–")


def test_report_errors(tmp_path):
    with pytest.raises(UserError, match="same queries"):
        report.entry({"P@1": {"q": 1.0}, "P@5": {"r": 1.0}})
    with pytest.raises(UserError, match="same queries"):
        report.entry({})
    for wrong in ("[]", '{"test": 1}', '{"test": {"image": 0.5}}', '{"test": {"image": {"P@1": "x"}}}'):
        (tmp_path / "report.json").write_text(wrong, encoding="utf-8")
        with pytest.raises(UserError, match="evaluate again"):
            report.read(tmp_path / "report.json")


def test_results_table():
    assert report.results_table([{"name": "a|b", "x": 0.5}, {"name": "c", "y": 12}]) == (
        "| name |     x |   y |\n| ---- | ----: | --: |\n| a\\|b | 0.500 |   – |\n| c    |     – |  12 |\n"
    )
    with pytest.raises(UserError, match="no rows"):
        report.results_table([])


def test_plot(tmp_path, small_report):
    report.plot(small_report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    report.plot(small_report, tmp_path / "other.png", "MRR@10")
    with pytest.raises(UserError, match=r"'Recall@7' is not in the report; it has queries, Success@1"):
        report.plot(small_report, tmp_path / "no.png", "Recall@7")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.png", "plot.png"]
