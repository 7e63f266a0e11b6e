"""Data sets: formats, splits, redraws, and what bad records say."""

from __future__ import annotations

import json

import pytest

import dataset
from core.config import check
from core.errors import UserError
from core.protocols import RetrievalDataset
from core.records import Document
from dataset.records_json import limited, read_passages, read_records
from runs.common import corpus_of
from tests import data_cases_own, triviawiki_case
from tests.data_cases import CASES as PUBLISHED
from tests.m2kr_case import tiny_m2kr, tiny_okvqa
from tests.wikilens_case import tiny_wikilens

CASES = {**PUBLISHED, **data_cases_own.CASES, "triviawiki": triviawiki_case.section}
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
    for split in splits:
        corpus = {d.id for d in corpus_of(data, split)}
        queries, qrels = data.queries(split), data.qrels(split)
        assert [q.id for q in queries] == list(qrels)
        assert all(set(judged) <= corpus for judged in qrels.values())
    first = data.examples(data.train_split, 0, 7)
    again, later = data.examples(data.train_split, 0, 7), data.examples(data.train_split, 1, 7)
    assert len(first) == len(data.queries(data.train_split))
    assert [first[i] for i in (0, len(first) // 2, -1)] == [again[i] for i in (0, len(first) // 2, -1)]
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
    ([ROWS[0], "text"], r"record 1 of .* is 'text'; write an object"),
    ([{**ROWS[0], "question": None}], r"record 0 .*\(id 0\) has the question None; write a string"),
    ([{**ROWS[0], "document": 5}], r"record 0 .*\(id 0\) has the document 5; write a string"),
    ([{**ROWS[0], "id": None}], "record 0 .* has no id"),
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
    with pytest.raises(UserError, match="line 2 of"):
        read_passages(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text('{"id": "1", "text": "x"}\n{"id": "1", "text": "y"}\n')
    with pytest.raises(UserError, match="'1' stands twice"):
        read_passages(tmp_path / "c.jsonl")


@pytest.mark.parametrize(("content", "message"), [
    (b'{"id": "1", "text": "x"}\n[1]\n', r"line 2 of .*\[1\], not an object"),
    (b'{"id": "1", "text": null}\n', r"line 1 of .*it has the text None"),
    (b'{"id": null, "text": "x"}\n', "line 1 of .* has no id"),
    (b'{"id": "1", "text": "x", "title": 3}\n', r"line 1 of .*it has the title 3"),
    (b'{"id": "1", "text": "\xe9"}\n', "is not UTF-8"),
])  # fmt: skip
def test_bad_passages(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_passages(tmp_path / "p.jsonl")


def test_bad_files(tmp_path):
    (tmp_path / "p.csv").write_text("id,text\n1," + "x" * 200_000 + "\n")
    with pytest.raises(UserError, match=r"line 2 of .*field larger than field limit"):
        read_passages(tmp_path / "p.csv")
    (tmp_path / "latin.json").write_bytes(b'[{"id": "\xe9"}]')
    for read in (read_passages, lambda path: read_records(path, ("id",))):
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path)
    with pytest.raises(UserError, match="is not UTF-8"):
        read_records(tmp_path / "latin.json", ("id",))


def test_titles(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "1", "text": "x", "title": "T", "more": 2}\n{"id": "2", "text": "y"}\n')
    first, second = read_passages(tmp_path / "p.jsonl")
    assert (first.title, first.meta, second.title) == ("T", {"more": 2}, "")


@pytest.mark.parametrize("name", dataset.names())
def test_every_data_set_has_what_the_protocol_says(name, tmp_path):
    if name == "vid2r":
        data = vid2r(tmp_path)
    elif name == "wikilens":
        tiny_wikilens(tmp_path / "wikilens")
        data = dataset.build(dataset.module(name).Config(limit=6, root=str(tmp_path / "wikilens")))
    elif name == "m2kr":
        root = str(tiny_m2kr(tmp_path))
        data = dataset.build(dataset.module(name).Config(limit=6, subset="EVQA", path=root, image_dir=root))
    elif name == "okvqa_flmr":
        root = str(tiny_okvqa(tmp_path))
        places = {"path": f"{root}/data", "passages": f"{root}/passages", "image_dir": f"{root}/images"}
        data = dataset.build(dataset.module(name).Config(limit=6, **places))
    elif name in CASES:
        section = {"name": name, "limit": 6, **CASES[name](tmp_path)}
        data = dataset.build(check(dataset.module(name).Config, section, "data"))
    else:
        data = dataset.build(dataset.module(name).Config(limit=6))
    assert isinstance(data, RetrievalDataset)
    splits = {data.train_split, data.valid_split, *data.test_splits}
    if not getattr(data, "named", True):
        splits.discard("test")  # judged by answers alone: its questions name no passages
    contract(data, sorted(splits))
    images = [image.key for image in data.images()]
    shown = {image.key for split in splits for query in data.queries(split) for image in query.images}
    assert len(images) == len(set(images)) and shown <= set(images)


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


def test_limited_passages_keep_their_order():
    passages = [Document(id_) for id_ in "abcdef"]
    assert [d.id for d in limited(passages, {"e", "b"}, 2)] == ["a", "b", "c", "e"]
    assert limited(passages, set("abcdef"), 2) == limited(passages, {"c"}, 9) == passages


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
