"""M2KR and FLMR's OK-VQA: layouts, what is asked, what is relevant, bad files; and the commands that judge them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

import train_retrieval
from core.config import check
from core.errors import UserError
from dataset import m2kr, okvqa_flmr
from dataset.m2kr_instructions import TEMPLATES
from dataset.m2kr_rows import Rows, find
from evaluation import against
from runs import evaluate_retrieval, report, run_indexer
from runs.judging import Judges
from tests import m2kr_case, tiny
from tests.m2kr_case import COLORS, rows, tiny_m2kr, tiny_okvqa, write_split
from tests.test_dataset import contract

ROOT = Path(__file__).resolve().parents[1]


def build(root: Path, subset="EVQA", **changes) -> m2kr.M2KR:
    section = {"name": "m2kr", "subset": subset, "path": str(root), "image_dir": str(root / "images"), **changes}
    return m2kr.build(check(m2kr.Config, section, "data"))


@pytest.mark.parametrize("layout", ["parquet", "arrow", "jsonl"])
@pytest.mark.parametrize("subset", get_args(m2kr.Subset))
def test_every_subset_in_every_layout(subset, layout, tmp_path):
    data = build(tiny_m2kr(tmp_path, subset, layout), subset, random_negatives=2)
    first, _ = contract(data, ("train", "valid", "test"))
    query, row = data.queries("test")[1], rows("test", subset=subset)[1]
    assert (query.id, query.text, query.task) == (row["question_id"], row["question"] or "", subset)
    assert query.instruction == m2kr_case.INSTRUCTION and query.meta["answers"] == ("GREEN ",)
    shown = {None: [], "inat/1.png": ["inat/1.png"]}[row["img_path"]]
    shown = ["1.png"] if subset == "Infoseek" else shown
    assert [Path(ref.path) for ref in query.images] == [tmp_path / "images" / path for path in shown]
    assert data.qrels("test")[query.id] == {"p1": 1, "p4": 1}
    assert [d.id for d in data.corpus()] == [f"p{i}" for i in range(9)]
    assert all(len({n.id for n in first[i].negatives} - data.qrels("train")[first[i].query.id].keys()) == 2
               for i in range(6))  # fmt: skip
    folder = "" if subset == "Infoseek" else "inat/"
    expected = [] if subset == "MSMARCO" else [f"{subset}/{folder}{i}.png" for i in range(3)]
    assert [image.key for image in data.images()] == expected


def test_instructions(tmp_path):
    root = tiny_m2kr(tmp_path)
    drawn = build(root)
    seen = [{drawn.examples("train", epoch, 0)[i].query.instruction for i in range(6)} for epoch in range(40)]
    assert set().union(*seen) == set(TEMPLATES["EVQA"]) and seen[0] != seen[1]
    assert {q.instruction for split in ("valid", "test") for q in drawn.queries(split)} == {m2kr_case.INSTRUCTION}
    stored = build(root, instructions="stored")
    assert {e.query.instruction for e in stored.examples("train", 0, 0)} == {m2kr_case.INSTRUCTION}
    assert {q.instruction for q in build(root, instructions="none").queries("test")} == {""}
    bare = [{**row, "instruction": None} for row in rows("test")]
    write_split(tmp_path / "bare", "EVQA_data", "test", bare)
    write_split(tmp_path / "bare", "MSMARCO_data", "test", [{**r, "img_path": None} for r in bare])
    assert build(tmp_path / "bare").queries("test")[0].instruction == TEMPLATES["EVQA"][0]
    assert build(tmp_path / "bare", "MSMARCO").queries("test")[0].instruction == "", "no template is known"


def test_positives_are_drawn_and_bring_their_text(tmp_path):
    data = build(tiny_m2kr(tmp_path, splits=("train", "valid")))
    for path in (tmp_path / "EVQA_passages").iterdir():
        path.unlink()
    seen = {data.examples("train", epoch, 0)[0].positive for epoch in range(20)}
    assert {d.id for d in seen} == {"p0", "p3"}, "no passages file is read for it"
    assert all(f"bird number {d.id[1:]} eats" in d.text for d in seen)
    with pytest.raises(UserError, match="no EVQA_passages split 'train_passages'"):
        build(tmp_path, random_negatives=1).examples("train", 0, 0)[0]


def test_without_a_valid_split_training_rows_are_held_out(tmp_path):
    data = build(tiny_m2kr(tmp_path, "Infoseek", splits=("train", "test")), "Infoseek", valid_samples=2)
    contract(data, ("train", "valid", "test"))
    train, valid = ([q.id for q in data.queries(split)] for split in ("train", "valid"))
    assert len(valid) == 2 and sorted(train + valid) == [f"Infoseek_train_{i}" for i in range(6)]
    again = build(tmp_path, "Infoseek", valid_samples=2)
    assert [q.id for q in again.queries("valid")] == valid
    with pytest.raises(UserError, match="valid_samples is 6 but Infoseek has 6 training rows"):
        build(tmp_path, "Infoseek", valid_samples=6).queries("train")


def test_splits_have_passages_of_their_own(tmp_path):
    root = tiny_m2kr(tmp_path)
    write_split(root, "EVQA_passages", "valid_passages", m2kr_case.passages(7))
    data = build(root)
    assert [len(data.corpus_of(split)) for split in ("train", "valid", "test")] == [9, 7, 9]
    assert len(data.corpus()) == 9
    limited = build(root, limit=1)
    assert [d.id for d in limited.corpus()] == ["p0", "p1", "p3"] and len(limited.queries("test")) == 1
    contract(limited, ("train", "test"))


def test_several_subsets(tmp_path):
    root = tiny_m2kr(tmp_path, "EVQA")
    tiny_m2kr(root, "MSMARCO", "jsonl", splits=("test",))
    roots = {"EVQA": str(root / "images")}
    data = build(root, ["EVQA", "MSMARCO"], image_roots=roots, image_dir="elsewhere", random_negatives=1)
    contract(data, ("train", "valid", "test"))
    assert [q.id for q in data.queries("test")][5:7] == ["EVQA/EVQA_test_5", "MSMARCO/MSMARCO_test_0"]
    assert len(data.queries("train")) == 6 and len(data.corpus()) == 18
    assert all(Path(image.path).is_file() for image in data.images())
    with pytest.raises(UserError, match="each once"):
        build(root, ["EVQA", "EVQA"])


def test_ids_may_be_numbers(tmp_path):
    found = [{**row, "question_id": i, "pos_item_ids": [i % 3]} for i, row in enumerate(rows("test"))]
    write_split(tmp_path, "OKVQA_data", "test", found)
    write_split(tmp_path, "OKVQA_passages", "test_passages",
                [{**p, "passage_id": i} for i, p in enumerate(m2kr_case.passages())])  # fmt: skip
    data = build(tmp_path, "OKVQA")
    assert data.qrels("test")["4"] == {"1": 1} and data.corpus()[3].id == "3"


def test_files_of_one_split_may_differ_in_what_is_null(tmp_path):
    """A column without values has another type, and an absent one is null everywhere."""
    found = [{**row, "instruction": None} if i < 3 else row for i, row in enumerate(rows("test"))]
    found = [{k: v for k, v in row.items() if k != "answers" or i > 2} for i, row in enumerate(found)]
    write_split(tmp_path, "CC_data", "test", [{**row, "img_path": None} for row in found])
    queries = build(tmp_path, "CC").queries("test")
    assert [bool(q.instruction) for q in queries] == [False] * 3 + [True] * 3
    assert [len(q.meta["answers"]) for q in queries] == [0] * 3 + [1] * 3


def test_blank_pictures(tmp_path):
    from models.towers.images import decode

    root = tiny_m2kr(tmp_path, "MSMARCO")
    (image,) = build(root, "MSMARCO", blank_image=True).queries("test")[0].images
    picture = decode(image)
    assert picture.size == (336, 336) and picture.getextrema() == ((0, 0),) * 3
    assert build(root, "MSMARCO", blank_image=True, modality="question").queries("test")[0].images == ()


def test_answers_judge(tmp_path):
    data = build(tiny_m2kr(tmp_path))
    query = data.queries("test")[0]
    assert [data.judge(query, d) for d in data.corpus()] == [i % 3 == 0 for i in range(9)]


def test_repeated_ids(tmp_path, capsys):
    twice = [*m2kr_case.passages(), m2kr_case.passages()[2]]
    write_split(tmp_path, "EVQA_data", "test", rows("test"))
    write_split(tmp_path, "EVQA_passages", "test_passages", twice)
    assert [d.id for d in build(tmp_path).corpus()] == [f"p{i}" for i in range(9)]
    assert "repeats 1 passages word for word" in capsys.readouterr().err
    write_split(tmp_path, "EVQA_passages", "test_passages", [*twice[:-1], {**twice[-1], "passage_content": "other"}])
    with pytest.raises(UserError, match=r"passage id 'p2' stands twice with different texts \(row 2 .*row 9"):
        build(tmp_path).corpus()
    write_split(tmp_path, "EVQA_data", "test", [*rows("test"), rows("test")[1]])
    with pytest.raises(UserError, match=r"question_id 'EVQA_test_1' stands twice \(row 1 .*row 6"):
        build(tmp_path).queries("test")


@pytest.mark.parametrize(("change", "ask", "message"), [
    ({"question_id": None}, "queries", r"row 0 .* has the id None"),
    ({"pos_item_ids": None}, "qrels", "'EVQA_test_0' of EVQA has the pos_item_ids None; write a list"),
    ({"pos_item_ids": "p1"}, "qrels", "has the pos_item_ids 'p1'; write a list"),
    ({"question": 7}, "queries", "'EVQA_test_0' of EVQA has the question 7; write a string"),
    ({"img_path": {"a": 1}}, "queries", "has the img_path {'a': 1}; write a string"),
    ({"instruction": ["a"]}, "queries", r"has the instruction \['a'\]; write a string"),
    ({"answers": 5}, "queries", "has the answers 5; write a list"),
])  # fmt: skip
def test_bad_rows(tmp_path, change, ask, message):
    write_split(tmp_path, "EVQA_data", "test", [{**rows("test")[0], **change}], "jsonl")
    with pytest.raises(UserError, match=message):
        list(getattr(build(tmp_path), ask)("test"))


def test_bad_files(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no EVQA_data split 'test' in data.path .*hf download .*data.repo"):
        build(tmp_path).queries("test")
    with pytest.raises(UserError, match="no split 'dev'; it has train, valid, test"):
        build(tmp_path).queries("dev")
    root = tiny_m2kr(tmp_path / "a")
    first, second = find(root / "EVQA_data", "test")
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(UserError, match="1 of the 2 files of split 'test'"):
        build(root).queries("test")
    second.write_bytes(kept[:50])
    with pytest.raises(UserError, match=r"00001-of-00002.parquet' cannot be read .*download it again"):
        build(root).queries("test")
    second.write_bytes(kept)
    write_split(root, "EVQA_data", "test", rows("test"), "jsonl")
    with pytest.raises(UserError, match=r"split 'test' is here twice: .*parquet' and .*jsonl'; keep one"):
        build(root).queries("test")
    (root / "x.jsonl").write_text('{"question_id": 1}\n\n[2]\n')
    with pytest.raises(UserError, match=r"line 3 of .*x.jsonl' is wrong \(it is \[2\], not an object"):
        list(Rows([root / "x.jsonl"], ("question_id",)).column("question_id"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs pyarrow; install it with: pip install pyarrow"):
        Rows([first], ("question_id",))


def test_download(tmp_path, monkeypatch):
    """What is missing is asked for by pattern, once; a hub that does not answer is one sentence."""
    asked = []

    def snapshot_download(repo, repo_type, allow_patterns, local_dir):
        asked.append((repo, repo_type, *allow_patterns))
        if "test-" in allow_patterns[0]:
            write_split(Path(local_dir), "EVQA_data", "test", rows("test"))
        if "passages" in allow_patterns[0]:
            raise OSError("no connection\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    data = build(tmp_path, repo="someone/m2kr")
    assert len(data.queries("test")) == 6 and len(data.qrels("test")) == 6
    assert asked == [("someone/m2kr", "dataset", "EVQA_data/test-*")]
    with pytest.raises(UserError, match=r"data.repo 'someone/m2kr' cannot be downloaded \(no connection\); put its"):
        data.corpus()


def test_large_files_are_read_row_by_row(tmp_path, monkeypatch):
    """A row is read when it is asked for, alone; a broken one is named when the file is opened."""
    write_split(tmp_path, "EVQA_data", "test", rows("test"), "jsonl")
    file = tmp_path / "EVQA_data.test.jsonl"
    found, read = Rows([file], ("question_id", "absent")), []
    parse = json.loads
    monkeypatch.setattr(json, "loads", lambda line: read.append(line) or parse(line))
    assert len(found) == 6 and found[5] == {"question_id": "EVQA_test_5", "absent": None} and len(read) == 1
    with open(file, "a") as handle:
        handle.write("broken\n")
    with pytest.raises(UserError, match="line 7 of"):
        Rows([file], ("question_id",))


# ---- OK-VQA of FLMR


def okvqa(root: Path, **changes) -> okvqa_flmr.OKVQA:
    return okvqa_flmr.build(okvqa_flmr.Config(path=str(root / "data"), passages=str(root / "passages"),
                                              image_dir=str(root / "images"), **changes))  # fmt: skip


def test_okvqa_of_flmr(tmp_path):
    data = okvqa(tiny_okvqa(tmp_path), regions=3)
    contract(data, ("train", "test"))
    assert data.valid_split == "test"
    none, one, two = data.queries("test")[:3]
    assert one.text == "<BOQ> which bird 1 <EOQ> <BOV> ONE WAY <EOV> <BOC> a bird <EOC>"
    assert [ref.box for ref in one.images] == [None, *[(1.0, 2.0, 21.0, 30.0)] * 3], "the last region fills up"
    assert [ref.box for ref in none.images] == [None], "without regions the whole picture is all"
    assert two.images[2].box == two.images[3].box == (7.5, 7.5, 14.5, 15.5), "a tiny box grows"
    assert data.corpus()[0].text == "<BOK> the red bird number 0 eats fish, and lives in the snow. <EOK>"
    assert data.judge(one, data.corpus()[1]) and not data.judge(one, data.corpus()[0])
    assert len(okvqa(tmp_path, limit=2).queries("test")) == 2
    with pytest.raises(UserError, match="has the region 'x'; write path"):
        okvqa_flmr.box("x", {"question_id": 3})


@pytest.mark.parametrize("change", [
    {"img_path": None}, {"objects": [None]}, {"img_ocr": True}, {"img_caption": {}}, {"ROIs": 5}, {"question": None},
])  # fmt: skip
def test_okvqa_rows_of_another_form(tmp_path, change):
    root = tiny_okvqa(tmp_path)
    (row, *_) = [json.loads(line) for line in (root / "data.test.jsonl").read_text().splitlines()]
    write_split(root, "data", "test", [{**row, **change}], "jsonl")
    with pytest.raises(UserError, match=r"question '0' of data.path .* lacks a field or has another form"):
        list(okvqa(root).queries("test"))


def test_okvqa_that_knows_answers_only(tmp_path):
    root = tiny_okvqa(tmp_path)
    lines = (root / "data.test.jsonl").read_text().splitlines()
    bare = [{k: v for k, v in json.loads(line).items() if k != "pos_item_ids"} for line in lines]
    (root / "data.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    data = okvqa(root)
    with pytest.raises(UserError, match="answers only, so judge them by PseudoRecall"):
        data.qrels("test")
    assert data.judge(data.queries("test")[0], data.corpus()[3])


# ---- the commands


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> SimpleNamespace:
    """EVQA indexed and judged by flags with a tiny PreFLMR, in a folder of its own."""
    root = tmp_path_factory.mktemp("m2kr")
    tiny_m2kr(root / "data")
    made = tiny.retriever("flmr", root / "towers", variant="preflmr")
    made.save_pretrained(root / "PreFLMR_ViT-B")
    words = [
        "--dataset_name",
        "m2kr.EVQA",
        "--dataset_hf_path",
        str(root / "data"),
        "--image_dir",
        str(root / "data" / "images"),
        "--checkpoint",
        str(root / "PreFLMR_ViT-B"),
        "--device",
        "cpu",
    ]
    before = Path.cwd()
    os.chdir(root)
    try:
        run_indexer.run([*words, "--exp_name", "EVQA_tiny", "--max_doc_len", "24", "--n_bits", "8"])
        words += ["--index_name", "EVQA_tiny.nbits=8", "--Ks", "5", "1"]
        yield SimpleNamespace(root=root, words=words)
    finally:
        os.chdir(before)


def ask(judged, *more: str) -> None:
    evaluate_retrieval.run([*judged.words, *more])


def test_the_table(judged, capsys):
    ask(judged)
    assert "PseudoRecall@5" in capsys.readouterr().out
    made = judged.root / "experiments" / "m2kr"
    questions = json.loads((made / "EVQA_EVQA_tiny.json").read_text())
    assert set(questions) == {f"EVQA_test_{i}" for i in range(6)}
    (first, *_) = questions.values()
    assert list(first) == ["Recall@1", "Recall@5", "Pseudo Recall@1", "Pseudo Recall@5", "retrieved_passage"]
    assert len(first["retrieved_passage"]) == 5
    cell = json.loads((made / "report.json").read_text())["m2kr.EVQA"]["PreFLMR_ViT-B"]
    for ours, theirs in (("Success@5", "Recall@5"), ("PseudoRecall@1", "Pseudo Recall@1")):
        assert cell[ours] == pytest.approx(sum(q[theirs] for q in questions.values()) / 6)
    texts = {p["passage_id"]: p["passage_content"] for p in m2kr_case.passages()}
    for number, question in enumerate(questions.values()):  # judged by hand
        top = [p["passage_id"] for p in question["retrieved_passage"]]
        assert question["Recall@5"] == bool({f"p{number % 3}", f"p{number % 3 + 3}"} & set(top))
        assert question["Pseudo Recall@1"] == (list(COLORS)[number % 3] in texts[top[0]])
    report.run(["--published", "m2kr", "--out", str(made / "table"), str(made)])
    shown = (made / "table" / "report.md").read_text()
    assert "EVQA" in shown and "github.com/LinWeizheDragon/FLMR" in shown
    (line,) = [x for x in (made / "table" / "report.csv").read_text().splitlines() if "EVQA,PseudoRecall@5" in x]
    assert line.split(",")[3:7] == [str(cell["PseudoRecall@5"]), "0.721", "0.708", "0.663"]
    assert float(line.split(",")[7]) == pytest.approx(cell["PseudoRecall@5"] - 0.663, abs=1e-6)


def test_limit_is_no_published_setting(judged):
    ask(judged, "--limit", "2", "--save_path", str(judged.root / "few" / "x.json"))
    assert len(json.loads((judged.root / "few" / "x.json").read_text())) == 2
    (kind,) = json.loads((judged.root / "few" / "report.json").read_text())["m2kr.EVQA"]
    assert kind == "PreFLMR_ViT-B, first 2"
    joined = json.loads((judged.root / "few" / "report.json").read_text())
    assert not [name for name in against.side_by_side(joined, "m2kr")[0] if "difference" in name]


def test_check_and_what_is_missing(judged, tmp_path, capsys):
    ask(judged, "--check", "--image_dir", "nowhere")
    assert "missing: nowhere" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"3 pictures are missing: .*inat/0.png.* with --image_dir"):
        ask(judged, "--image_dir", str(tmp_path))
    with pytest.raises(UserError, match=r"--dataset_name is 'm2kr.VQA'; write m2kr. and one of .*'EVQA'"):
        ask(judged, "--dataset_name", "m2kr.VQA")
    with pytest.raises(UserError, match="give --checkpoint"):
        evaluate_retrieval.run(["--dataset_name", "m2kr.EVQA", "--index_name", "x"])


def test_another_corpus_and_answers_that_are_not_in_it(judged, tmp_path, capsys):
    tiny_m2kr(tmp_path)
    write_split(tmp_path, "EVQA_passages", "test_passages", m2kr_case.passages(8))
    with pytest.raises(UserError, match="is of other passages: 'p8' is in only one of the two"):
        ask(judged, "--dataset_hf_path", str(tmp_path))
    write_split(tmp_path, "EVQA_passages", "test_passages", m2kr_case.passages())
    write_split(tmp_path, "EVQA_data", "test", [*rows("test")[:5], {**rows("test")[5], "pos_item_ids": ["gone"]}])
    ask(judged, "--dataset_hf_path", str(tmp_path), "--save_path", str(tmp_path / "x.json"))
    assert "relevant passages of 1 questions, such as 'EVQA_test_5'" in capsys.readouterr().err
    assert json.loads((tmp_path / "x.json").read_text())["EVQA_test_5"]["Recall@5"] == 0


def test_pseudo_recall_of_a_yaml(judged, tmp_path):
    """eval.metrics may have it where the data set knows answers; elsewhere that is an error."""
    places = {"path": str(judged.root / "data"), "image_dir": str(judged.root / "data" / "images")}
    config = {
        "run": {"out": str(tmp_path / "run"), "device": "cpu"},
        "data": {"name": "m2kr", "subset": "EVQA", **places},
        "model": {"name": "flmr", "variant": "preflmr"},
        "train": {"steps": 1},
        "index": {"path": str(judged.root / "experiments" / "EVQA_tiny" / "indexes" / "EVQA_tiny.nbits=8")},
        "eval": {"k": 5, "metrics": ["PseudoRecall@5", "Success@5", "PseudoRecall@1"]},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    words = ["--config_path", str(tmp_path / "c.yaml"), "--checkpoint", str(judged.root / "PreFLMR_ViT-B")]
    evaluate_retrieval.run(words)
    cell = json.loads((tmp_path / "run" / "report.json").read_text())["test"]["image+question"]
    ask(judged, "--save_path", str(tmp_path / "x.json"))
    flags = json.loads((tmp_path / "report.json").read_text())["m2kr.EVQA"]["PreFLMR_ViT-B"]
    assert {k: cell[k] for k in config["eval"]["metrics"]} == {k: flags[k] for k in config["eval"]["metrics"]}
    assert [k for k in cell if k in config["eval"]["metrics"]] == config["eval"]["metrics"]
    with pytest.raises(UserError, match=r"'PseudoRecall@9' but eval.k is 5"):
        evaluate_retrieval.run([*words, "eval.metrics=[PseudoRecall@9]"])
    with pytest.raises(UserError, match=r"'PseudoRecall@5', but data.name 'flagfacts' knows no answer texts"):
        Judges(SimpleNamespace(config=SimpleNamespace(name="flagfacts")), ["PseudoRecall@5"])


def test_training(tmp_path):
    """Drawn instructions, positives and negatives; validation on the valid split's own passages."""
    root = tiny_m2kr(tmp_path / "data")
    # Only the valid passages hold the answers of the valid questions, under ids of their own.
    there = [{**p, "passage_id": f"v{i}"} for i, p in enumerate(m2kr_case.passages())]
    write_split(root, "EVQA_passages", "valid_passages", there)
    valid = [{**row, "pos_item_ids": [f"v{i}" for i in range(9)], "pos_item_contents": None}
             for row in rows("valid")]  # fmt: skip
    write_split(root, "EVQA_data", "valid", valid)
    frozen = {"frozen": ["text", "vision"]}
    config = {
        "run": {"out": str(tmp_path / "run"), "device": "cpu"},
        "data": {"name": "m2kr", "subset": "EVQA", "path": str(root), "image_dir": str(root / "images"),
                 "random_negatives": 2},
        "model": tiny.model_section("flmr", tmp_path / "towers", variant="preflmr", **frozen),
        "train": {"steps": 2, "batch_size": 3, "nways": 3, "eval_every": 1, "hard_negatives": "in_batch",
                  "cache_text_states": True},
        "visual": {"cache": str(tmp_path / "features")},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    train_retrieval.run(["--config_path", str(tmp_path / "c.yaml")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [value for line in lines for name, value in line.items() if name.endswith("Success@1")]
    assert found and set(found) == {1.0}, "every valid passage is an answer, none of the test passages is"


def test_published_numbers():
    facts = against.published("m2kr")
    assert len(facts["rows"]) == 12 and all(0 < row[model] < 1 for row in facts["rows"] for model in facts["models"])
    assert {row["split"].removeprefix("m2kr.") for row in facts["rows"]} == set(get_args(m2kr.Subset)) - {"CC"}
    table = against.side_by_side({"m2kr.WIT": {"mine": {"Success@10": 0.5}}}, "m2kr")
    assert table[0]["mine"] == 0.5 and table[0]["PreFLMR_ViT-L, published"] == 0.605
    assert not any("difference" in name for name in table[0])
    with pytest.raises(UserError, match=r"the runs' splits are test; 'm2kr' has numbers of m2kr.WIT"):
        against.side_by_side({"test": {}}, "m2kr")
    with pytest.raises(UserError, match="no published numbers 'x' here; there are m2kr"):
        against.published("x")


def test_the_script_asks_for_every_subset(judged, tmp_path):
    """With a python that writes its arguments down; --check then plans, without a data set."""
    stub, log = tmp_path / "venv" / "bin" / "python", tmp_path / "calls"
    stub.parent.mkdir(parents=True)
    stub.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    stub.chmod(0o755)
    listed = b"".join((ROOT / f).read_bytes() for f in ("requirements-m2kr.txt", "requirements.txt"))
    stamp = subprocess.run(["cksum"], input=listed, capture_output=True, check=True).stdout.split()[0].decode()
    (tmp_path / "venv" / f"installed-{stamp}").touch()
    env = {**os.environ, "VENV": os.path.relpath(tmp_path / "venv", ROOT), "MODELS": "hub/A out/B", "DATA": "d"}
    subprocess.run(["bash", "scripts/evaluate_m2kr.sh", "--limit", "3"], cwd=ROOT, env=env, check=True)
    *calls, last = log.read_text().splitlines()
    tested = set(get_args(m2kr.Subset)) - {"CC"}
    more = {
        "runs.run_indexer": "--exp_name WIT_A --n_bits 8",
        "runs.evaluate_retrieval": "--index_name WIT_A.nbits=8 --image_dir data/m2kr_images/WIT/images --limit 3",
    }
    for module, words in more.items():
        of = [line for line in calls if module in line]
        assert {line.split("m2kr.")[1].split()[0] for line in of} == tested and len(of) == 2 * len(tested)
        assert f"-m {module} --dataset_name m2kr.WIT --dataset_hf_path d --checkpoint hub/A {words}" in of
    assert last == "-m runs.report --published m2kr --out experiments/m2kr/table experiments/m2kr"
    log.unlink()
    subprocess.run(["bash", "scripts/evaluate_m2kr.sh", "--check"], cwd=ROOT, env=env, check=True)
    assert all("--check" in line for line in log.read_text().splitlines())
    wrong = subprocess.run(["bash", "scripts/evaluate_m2kr.sh", "x"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage: " in wrong.stderr
