"""runs.evaluate_retrieval: what it leaves, ablations, legacy numbers, judgements by answers, indexes of colbert-ai."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from core.errors import UserError
from evaluation.files import read_examples, read_per_query, read_qrels, read_run, stem
from evaluation.metrics import evaluate
from runs import evaluate_retrieval, original_data, run_indexer
from tests.test_pipeline import finished  # noqa: F401 (a fixture)

GOLDEN = Path(__file__).parent / "golden" / "colbert" / "bert_d128_nbits2"


def test_what_an_evaluation_leaves(finished):  # noqa: F811
    """TREC files that give the reported numbers again, lines with question and passage, examples with pictures."""
    root, _ = finished
    run = root / "run"
    report = json.loads((run / "report.json").read_text())
    rows = {row["id"]: row for row in json.loads((root / "test.json").read_text())}
    for kind, cell in report["test"].items():
        base = run / "runs" / stem("test", kind)
        rankings, qrels = read_run(f"{base}.trec"), read_qrels(f"{base}.qrels")
        lines = read_per_query(f"{base}.jsonl")
        assert lines.scores == evaluate(rankings, qrels, list(lines.scores)) and set(lines.scores) < set(cell)
        for name, values in lines.scores.items():
            assert cell[name] == pytest.approx(sum(values.values()) / 6)
        examples = read_examples(f"{base}.examples.json")
        assert (examples["split"], examples["kind"], examples["queries"]) == ("test", kind, 6)
        for one in examples["examples"]:
            qid, facts = one["query_id"], lines.facts[one["query_id"]]
            (gold,) = qrels[qid]
            assert facts["gold"] == [gold] and [g["id"] for g in one["gold"]] == [gold]
            assert one["gold"][0]["text"] == rows[qid]["document"]
            assert facts["question"] == one["question"] == ("" if "no question" in kind else rows[qid]["question"])
            assert facts["passage"] == one["top"][0]["text"] and facts["meta"] == {}
            assert [(d["id"], d["score"]) for d in one["top"]] == list(zip(rankings[qid].ids, rankings[qid].scores))
            assert [d["relevant"] for d in one["top"]] == [d["id"] == gold for d in one["top"]]
            assert all(d["holds_answer"] is None for d in one["top"])
            assert one["metrics"] == {name: values[qid] for name, values in lines.scores.items()}
            places = [d["id"] for d in one["top"]]
            assert one["gold"][0]["rank"] == (places.index(gold) + 1 if gold in places else None)
            if "no image" in kind:
                assert one["images"] == []
            else:
                (picture,) = one["images"]
                start = "data:image/jpeg;base64,"
                assert picture["thumbnail"].startswith(start) and picture["path"].endswith(rows[qid]["image"])
                shown = Image.open(io.BytesIO(base64.b64decode(picture["thumbnail"].removeprefix(start))))
                assert max(shown.size) <= 224


def test_flags_for_ablations_pairs_and_legacy_numbers(finished, tmp_path, capsys):  # noqa: F811
    root, config = finished
    out = f"run.out={tmp_path / 'r'}"
    evaluate_retrieval.run(["--config_path", str(config), "eval.ablations=[]", "eval.k=100", out,
                            "eval.metrics=[Success@5,Success@100,MRR@5,Precision@5]", "--text_only", "--image_only",
                            "--save_pairs", "--legacy_metrics", "--checkpoint", str(root / "run"), "--index",
                            str(root / "run" / "index")])  # fmt: skip
    report = json.loads((tmp_path / "r" / "report.json").read_text())["test"]
    assert list(report) == ["image+question", "image+question, no image", "image+question, no question"]
    for kind, cell in report.items():
        base = tmp_path / "r" / "runs" / stem("test", kind)
        theirs = json.loads(Path(f"{base}.legacy.json").read_text())
        assert list(theirs) == ["P@1", "MRR", "P@5", "R@5", "R@10", "R@20", "R@50", "R@100"]
        # Not MRR: these rankings have equal scores, whose order is another in the original.
        for mine, name in (("Success@5", "R@5"), ("Success@100", "R@100"), ("Precision@5", "P@5")):
            assert cell[mine] == pytest.approx(theirs[name])
        pairs = json.loads(Path(f"{base}.pairs.json").read_text())
        assert len(pairs) == 6 and all(len(p["passages"]) == 5 and p["passages"][0] for p in pairs)
    for style, names in (("uniir", ["Recall@1", "Recall@5", "Recall@10", "Recall@20"]), ("flmr", None)):
        evaluate_retrieval.run(["--config_path", str(config), "eval.ablations=[]", "eval.k=100", "--legacy_metrics",
                                style, f"run.out={tmp_path / style}", "--checkpoint", str(root / "run"), "--index",
                                str(root / "run" / "index")])  # fmt: skip
        made = json.loads((tmp_path / style / "runs" / "test.image+question.legacy.json").read_text())
        assert names is None or list(made) == names
    first = next(iter(made.values()))
    assert list(first) == ["Recall@1", "Recall@5", "Recall@10", "Recall@20", "retrieved_passage"]


# ---- answers


@pytest.fixture
def asked(finished, tmp_path):  # noqa: F811
    """A YAML of one's own questions and passages with answers, on the run's retriever; its index is built."""
    root, config = finished
    rows = json.loads((root / "train.json").read_text())
    passages = [{"id": f"p{i}", "text": row["document"]} for i, row in enumerate(rows)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    questions = [
        {"query_id": f"q{i}", "query_text": "which bird", "positive_document_ids": [f"p{i}"],
         "answers": [answer]} for i, answer in enumerate(["Green", "ird number 4", "nobody", "snow (", ""])
    ]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    made = yaml.safe_load(config.read_text())
    made["data"] = {"name": "jsonl", "test_path": str(tmp_path / "q.jsonl"), "passages": str(tmp_path / "p.jsonl")}
    made["run"]["out"] = str(tmp_path / "out" / "run")
    made["visual"] = {"cache": None}
    made["eval"] = {"k": 24, "metrics": ["PseudoSuccess@24", "PseudoRecall@24", "PseudoPrecision@24", "Recall@24"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(made))
    words = ["--config_path", str(tmp_path / "c.yaml"), "--checkpoint", str(root / "run")]
    run_indexer.run(words)
    return tmp_path, words


def test_answers_are_judged_once_and_kept(asked, monkeypatch):
    tmp_path, words = asked
    evaluate_retrieval.run(words)
    found = read_per_query(tmp_path / "out" / "run" / "runs" / "test.image+question.jsonl")
    assert list(found.scores["PseudoSuccess@24"].values()) == [1, 0, 0, 0, 0]
    assert list(found.scores["PseudoRecall@24"].values()) == [1, 1, 0, 0, 1]  # half words and blanks are found
    assert found.scores["PseudoPrecision@24"]["q0"] == pytest.approx(8 / 24)
    assert set(found.scores["Recall@24"].values()) == {1.0}
    made = read_examples(tmp_path / "out" / "run" / "runs" / "test.image+question.examples.json")["examples"][0]
    assert made["answers"] == ["Green"]
    assert [d["holds_answer"] for d in made["top"]] == ["green" in d["text"] for d in made["top"]]
    assert (tmp_path / "out" / "relevance" / "jsonl.npz").is_file()

    class Sealed:
        name = "words"

        def __getattr__(self, part):
            raise AssertionError(f"judged again ({part})")

    monkeypatch.setattr("runs.judging.WORDS", Sealed())
    evaluate_retrieval.run([*words, "eval.metrics=[PseudoSuccess@5,PseudoMRR@24]"])
    again = read_per_query(tmp_path / "out" / "run" / "runs" / "test.image+question.jsonl")
    assert list(again.scores) == ["PseudoSuccess@5", "PseudoMRR@24"] and again.scores["PseudoMRR@24"]["q0"] > 0
    assert again.facts["q0"]["gold"] == []  # no metric asked for the qrels


def test_what_cannot_be_judged_or_asked(asked, capsys):
    tmp_path, words = asked
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    bare = [{**row, "answers": []} for row in rows]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    with pytest.raises(UserError, match="'PseudoSuccess@24' is asked for, but no query of split 'test' has answers"):
        evaluate_retrieval.run([*words, f"data.test_path={tmp_path / 'bare.jsonl'}"])
    rows[1] |= {"query_text": "", "query_id": "nothing asked"}
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate_retrieval.run([*words, f"data.test_path={tmp_path / 'odd.jsonl'}", "eval.metrics=[Success@24]"])
    out = capsys.readouterr().out
    assert "1 queries of test, image+question are empty; they count as unanswered" in out
    assert "the id 'nothing asked' holds white space" in out
    assert sorted(p.name for p in (tmp_path / "out" / "run" / "runs").iterdir()) == [
        "test.image+question.examples.json",
        "test.image+question.jsonl",
    ]
    values = read_per_query(tmp_path / "out" / "run" / "runs" / "test.image+question.jsonl").scores["Success@24"]
    assert values == {"q0": 1, "nothing asked": 0, "q2": 1, "q3": 1, "q4": 1}


# ---- the originals' flags


def collection(folder: Path) -> list[str]:
    texts = [line.split("\t", 1)[1] for line in (GOLDEN / "collection.tsv").read_text().splitlines()]
    with open(folder / "blocks.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["kid", "text"])
        writer.writerows((f"doc_{i}", text) for i, text in enumerate(texts))
    queries = json.loads((GOLDEN / "texts.json").read_text())["queries"][:3]
    rows = [
        {"question_id": 7 + i, "img_id": "COCO_val2014_000000000001", "question": f"{text} a caption",
         "caption": "a caption", "ctxs": [{"id": "doc_0", "text": "t"}], "answers": {answer: 1.0}}
        for i, (text, answer) in enumerate(zip(queries, ["rabbits", "(", "nobody knows"]))
    ]  # fmt: skip
    rows.append({**rows[0], "question_id": 99, "ctxs": []})
    (folder / "anno.json").write_text(json.dumps(rows))
    return texts


def test_an_index_of_colbert_ai_by_the_originals_flags(tmp_path, monkeypatch, capsys):
    """Its passages have the ids of the collection; numbers by our names, and with --legacy_metrics by theirs."""
    texts = collection(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset_name", "okvqa_gs", "--anno_file", "anno.json", "--all_blocks_file", "blocks.csv",
             "--colbert_ckpt", str(GOLDEN / "checkpoint"), "--index_name", "tiny.nbits=2", "--index",
             str(GOLDEN / "index"), "--save_pairs", "--device", "cpu", "--save_path", "results/base.json"]  # fmt: skip
    evaluate_retrieval.run(words)
    assert "--legacy_metrics" in capsys.readouterr().out
    means = json.loads(Path("results/base.json").read_text())
    assert means["PseudoSuccess@100"] == 3 / 4 and "P@1" not in means
    lines = read_per_query("results/runs/okvqa_gs.base.jsonl")
    assert (
        list(lines.rankings) == ["7", "8", "9", "99"] and lines.facts["7"]["question"] == "what does the red fox eat?"
    )
    first = lines.rankings["7"].ids[0]
    assert first.startswith("doc_") and lines.facts["7"]["passage"] == texts[int(first.removeprefix("doc_"))][:300]
    report = json.loads(Path("results/report.json").read_text())
    assert report["okvqa_gs"]["base"]["PseudoSuccess@100"] == 0.75
    evaluate_retrieval.run([*words, "--legacy_metrics"])
    theirs = json.loads(Path("results/base.json").read_text())
    assert theirs["R@100"] == pytest.approx(2 / 3)  # without the question that has no ctxs, and "(" as it stands
    pairs = json.loads(Path("results/base_docs.json").read_text())
    assert [p["question_id"] for p in pairs] == ["7", "8", "9"] and len(pairs[0]["passages"]) == 5
    with pytest.raises(UserError, match=r"stops at the answer '\(', which is no regular expression"):
        evaluate_retrieval.run([*words, "--legacy_metrics", "xknow"])
    (tmp_path / "blocks.csv").write_text("kid,text\ndoc_0,one\n")
    with pytest.raises(UserError, match=rf"has {len(texts)} passages and this data set 1;"):
        evaluate_retrieval.run(words)


def test_names_that_are_none(tmp_path):
    for name in ("okvqa_wiki", "infoseeks"):
        with pytest.raises(
            UserError, match=rf"--dataset_name is '{name}'; write one of vid2r, okvqa, okvqa_gs, .*EVQA"
        ):
            evaluate_retrieval.run(["--dataset_name", name, "--index_name", "x.nbits=2", "--anno_file", "x"])
    with pytest.raises(UserError, match="give --anno_file"):
        evaluate_retrieval.run(["--dataset_name", "fvqa", "--index_name", "x.nbits=2"])


def test_every_name_of_the_originals_has_a_data_set():
    import dataset

    theirs = {
        "okvqa",
        "aokvqa",
        "fvqa",
        "remuq",
        "okvqa_gs",
        "fashioniq",
        "vid2r",
        "OVEN",
        "Infoseek",
        "EVQA",
        "infoseek",
    }
    assert set(original_data.NAMES) == theirs
    for entry in original_data.TABLE.values():
        fields = dataset.module(entry.name).Config.model_fields
        assert {entry.anno, entry.blocks, entry.images} - {None} <= set(fields), entry
        assert set(entry.more) <= set(fields)


def test_oven_was_never_right(tmp_path):
    """MIRe compares OVEN's ids with something else, so its numbers are 0 whatever is found."""
    from types import SimpleNamespace

    from core.protocols import Ranking
    from core.records import Document, Query
    from evaluation.relevance import Passages
    from runs.original_numbers import legacy_numbers, saved_pairs

    data = SimpleNamespace(config=SimpleNamespace(name="m2kr", subset="OVEN"), qrels=lambda split: {"q": {"d": 1}})
    given = ([Query("q", "x")], {"q": Ranking(("d",), (1.0,))}, None)
    assert set(legacy_numbers("mire", data, "test", *given).values()) == {0.0}
    asked = [Query("q", "x", meta={"answers": ()})]
    args = SimpleNamespace(legacy_metrics="mire", dataset_name="OVEN", xknow_ckpt=None)
    (row,) = saved_pairs(args, data, asked, given[1], Passages([Document("d", "text")]))
    assert row["passages"] == ["text"] and row["meta"] == {"golden_pid": "d"}
    assert legacy_numbers("uniir", data, "test", *given) == {"Recall@1": 1.0}
