"""Your own data, BEIR folders and FashionIQ: what is read, what is drawn, and what wrong files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import dataset
import train_retrieval
from core.config import check
from core.errors import UserError
from dataset import splits
from dataset.qrels import read_qrels
from runs import check_data, evaluate_retrieval, run_indexer
from tests import tiny
from tests.data_cases_own import jsonl, section
from tests.test_dataset import contract

ROOT = Path(__file__).resolve().parents[1]


def built(name, root, **changes):
    return opened({**section(name, root), **changes})


def opened(config):
    module = dataset.module(config["name"])
    return module.build(check(module.Config, config, "data"))


# ---- your own data


def test_ids_may_be_numbers_and_positives_are_redrawn(tmp_path):
    data = built("jsonl", tmp_path)
    first, _ = contract(data, ("train", "valid", "test"))
    assert [d.id for d in data.corpus()] == ["0", "1", "2", "3", "4", "shown"]
    assert data.corpus()[1].text == "Title 1 passage 1 about fish" and data.corpus()[1].title == "Title 1"
    assert data.corpus()[5].images[0].path == str(tmp_path / "jsonl" / "images" / "3.png")
    drawn = {data.examples("train", epoch, 0)[0].positive.id for epoch in range(20)}
    assert drawn == set(data.qrels("train")[first[0].query.id]) and len(drawn) == 2
    assert {len(q.images) for q in data.queries("train")} == {0, 1}


def test_a_qrels_file_judges_its_split(tmp_path):
    data = built("jsonl", tmp_path)
    assert data.qrels("test") == {"t0": {"0": 1}, "t1": {"2": 2}, "t2": {"shown": 1}, "t3": {"4": 1}}
    assert data.judge(data.queries("test")[0], data.corpus()[2])
    assert not data.judge(data.queries("test")[0], data.corpus()[1])
    (tmp_path / "train.tsv").write_text("0\t3\n1\t3\t1\n")
    data = built("jsonl", tmp_path, qrels=str(tmp_path / "train.tsv"))
    found = {**data.qrels("train"), **data.qrels("valid")}
    assert len(found) == 10 and found["0"] == found["1"] == {"3": 1} and found["2"] == {}
    with pytest.raises(UserError, match=r"data\.valid_qrels is given, but data\.valid_path is not"):
        built("jsonl", tmp_path, valid_qrels="x").qrels("train")


def test_hard_negatives(tmp_path):
    data = built("jsonl", tmp_path, hard_negatives=2)
    for example in data.examples("train", 0, 0):
        assert len({n.id for n in example.negatives} | {example.positive.id}) == 3
    with pytest.raises(UserError, match=r"has 2 hard negatives, data\.hard_negatives asks for 3"):
        built("jsonl", tmp_path, hard_negatives=3).examples("train", 0, 0)[0]
    config = section("jsonl", tmp_path, hard_negatives=1, valid_samples=1)
    rows = [{"query_id": i, "query_text": "x", "positive_document_ids": ["0"], "negative_document_ids": ["gone"]}
            for i in range(2)]  # fmt: skip
    jsonl(Path(config["path"]), rows)
    with pytest.raises(UserError, match="names passage 'gone', which"):
        opened(config).examples("train", 0, 0)[0]


def test_questions_without_a_known_answer_do_not_train_and_are_told(tmp_path, capsys):
    config = section("jsonl", tmp_path, valid_samples=1)
    rows = [{"query_id": i, "query_text": "x", "positive_document_ids": found}
            for i, found in enumerate((["0"], ["gone"], [], ["1", "gone"], ["2"]))]  # fmt: skip
    jsonl(Path(config["path"]), rows)
    data = opened(config)
    trained = {e.query.id for epoch in range(9) for e in data.examples("train", epoch, 0)}
    lacking = {q.id for q in data.queries("train")} - trained
    assert lacking and lacking <= {"1", "2"}
    assert {e.positive.id for epoch in range(9) for e in data.examples("train", epoch, 0)} <= {"0", "1", "2"}
    assert f"{len(lacking)} of 4 questions of 'train' have no answer in" in capsys.readouterr().err
    jsonl(Path(config["path"]), [{"query_id": i, "positive_document_ids": ["gone"]} for i in range(3)])
    with pytest.raises(UserError, match=r"2 of 2 questions .* names 'gone'; give the passages file that belongs to"):
        opened(config).examples("train", 0, 0)


def test_splits_that_are_not_given(tmp_path):
    config = section("jsonl", tmp_path, path=None)
    data = opened(config)
    assert (data.valid_split, data.test_splits) == ("test", ("test",)) and len(data.queries("test")) == 4
    with pytest.raises(UserError, match=r"data\.path is not given, so there is no split 'train'"):
        data.queries("train")
    with pytest.raises(UserError, match=r"data\.valid_path is not given, so there is no split 'valid'"):
        data.queries("valid")
    with pytest.raises(UserError, match=r"none of data\.path, data\.valid_path and data\.test_path is given"):
        opened({**config, "test_path": None})
    with pytest.raises(UserError, match="no split 'dev'"):
        data.queries("dev")
    data = built("jsonl", tmp_path, test_path=None)
    assert data.test_splits == ("valid",) and data.qrels("valid")


def test_held_out_questions_are_the_same_every_time(tmp_path):
    first, again = (built("jsonl", tmp_path) for _ in range(2))
    held = [q.id for q in first.queries("valid")]
    assert held == [q.id for q in again.queries("valid")] and len(held) == 3
    assert sorted(held + [q.id for q in first.queries("train")]) == [str(i) for i in range(10)]
    with pytest.raises(UserError, match=r"data\.valid_samples is 10 but .* has 10 questions"):
        built("jsonl", tmp_path, valid_samples=10).queries("train")


def test_limit_keeps_the_answers(tmp_path):
    data = built("jsonl", tmp_path, limit=1)
    contract(data, ("train", "valid", "test"))
    assert len(data.queries("test")) == 1 and 2 <= len(data.corpus()) < 6 + 1


@pytest.mark.parametrize(("row", "message"), [
    ({"query_text": "x"}, "line 1 of .*it has no query_id or _id or id"),
    ({"query_id": 1.5}, "line 1 of .*the id 1.5, which is no string and no whole number"),
    ({"query_id": 1, "query_text": 5}, "question '1' has the query_text 5; write a string"),
    ({"query_id": 1, "query_image": {"bytes": 1}}, "question '1' has the query_image .*; write a string or a list"),
    ({"query_id": 1, "answers": [None]}, "question '1' has the answers .None.; write a string or a list"),
])  # fmt: skip
def test_wrong_questions(tmp_path, row, message):
    config = section("jsonl", tmp_path)
    jsonl(Path(config["test_path"]), [row])
    with pytest.raises(UserError, match=message):
        list(opened(config).queries("test"))


@pytest.mark.parametrize(("row", "message"), [
    ({"docid": 1, "text": 5}, "line 1 of .*it has the text 5, which is no string"),
    ({"docid": 1, "image": [1]}, r"line 1 of .*it has the image \[1\]; write a path"),
    ({"text": "x"}, "line 1 of .*it has no docid or _id or id or kid"),
])  # fmt: skip
def test_wrong_passages(tmp_path, row, message):
    config = section("jsonl", tmp_path)
    jsonl(Path(config["passages"]), [row])
    with pytest.raises(UserError, match=message):
        list(opened(config).corpus())


def test_repeated_ids(tmp_path):
    config = section("jsonl", tmp_path)
    jsonl(Path(config["test_path"]), [{"query_id": "a", "query_text": "x"}, {"query_id": "a", "query_text": "y"}])
    with pytest.raises(UserError, match="id 'a' stands twice"):
        opened(config).queries("test")


def test_several_pictures_and_other_names(tmp_path):
    config = section("jsonl", tmp_path)
    jsonl(Path(config["test_path"]), [{"id": "t0", "question": "what", "image": ["0.png", "1.png"],
                                       "instruction": "Look:"}])  # fmt: skip
    (query,) = opened(config).queries("test")
    assert (query.text, query.instruction, [i.id for i in query.images]) == ("what", "Look:", ["0.png", "1.png"])


def test_passages_as_csv(tmp_path):
    config = section("jsonl", tmp_path, passages=str(tmp_path / "p.csv"))
    (tmp_path / "p.csv").write_text('docid,title,text\n0,A,"one, two"\n2,,three\n')
    assert [(d.id, d.text) for d in opened(config).corpus()] == [("0", "A one, two"), ("2", "three")]


def test_reading_through_gives_what_single_rows_give(tmp_path, monkeypatch):
    data = built("oven", tmp_path)
    for split in ("train", "valid", "test"):
        for sparse in (0, 10**6):  # read through the files, or seek each row
            monkeypatch.setattr(splits, "SPARSE", sparse)
            found = data.queries(split)
            assert [q.id for q in found] == [found[i].id for i in range(len(found))] == [q.id for q in found[:]]


# ---- qrels files


@pytest.mark.parametrize(("content", "expected"), [
    ("q1 0 d1 1\nq1 0 d2 0\n\nq2 0 d1 3\n", {"q1": {"d1": 1}, "q2": {"d1": 3}}),
    ("q1\tQ0\td 1\t1\n", {"q1": {"d 1": 1}}),
    ("query-id\tcorpus-id\tscore\nq1\td1\t2\n", {"q1": {"d1": 2}}),
    ("q1\td1\n", {"q1": {"d1": 1}}),
    ("q1\td1\t-1\n", {"q1": {}}),
    ("\ufeffq1\td1\t1.0\nq1\td1\t1\n", {"q1": {"d1": 1}}),
])  # fmt: skip
def test_qrels(tmp_path, content, expected):
    (tmp_path / "q").write_text(content, encoding="utf-8")
    assert read_qrels(tmp_path / "q") == expected


@pytest.mark.parametrize(("content", "message"), [
    ("q1 0 d1 1\nq1 0 d1\n", "line 2 of the qrels file .* is 'q1 0 d1'; write"),
    ("q1\td1\tyes\n", "line 1 of"),
    ("q1\td1\t0.5\n", "line 1 of"),
    ("q1\td1\tinf\n", "line 1 of"),
    ("q1\t\t1\n", "line 1 of"),
    ("q1\td1\t1\nq1\td1\t2\n", "line 2 of .* the relevance 2 for query 'q1', an earlier one 1"),
])  # fmt: skip
def test_wrong_qrels(tmp_path, content, message):
    (tmp_path / "q").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_qrels(tmp_path / "q")


def test_unreadable_qrels(tmp_path):
    with pytest.raises(UserError, match=r"qrels file .* does not exist"):
        read_qrels(tmp_path / "gone")
    (tmp_path / "latin").write_bytes(b"q1\t\xe9\n")
    with pytest.raises(UserError, match=r"qrels file .* is not UTF-8"):
        read_qrels(tmp_path / "latin")


# ---- BEIR


def test_beir(tmp_path):
    data = built("beir_like", tmp_path)
    contract(data, ("train", "valid", "test"))
    assert data.qrels("test") == {"q6": {"p1": 2, "p2": 1}, "q7": {"p4": 1}}
    assert data.queries("test")[1].images[0].path == str(tmp_path / "beir_like" / "images" / "q7.png")
    assert [ref.id for ref in data.images()] == ["images/p4.png", "images/q7.png"]
    assert not {q.id for q in data.queries("train")} & {q.id for q in data.queries("valid")}
    assert data.corpus()[0].text == "T0 text 0"
    contract(built("beir_like", tmp_path, limit=1), ("train", "valid", "test"))


def test_beir_uses_the_dev_split_where_there_is_one(tmp_path):
    config = section("beir_like", tmp_path)
    folder = Path(config["path"])
    (folder / "qrels" / "dev.tsv").write_text("q5\tp0\t1\n")
    data = opened(config)
    assert data.valid_split == "dev" and len(data.queries("train")) == 6
    (folder / "qrels" / "train.tsv").unlink()
    (folder / "qrels" / "dev.tsv").unlink()
    data = opened(config)
    assert (data.valid_split, data.test_splits) == ("test", ("test",))
    with pytest.raises(UserError, match=r"has no qrels/train\.tsv, so no split 'train'; it has test"):
        data.examples("train", 0, 0)


def test_beir_files_that_do_not_fit(tmp_path):
    config = section("beir_like", tmp_path)
    qrels = Path(config["path"]) / "qrels"
    (qrels / "test.tsv").write_text("q99\tp0\t1\n")
    with pytest.raises(UserError, match=r"the qrels name query 'q99', which .*queries\.jsonl' lacks"):
        opened(config).queries("test")[0]
    (qrels / "train.tsv").write_text("q0\tp99\t1\nq1\tp99\t1\nq2\tp99\t1\n")
    with pytest.raises(UserError, match=r"query 'q\d' has an answer that .*corpus\.jsonl' lacks"):
        opened(config).examples("train", 0, 0)[0]
    with pytest.raises(UserError, match=r"data\.valid_samples is 3 but .* has 3 queries"):
        opened({**config, "valid_samples": 3}).queries("valid")


# ---- FashionIQ


def test_fashioniq(tmp_path):
    data = built("fashioniq", tmp_path)
    contract(data, ("train", "valid", "test"))
    assert all(d.images and not d.text for d in data.corpus())
    assert data.qrels("test")["B0_0"] == {"B1": 1} and len(data.images()) == 5
    assert data.queries("test")[0].images[0].path == str(tmp_path / "fashioniq" / "images" / "B0.png")
    only = built("fashioniq", tmp_path, path=None, modality="image")
    assert [q.text for q in only.queries("test")] == [""] * 4
    config = section("fashioniq", tmp_path)
    Path(config["test_path"]).write_text(json.dumps({"q_text": "x", "q_img": None, "positive": "B0"}) + "\n")
    with pytest.raises(UserError, match=r"line 1 .*q_img None"):
        opened(config).queries("test")[0]


# ---- the page


def written_as_in_the_page(root: Path) -> None:
    """The three files of docs/DATA.md, "Your own data", and a picture for each name in them."""
    page = (ROOT / "docs" / "DATA.md").read_text(encoding="utf-8")
    own = page.split("## Your own data")[1].split("\n## ")[0]
    for name, content in re.findall(r"`data/my_data/(\w+\.jsonl)`[^`]*```json\n(.*?)```", own, re.S):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
        for shown in re.findall(r'"query_image": "([^"]+)"', content):
            tiny.image(root / "images", shown)


def test_three_files_become_a_table(tmp_path, monkeypatch, capsys):
    """The commands of the page on its files and cfgs/my_data.yaml, with tiny towers."""
    written_as_in_the_page(tmp_path / "data" / "my_data")
    model = tiny.model_section("mire", tmp_path / "towers", frozen=["text", "vision"])
    raw = yaml.safe_load((ROOT / "cfgs" / "my_data.yaml").read_text())
    small = {"steps": 2, "batch_size": 2, "eval_every": 1}
    raw |= {"model": model, "run": {**raw["run"], "device": "cpu"}, "train": {**raw["train"], **small}}
    (tmp_path / "my_data.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    args = ["--config_path", "my_data.yaml", "data.valid_samples=1"]
    assert check_data.run(args) == 0
    assert train_retrieval.run(args) is None
    run_indexer.run(args)
    evaluate_retrieval.run(args)
    assert "Recall@5" in capsys.readouterr().out
    (row,) = json.loads(Path("experiments/my_data/report.json").read_text())["test"].values()
    assert row["queries"] == 2 and row["Recall@5"] == 1, "three passages are all found"
