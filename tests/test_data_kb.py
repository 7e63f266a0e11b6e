"""InfoSeek, OVEN and Encyclopedic VQA as released, over packed knowledge bases that are read line by line."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.answers import Range
from core.errors import UserError
from core.records import Document
from dataset import unpacked
from dataset.infoseek import answers
from dataset.wiki6m import Wiki6M
from runs.training import some_passages
from tests.data_cases_own import ENTITIES, LANDMARK, jsonl, section, wiki6m
from tests.test_data_own import built, opened
from tests.test_dataset import contract

# ---- Wiki6M


def test_wiki6m_is_unpacked_once_and_the_first_of_an_id_counts(tmp_path, capsys):
    path = wiki6m(tmp_path)
    corpus = Wiki6M(path)
    assert [d.text for d in corpus] == [f"title: {t} content: {c}".strip() for _, t, c in ENTITIES]
    assert corpus.get("Q2").title == "Nile" and corpus.get("Q99") is None and "Q3" in corpus
    told = capsys.readouterr().err
    assert "is unpacked once into" in told and "repeats 1 rows; of each id the first counts" in told
    unpacked_file = Path(path).with_suffix("")
    before = unpacked_file.stat().st_mtime_ns
    assert len(Wiki6M(path)) == len(Wiki6M(unpacked_file)) == 3 and unpacked_file.stat().st_mtime_ns == before
    Path(path).unlink()
    assert len(Wiki6M(path)) == 3, "the packed file is not needed any more"


def test_damaged_packages(tmp_path):
    path = Path(wiki6m(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"is damaged .*; download it again"):
        Wiki6M(path)
    assert [p.name for p in path.parent.iterdir() if p.suffix != ".lock"] == [path.name], "no half file is left"
    path.write_bytes(b"no gzip")
    with pytest.raises(UserError, match="is damaged"):
        Wiki6M(path)
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        Wiki6M(path)


def test_a_newer_package_is_unpacked_again(tmp_path):
    path = Path(wiki6m(tmp_path))
    Wiki6M(path)
    path.write_bytes(gzip.compress(json.dumps({"wikidata_id": "Q9", "wikipedia_title": "New"}).encode()))
    os.utime(path, (2e9, 2e9))
    assert [d.id for d in Wiki6M(path)] == ["Q9"]


# ---- InfoSeek


def test_infoseek(tmp_path):
    data = built("infoseek", tmp_path)
    first, _ = contract(data, ("train", "valid", "test"))
    assert data.qrels("test")["infoseek_val_00000001"] == {"Q2": 1}
    assert {Path(i.path).suffix for i in data.images()} == {".jpg", ".JPEG"}
    assert all(Path(i.path).is_file() for i in data.images())
    assert first[0].positive.text.startswith("title: ")
    small = built("infoseek", tmp_path, limit=1)
    assert len(small.queries("train")) == 1 and set(small.qrels("train")[small.queries("train")[0].id]) <= {
        d.id for d in small.corpus()
    }


@pytest.mark.parametrize(("number", "passage", "holds"), [
    (0, "the capital of EUROPEAN things", True),  # a substring, as MIRe judges InfoSeek
    (0, "nothing", False),
    (1, "1,200 km long", True),
    (1, "between 1,320.0 and more", True),
    (1, "1,321 km", False),
    (1, "in 12 hundred", False),
])  # fmt: skip
def test_infoseek_judges_by_text_or_by_range(tmp_path, number, passage, holds):
    data = built("infoseek", tmp_path)
    assert data.judge(data.queries("test")[number], Document("d", passage)) == holds


def test_infoseek_answers():
    assert answers(("q", {"answer": "x"})) == ("x",)
    assert answers(("q", {"answer": ["x", " "], "answer_eval": []})) == ("x",)
    assert answers(("q", {"answer": ["2"], "answer_eval": {"wikidata": 2, "range": [3, 1.5]}})) == (Range(1.5, 3),)
    assert answers(("q", {})) == ()
    with pytest.raises(UserError, match="question 'q' has the answer_eval 5"):
        answers(("q", {"answer_eval": [5]}))


def test_infoseek_without_a_map_or_an_entity(tmp_path, capsys):
    config = section("infoseek", tmp_path, kb_path=None, valid_samples=1)
    rows = [{"data_id": f"a{i}", "image_id": "oven_00000000", "question": "x", "answer": "x", "entity_id": id_}
            for i, id_ in enumerate(("Q1", "Q77", None, "Q2", "Q1"))]  # fmt: skip
    jsonl(Path(config["path"]), rows)
    data = opened(config)
    examples = data.examples("train", 0, 0)
    assert {e.query.id for e in examples} <= {"a0", "a3", "a4"} and len(examples) < len(data.queries("train"))
    assert "have no answer in" in capsys.readouterr().err
    everything = {**data.qrels("train"), **data.qrels("valid")}
    assert everything["a2"] == {} and everything["a1"] == {"Q77": 1}, "they count, as not found"


# ---- OVEN


def test_oven_takes_several_files(tmp_path):
    data = built("oven", tmp_path)
    contract(data, ("train", "valid", "test"))
    assert [q.id.split("_")[1] for q in data.queries("test")] == ["entity"] * 5 + ["query"] * 3
    assert len(data.queries("train")) + len(data.queries("valid")) == 8
    assert len(data.images()) == 3 and all(Path(i.path).is_file() for i in data.images())
    single = built("oven", tmp_path, test_path=section("oven", tmp_path)["test_path"][1])
    assert len(single.queries("test")) == 3


def test_missing_pictures_are_named_where_they_were_looked_for(tmp_path):
    config = section("oven", tmp_path)
    for file in (tmp_path / "oven" / "images" / "00").iterdir():
        file.unlink()
    (query, *_) = opened(config).queries("test")
    assert query.images[0].path == str(tmp_path / "oven" / "images" / "oven_00000000.jpg")


# ---- Encyclopedic VQA

ROBIN, TOWER = "https://en.wikipedia.org/wiki/Robin", "https://en.wikipedia.org/wiki/Tower"


def test_evqa(tmp_path):
    data = built("evqa", tmp_path)
    contract(data, ("train", "valid", "test"))
    assert [d.id for d in data.corpus()] == [f"{ROBIN}#0", f"{ROBIN}#1", f"{ROBIN}#3", f"{TOWER}#0"], "no empty section"
    assert data.corpus()[1].text == 'Robin: Food: It eats worms, "berries" \u00e9.'
    assert data.qrels("test") == {
        "test_0": {f"{ROBIN}#1": 1}, "test_1": {f"{TOWER}#0": 1},
        "test_2": {f"{ROBIN}#1": 1, f"{ROBIN}#3": 1},  # no section is named: those that hold an answer
    }  # fmt: skip
    assert data.judge(data.queries("test")[2], data.corpus()[2]) and not data.judge(
        data.queries("test")[2], data.corpus()[0]
    )


def test_evqa_pictures(tmp_path):
    data = built("evqa", tmp_path)
    shown = {data.examples("train", epoch, 0)[0].query.images[0].id for epoch in range(12)}
    assert shown == {"inat/train/001_Robin/7.jpg", "inat/train/001_Robin/8.jpg"}, "training draws one of them"
    assert data.queries("test")[0].images[0].id == "inat/train/001_Robin/7.jpg"
    assert data.queries("test")[1].images[0].id == f"landmarks/{LANDMARK}"
    assert len(data.images()) == 3 and all(Path(i.path).is_file() for i in data.images())
    config = section("evqa", tmp_path, inat_map=[])
    with pytest.raises(UserError, match=r"picture '7' of question 'test_0' is in none of data.inat_map \[\]"):
        opened(config).queries("test")[0]


def test_evqa_kinds(tmp_path):
    data = built("evqa", tmp_path, kinds=["2_hop"])
    assert data.qrels("test") == {"test_3": {f"{ROBIN}#3": 1, f"{TOWER}#0": 1}}
    assert [len(built("evqa", tmp_path, kinds=k).queries("test")) for k in (["templated"], ["templated", "2_hop"])] == [
        1,
        2,
    ]


def test_evqa_reads_the_knowledge_base_unzipped(tmp_path):
    config = section("evqa", tmp_path)
    with zipfile.ZipFile(config["passages"]) as archive:
        archive.extractall(tmp_path)
    data = opened({**config, "passages": str(tmp_path / "encyclopedic_kb_wiki.json")})
    assert len(data.corpus()) == 4


def test_evqa_wrong_knowledge_base(tmp_path):
    config = section("evqa", tmp_path)
    place = tmp_path / "kb.json"
    for content, message in (
        ('{"u": {"title": "T", "section_titles": ["a"], "section_texts": []}}', "entry 'u' of .* do not fit"),
        ('{"u": {"title": "T"', "is not valid JSON near|ends in the middle"),
        ("[1]", "is not one JSON object"),
        ("", "ends in the middle"),
    ):
        place.write_text(content)
        with pytest.raises(UserError, match=message):
            opened({**config, "passages": str(place)}).corpus()
        assert not place.with_name("kb.sections.jsonl").exists()


# ---- one huge JSON object


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
def test_members_across_blocks(block, monkeypatch):
    value = {"a": {"x": [1, "}", '\u00e9\U0001f600\\"']}, "b": 12345, "c": None, "": [], 'd"': "text", "e": -1.5e3}
    monkeypatch.setattr(unpacked, "BLOCK", block)
    for text in (json.dumps(value), json.dumps(value, indent=2, ensure_ascii=False), "\ufeff" + json.dumps(value)):
        assert dict(unpacked.members(io.BytesIO(text.encode()), "x")) == value
    assert dict(unpacked.members(io.BytesIO(b"{ }"), "x")) == {}
    for wrong in ('{"a": 1, }', '{"a" 1}', '{"a": 1', '{"a": tru}', '{"a": "x'):
        with pytest.raises(UserError):
            dict(unpacked.members(io.BytesIO(wrong.encode()), "x"))
    with pytest.raises(UserError, match="is not UTF-8"):
        dict(unpacked.members(io.BytesIO(b'{"a": "\xe9"}'), "x"))


def test_validation_reads_only_what_it_needs_of_a_large_corpus(tmp_path):
    data = built("infoseek", tmp_path)
    corpus = data.corpus()
    settings = SimpleNamespace(eval=SimpleNamespace(valid_documents=2))
    for passages in (corpus, list(corpus)):
        assert [d.id for d in some_passages(passages, {"Q3", "gone"}, settings)] == ["Q3", "Q1"]
        assert {d.id for d in some_passages(passages, {"Q1", "Q2", "Q3"}, settings)} == {"Q1", "Q2", "Q3"}
