"""Data sets: formats, splits, redraws, and what bad records say."""

from __future__ import annotations

import json

import pytest

import dataset
from core.config import check
from core.errors import UserError
from dataset.records_json import read_passages

ROWS = [{"id": i, "image": f"{i}.png", "question": f"q{i}", "document": f"passage {i % 7}", "negs": ["a", "b", "c"]}
        for i in range(20)]  # fmt: skip


def vid2r(tmp_path, rows=ROWS, **changes):
    (tmp_path / "train.json").write_text(json.dumps(rows))
    module = dataset.module("vid2r")
    section = {"name": "vid2r", "path": str(tmp_path / "train.json"), "valid_samples": 5, **changes}
    return module.build(check(module.Config, section, "data"))


def flagfacts(**changes):
    module = dataset.module("flagfacts")
    return module.build(check(module.Config, {"name": "flagfacts", **changes}, "data"))


def contract(data, splits):
    """What every data set keeps: frozen records, qrels for every query, answers in the corpus, deterministic draws."""
    corpus = {d.id for d in data.corpus()}
    for split in splits:
        queries, qrels = data.queries(split), data.qrels(split)
        assert [q.id for q in queries] == list(qrels)
        assert all(set(judged) <= corpus for judged in qrels.values())
    first = data.examples(data.train_split, 0, 7)
    again, later = data.examples(data.train_split, 0, 7), data.examples(data.train_split, 1, 7)
    assert len(first) == len(data.queries(data.train_split))
    assert [first[i] for i in (0, 5, len(first) - 1)] == [again[i] for i in (0, 5, len(first) - 1)]
    for i in range(0, len(first), max(1, len(first) // 20)):
        assert data.qrels(data.train_split)[first[i].query.id][first[i].positive.id] == 1
        assert first[i].positive.id not in {n.id for n in first[i].negatives}
    return first, later


def test_vid2r(tmp_path):
    data = vid2r(tmp_path, hard_negatives=2)
    first, _ = contract(data, ("train", "valid"))
    assert len(data.queries("train")) == 15 and len(data.queries("valid")) == 5
    assert not {q.id for q in data.queries("train")} & {q.id for q in data.queries("valid")}
    assert len(data.corpus()) == 7, "the same passage text is one document"
    assert len(first[0].negatives) == 2
    assert [q.id for q in vid2r(tmp_path).queries("valid")] == [q.id for q in data.queries("valid")]


def test_vid2r_with_a_passages_file(tmp_path):
    lines = [json.dumps({"id": f"p{i}", "text": f"text {i}"}) for i in range(9)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    rows = [{**row, "positive": f"p{row['id'] % 7}"} for row in ROWS]
    data = vid2r(tmp_path, rows, passages=str(tmp_path / "p.jsonl"))
    contract(data, ("train", "valid"))
    assert len(data.corpus()) == 9
    bad = vid2r(tmp_path, [{**row, "positive": "p99"} for row in ROWS], passages=str(tmp_path / "p.jsonl"))
    with pytest.raises(UserError, match="names passage 'p99'"):
        bad.qrels("train")


@pytest.mark.parametrize(("rows", "message"), [
    ([{"id": 1, "question": "x"}], r"record 0 .* has no \['document'\]"),
    ({"id": 1}, "holds a dict; write a JSON list"),
    ([ROWS[0], *ROWS], "id '0' stands twice"),
])  # fmt: skip
def test_bad_records(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        vid2r(tmp_path, rows, valid_path=str(tmp_path / "train.json")).queries("train")


def test_too_few_records_or_negatives(tmp_path):
    with pytest.raises(UserError, match=r"valid_samples is 20 but .* has 20"):
        vid2r(tmp_path, valid_samples=20).queries("train")
    with pytest.raises(UserError, match=r"has 3 'negs', data\.hard_negatives asks for 4"):
        vid2r(tmp_path, hard_negatives=4).examples("train", 0, 0)[0]


def test_passages_as_csv_and_bad_lines(tmp_path):
    (tmp_path / "a.csv").write_text('kid,text\n7,"one, two"\n8,three\n')
    assert [(d.id, d.text) for d in read_passages(tmp_path / "a.csv")] == [("7", "one, two"), ("8", "three")]
    (tmp_path / "b.jsonl").write_text('{"id": "1", "text": "x"}\n{"id": "2"}\n')
    with pytest.raises(UserError, match="passage 2 of"):
        read_passages(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text('{"id": "1", "text": "x"}\n{"id": "1", "text": "y"}\n')
    with pytest.raises(UserError, match="'1' stands twice"):
        read_passages(tmp_path / "c.jsonl")


def test_flagfacts():
    data = flagfacts()
    first, later = contract(data, ("train", "dev", *data.test_splits))
    assert len(data.corpus()) > 6000
    assert [first[i].query.text for i in range(50)] != [later[i].query.text for i in range(50)], "wordings are redrawn"
    assert [first[i].query.images for i in range(50)] != [later[i].query.images for i in range(50)]
    for i in range(0, 200, 10):
        same_field, same_country = first[i].negatives
        meta = first[i].positive.meta
        assert same_field.meta["field"] == meta["field"] and same_field.meta["country"] != meta["country"]
        assert same_country.meta["country"] == meta["country"]


def test_flagfacts_never_trains_on_what_the_tests_hold_back():
    data = flagfacts()
    held_country = {q.meta["country"] for q in data.queries("test_country")}
    tested = {d for split in data.test_splits for judged in data.qrels(split).values() for d in judged}
    held_wordings = {w for field in data.questions.values() for w in field["test"]}
    for epoch in range(2):
        for example in data.examples("train", epoch, 0):
            assert example.query.meta["country"] not in held_country
            assert example.positive.id not in tested
            assert "iso-flags" not in example.query.images[0].id
            assert example.query.text not in held_wordings


@pytest.mark.parametrize(("modality", "text", "images"), [("question", True, 0), ("image", False, 1)])
def test_modalities(modality, text, images):
    for query in flagfacts(modality=modality).queries("test")[:5]:
        assert bool(query.text) == text and len(query.images) == images


def test_limit_keeps_answers_in_the_corpus():
    data = flagfacts(limit=5)
    contract(data, ("train", *data.test_splits))
    assert len(data.queries("test")) == 5 and len(data.corpus()) < 50
    shown = {i.id for split in ("train", "dev", *data.test_splits) for q in data.queries(split) for i in q.images}
    drawn = {e.query.images[0].id for epoch in range(5) for e in data.examples("train", epoch, 0)}
    assert shown | drawn <= {i.id for i in data.images()}


def test_unknown_split():
    with pytest.raises(UserError, match="no split 'nothing'"):
        flagfacts().queries("nothing")
