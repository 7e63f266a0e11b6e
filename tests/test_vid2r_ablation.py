"""benchmarks/vid2r_ablation.py: its conversations keep to FlagFacts' training split, its tables compare arms."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.test_architecture import ROOT

FLAGS = ROOT / "data" / "flagfacts"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in [n for n in sys.modules if n.startswith("vid2r_")]:
        del sys.modules[name]


def test_conversations_hold_nothing_of_other_splits(benchmarks, tmp_path):
    from vid2r_conversations import SHARES, TURNS, write, written

    found = written(FLAGS)
    splits = {n: json.loads((FLAGS / f"{n}.json").read_text()) for n in
              ("train", "dev", "test", "test_artwork", "test_country")}  # fmt: skip
    train = {record["positive"] for record in splits["train"]}
    passages = dict(
        (row["id"], row) for row in map(json.loads, (FLAGS / "passages.jsonl").read_text(encoding="utf-8").splitlines())
    )
    others = {record["positive"] for name, part in splits.items() if name != "train" for record in part}
    said = "\n".join(turn["value"] for c in found for turn in c["conversations"])
    questions = {turn["value"].removeprefix("<image>\n") for c in found for turn in c["conversations"][::2]}
    wordings = json.loads((FLAGS / "questions.json").read_text())
    assert not questions & {w for field in wordings.values() for part in ("dev", "test") for w in field[part]}
    assert len(questions & {w for field in wordings.values() for w in field["train"]}) > 200
    assert not others & train
    # Facts of 60 characters or more are told apart by their text; equal ones of training may stand there.
    bodies = {id_: passages[id_]["text"].split(". ", 1)[1][:60] for id_ in train | others}
    known = {bodies[id_] for id_ in train}
    assert not [id_ for id_ in others if len(bodies[id_]) == 60 and bodies[id_] not in known and bodies[id_] in said]
    assert sum(body in said for body in known if len(body) == 60) > 1000
    shown = {c["image"] for c in found}
    held_out = {record["image"] for name in ("test_artwork", "test_country") for record in splits[name]}
    assert shown <= {record["image"] for record in splits["train"]} and not shown & held_out
    assert {len(c["conversations"]) % 2 for c in found} == {0} and max(len(c["conversations"]) for c in found) == 8
    assert TURNS == 4 and sum(SHARES.values()) == pytest.approx(1)
    path = write(FLAGS, tmp_path / "a.json")
    assert json.loads(path.read_text()) == found


def test_tables_compare_what_is_finished(benchmarks):
    from vid2r_tables import report

    ids = [record["id"] for record in json.loads(Path(FLAGS / "test.json").read_text())]

    def result(share: float) -> dict:
        values = {id_: float(i < share * len(ids)) for i, id_ in enumerate(ids)}
        return {"splits": {"flagfacts": {"test": {"MRR@10": values}}}}

    runs = {"a": [result(0.2), result(0.4)], "b": [result(0.9)], "c": []}
    names = {"a": "first", "b": "second", "c": "third"}
    made = report(runs, names, {"flagfacts": (("test",), "country")}, (("b", "a"), ("c", "a")), ["MRR@10"], "MRR@10")
    mean, low, high = made["facts"]["means"]["flagfacts test a MRR@10"]
    assert mean == pytest.approx(0.3, abs=0.002) and low < mean < high
    difference, low, high, p, corrected = made["facts"]["pairs"]["flagfacts test b - a"]
    assert difference == pytest.approx(0.6, abs=0.002) and low > 0 and p == corrected < 0.001
    assert len(made["facts"]["pairs"]) == 1 and "| second against first | +0.600 [" in made["table"]
    assert f"| first | 2 | {mean:.3f} [" in made["table"] and made["table"].count("| third") == 0
