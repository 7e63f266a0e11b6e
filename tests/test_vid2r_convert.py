"""runs.convert_tasks, runs.mine_negatives, runs.sample_hard_negative and runs.dataset_stats."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from core.errors import UserError
from dataset import vid2r
from dataset.vid2r_passages import lead
from runs import (
    convert_tasks,
    dataset_stats,
    mine_negatives,
    neural_filtering,
    recipe_search,
    run_indexer,
    sample_hard_negative,
    shares,
)
from tests import tiny
from tests.conftest import FULL
from tests.test_architecture import ROOT
from tests.vid2r_case import FILES, WordSearch, killed, knowledge_base


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> Path:
    return tiny.text_tower(tmp_path_factory.mktemp("towers") / "colbert", positions=512)


@pytest.fixture(scope="module")
def responses(tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("responses") / "responses.json"
    neural_filtering.run(["--data_paths", *FILES, "--skip_neural", "--save_path", str(save)])
    return save


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr(recipe_search, "Searcher", WordSearch)
    monkeypatch.setattr(WordSearch, "asked", [])
    monkeypatch.setattr(shares, "COMMIT_SECONDS", 0.0)


def converted(save: Path, data: Path, base: Path, *flags) -> tuple[list[dict], dict]:
    convert_tasks.run(["--data_path", str(data), "--db_pool", str(base), "--save_path", str(save),
                       "--index", str(save.parent / "index"), "--indexing", *map(str, flags)])  # fmt: skip
    return json.loads(save.read_text()), json.loads(save.with_name(f"{save.stem}.counts.json").read_text())


def files(save: Path) -> list[bytes]:
    return [save.read_bytes(), save.with_name(f"{save.stem}.counts.json").read_bytes()]


# ---- convert_tasks


def test_responses_become_passages_with_where_they_come_from(tmp_path, tower, responses, capsys):
    """Batches through a real retriever and index, against one response at a time."""
    from core.records import Document, Query
    from runs.common import open_retriever

    base, data = knowledge_base(tmp_path / "kb.jsonl"), json.loads(responses.read_text())[:20]
    flags = ["--colbert_ckpt", tower, "--batch_size", 8, "--limit", 20]
    records, counts = converted(tmp_path / "a.json", responses, base, *flags)
    articles = {row["wikidata_id"]: row["wikipedia_content"] for row in map(json.loads, base.read_text().splitlines())}
    model = open_retriever(tower)
    stage = model.config.eval.model_copy(update={"query_maxlen": 80, "doc_maxlen": 256})
    model.config = model.config.model_copy(update={"eval": stage})
    model.tokenizer.conventions = replace(model.tokenizer.conventions, expansion=False)
    texts = [Document(q, text) for q, text in articles.items()]
    stored = model.encode_documents(model.collate_documents(texts)).unpad()
    for record, source in zip(records, data, strict=True):
        (query,) = model.encode_queries(model.collate_queries([Query("q", source["document"])])).unpad()
        scores = {t.id: float((query @ d.T).max(1).values.sum().detach()) for t, d in zip(texts, stored)}
        best = sorted(scores, key=scores.get, reverse=True)[:3]
        assert record["kb_scores"] == pytest.approx([scores[q] for q in record["kb_ids"]], abs=0.05)
        assert scores[record["kb_ids"][0]] == pytest.approx(scores[best[0]], abs=0.05)
        first, *rest = (lead(articles[q], "clean") for q in record["kb_ids"])
        assert record["document"] == " ".join([first, source["document"], *rest])
        assert record["answer"] == source["document"] and record["id"] == source["id"]
    assert counts["conversations"] == {"read": 20, "used": 20, "skipped": {}}
    converted(tmp_path / "b.json", responses, base, *flags)
    assert "index was complete" in capsys.readouterr().out
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    other = tiny.text_tower(tmp_path / "other", positions=512, seed=1)
    with pytest.raises(UserError, match="another checkpoint"):
        converted(tmp_path / "c.json", responses, base, "--colbert_ckpt", other, "--limit", 20)


def test_responses_are_encoded_in_the_precision_that_is_asked_for(tmp_path, tower, responses):
    base, scores = knowledge_base(tmp_path / "kb.jsonl"), {}
    for precision in ("fp32", "bf16"):
        flags = ["--colbert_ckpt", tower, "--limit", 20, "--precision", precision]
        records, _ = converted(tmp_path / f"{precision}.json", responses, base, *flags)
        scores[precision] = [record["kb_scores"][0] for record in records]
    assert scores["fp32"] != scores["bf16"] and scores["bf16"] == pytest.approx(scores["fp32"], rel=0.02)
    with pytest.raises(UserError, match="made otherwise"):
        converted(tmp_path / "fp32.json", responses, base, *flags)


def test_converted_shards_and_kills_end_with_the_same_bytes(tmp_path, words, responses):
    base = knowledge_base(tmp_path / "kb.jsonl")
    flags = ["--batch_size", 16, "--template", "legacy-mire", "--remove_bracket"]
    converted(tmp_path / "a.json", responses, base, *flags)
    expected, asked = files(tmp_path / "a.json"), len(WordSearch.asked)
    for turn in ("1/2", "0/2"):
        convert_tasks.run(["--data_path", str(responses), "--db_pool", str(base), "--save_path",
                           str(tmp_path / "s.json"), "--index", str(tmp_path / "index"), "--shard", turn,
                           *map(str, flags)])  # fmt: skip
    assert files(tmp_path / "s.json") == expected
    events = killed(lambda: converted(tmp_path / "n.json", responses, base, *flags), -1, 0)
    assert events > 20
    for at in range(events) if FULL else sorted(random.Random(3).sample(range(events), 8)):
        save = tmp_path / f"{at}.json"
        killed(lambda save=save: converted(save, responses, base, *flags), at, seed=at)
        state = save.with_name(save.name + ".work") / "search" / "0-of-1" / "state.json"
        done = json.loads(state.read_text())["place"][2] if state.is_file() else 0
        gone = save.exists()
        WordSearch.asked.clear()
        converted(save, responses, base, *flags)
        assert files(save) == expected and len(WordSearch.asked) == (0 if gone else asked - done)


def test_records_that_cannot_be_converted_are_counted(tmp_path, words):
    base = tmp_path / "kb.jsonl.gz"
    base.write_bytes(gzip.compress(knowledge_base(tmp_path / "plain.jsonl").read_bytes()))
    rows = [
        {"id": "a", "document": "An owl is subject to moods."},
        {"id": "b"},
        7,
        {"id": "c", "document": "  "},
        {"id": "d", "document": 3},
        {"id": "e", "question": "half a pair \ud800", "document": "An owl hoots."},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    records, counts = converted(tmp_path / "a.json", tmp_path / "in.jsonl", base)
    assert [record["id"] for record in records] == ["a"] and "Q12" in records[0]["kb_ids"]
    assert counts["conversations"] == {
        "read": 7, "used": 1,
        "skipped": {"broken JSON": 1, "no document": 3, "not UTF-8": 1, "not an object": 1},
    }  # fmt: skip
    assert counts["samples"]["no document"]["at"] == 1


def test_what_conversion_refuses(tmp_path, words, responses):
    base = knowledge_base(tmp_path / "kb.jsonl")
    small = tmp_path / "small.jsonl"
    small.write_text("\n".join(base.read_text().splitlines()[:2]))
    with pytest.raises(UserError, match="--n_cands 3 is more than the 2 articles"):
        converted(tmp_path / "a.json", responses, small)
    small.write_text('{"wikipedia_title": "x"}')
    with pytest.raises(UserError, match=r"line 1 of .*small.jsonl' is wrong .*no wikipedia_content or text"):
        converted(tmp_path / "a.json", responses, small)
    small.write_text("")
    with pytest.raises(UserError, match="empty"):
        converted(tmp_path / "a.json", responses, small)
    with pytest.raises(UserError, match="--template none"):
        converted(tmp_path / "a.json", responses, base, "--template", "none", "--check")
    with pytest.raises(UserError, match="--batch_size 0: give 1 or more"):
        converted(tmp_path / "a.json", responses, base, "--batch_size", "0", "--check")
    with pytest.raises(UserError, match=r"no complete index at .*--indexing"):
        convert_tasks.run(["--data_path", str(responses), "--db_pool", str(base), "--save_path",
                           str(tmp_path / "a.json"), "--index", str(tmp_path / "none")])  # fmt: skip


def test_an_index_of_other_articles_is_not_searched(tmp_path, tower, responses):
    base = knowledge_base(tmp_path / "kb.jsonl")
    flags = ["--colbert_ckpt", str(tower), "--limit", "2", "--index", str(tmp_path / "index")]
    converted(tmp_path / "a.json", responses, base, *flags)
    words = ["--data_path", str(responses), "--db_pool", str(base), "--save_path", str(tmp_path / "b.json"), *flags]
    convert_tasks.run(words)
    records = [json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json")]
    assert records[0] == records[1] and len(records[0]) == 2
    base.write_text("\n".join(reversed(base.read_text().splitlines())))
    with pytest.raises(UserError, match="is of other texts"):
        convert_tasks.run([*words, "--overwrite"])
    assert (tmp_path / "b.json").is_file()


def test_two_processes_of_torchrun_share_the_work(tmp_path, tower):
    base = knowledge_base(tmp_path / "kb.jsonl")

    def commands(out: Path) -> list[list[str]]:
        filtered = ["runs.neural_filtering", "--data_paths", FILES[1], "--limit", "24", "--colbert_ckpt", str(tower),
                    "--batch_size", "4", "--save_path", str(out / "a.json")]  # fmt: skip
        passages = ["runs.convert_tasks", "--data_path", str(out / "a.json"), "--db_pool", str(base), "--indexing",
                    "--colbert_ckpt", str(tower), "--batch_size", "4", "--index", str(out / "index"),
                    "--save_path", str(out / "b.json")]  # fmt: skip
        return [filtered, passages]

    neural_filtering.run(commands(tmp_path / "one")[0][1:])
    if FULL:
        convert_tasks.run(commands(tmp_path / "one")[1][1:])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ours = commands(tmp_path / "two")
    if not FULL:  # starting processes costs more than all else here
        ours.pop()
    for command in ours:
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "-m",
            *command,
        ]
        done = subprocess.run([*launch, "--device", "cpu"], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    for name in ("a.json", "b.json")[: len(ours)]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# ---- negatives


@pytest.fixture
def colours(tmp_path, tower):
    """OK-VQA with Google Search in its own files: questions, contexts, answers, a passages file."""
    texts = [f"the {thing} is {colour}." for thing in ("bird", "fish", "river", "cheese") for colour in
             ("red", "green", "blue", "cold", "mild", "dry", "hot", "rice", "fox", "sea")]  # fmt: skip
    with open(tmp_path / "corpus.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([["kid", "text"], *([f"p{i}", text] for i, text in enumerate(texts))])
    rows = [
        {"question_id": i, "img_id": "COCO_train2014_000000000001", "question": f"what {thing}", "answers": {answer: 1},
         "ctxs": [{"id": "p0", "text": texts[0]}]}
        for i, (thing, answer) in enumerate([("bird", "red"), ("fish", "is"), ("river", "no such word")])
    ]  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "run.yaml").write_text(
        f"run: {{out: {tmp_path / 'run'}, device: cpu}}\n"
        f"data: {{name: okvqa_gs, path: {tmp_path / 'train.json'}, valid_path: {tmp_path / 'train.json'}, "
        f"test_path: {tmp_path / 'train.json'}, passages: {tmp_path / 'corpus.csv'}, modality: question}}\n"
        f"model: {{name: colbert, text_tower: {tower}, dim: 16}}\nindex: {{name: exact}}\ntrain: {{steps: 1}}\n"
    )
    return texts, rows


def test_negatives_hold_no_answer_and_are_topped_up(tmp_path, tower, colours, capsys):
    texts, rows = colours
    config = ["--config_path", str(tmp_path / "run.yaml")]
    run_indexer.run([*config, "--checkpoint", str(tower)])
    save = tmp_path / "negs.json"
    mine = [*config, "--checkpoint", str(tower), "--topk", "30", "--least", "32"]
    mine_negatives.run([*mine, "--save_path", str(save)])
    found = json.loads(save.read_text())
    assert [{k: v for k, v in r.items() if not k.startswith("neg")} for r in found] == rows
    red, every, none = (record["negs"] for record in found)
    assert len(none) == 30 and len(set(none)) == 30 and set(none) <= set(texts)
    # The answers that are topped up with stand at the end.
    holds = [bool(re.search(r"\bred\b", text)) for text in red]
    assert sorted(red) == sorted(set(red)) and holds == sorted(holds) and 26 <= holds.count(False) < 30
    assert texts[0] not in red, "the question's own passage never"
    assert all(" is " in text for text in every) and len(every) in (29, 30)
    printed = capsys.readouterr().out
    assert "queries: 3" in printed and "fewer than asked for: 3" in printed
    for turn in ("1/2", "0/2"):
        mine_negatives.run([*mine, "--save_path", str(tmp_path / "s.json"), "--shard", turn, "eval.batch_size=1"])
    sharded = json.loads((tmp_path / "s.json").read_text())
    assert [r["neg_ids"] for r in sharded] == [r["neg_ids"] for r in found]
    with pytest.raises(UserError, match="--rules odd"):
        mine_negatives.run([*mine, "--save_path", str(tmp_path / "x.json"), "--rules", "odd"])
    with pytest.raises(UserError, match="give --save_path"):
        mine_negatives.run(mine)


def test_sample_hard_negative_by_its_original_flags(tmp_path, tower, colours, monkeypatch):
    texts, _ = colours
    monkeypatch.chdir(tmp_path)
    files = ["--dataset_name", "okvqa_gs", "--all_blocks_file", "corpus.csv"]
    index = Path("experiments/gs/indexes/gs.nbits=2")
    run_indexer.run(["--config_path", "run.yaml", "--checkpoint", str(tower), f"index.path={index}"])
    sample_hard_negative.run([*files, "--anno_file", "train.json", "--colbert_ckpt", str(tower), "--index_name",
                              "gs.nbits=2", "--topk", "20", "--save_path", "hard.json"])  # fmt: skip
    red, every, none = (record["negs"] for record in json.loads(Path("hard.json").read_text()))
    assert len(none) == 20 + 12 and none[20:] == none[8:20] and len(every) == 32 and every[20:] == every[8:20]
    kept = [text for text in red if not re.search(r"\bred\b", text)]
    assert set(kept) <= set(texts)
    with pytest.raises(UserError, match=r"--dataset_name okvqa: .*mine_negatives"):
        sample_hard_negative.run(["--anno_file", "x", "--all_blocks_file", "y"])


def test_negatives_of_a_data_set_without_a_file_of_records(tmp_path, tower):
    """FlagFacts: what is written is ViD2R's format."""
    (tmp_path / "run.yaml").write_text(
        f"run: {{out: {tmp_path / 'run'}, device: cpu}}\ndata: {{name: flagfacts, modality: question, limit: 3, "
        f"root: {ROOT / 'data' / 'flagfacts'}}}\nmodel: {{name: colbert, text_tower: {tower}, dim: 16}}\n"
        "index: {name: exact}\ntrain: {steps: 1}\n"
    )
    config = ["--config_path", str(tmp_path / "run.yaml"), "--checkpoint", str(tower)]
    run_indexer.run(config)
    mine_negatives.run([*config, "--save_path", str(tmp_path / "n.json"), "--topk", "12", "--least", "4"])
    data = vid2r.build(vid2r.Config(path=str(tmp_path / "n.json"), valid_samples=1, hard_negatives=4))
    rows = json.loads((ROOT / "data" / "flagfacts" / "train.json").read_text())[:3]
    told = {row["question"]: row["document"] for row in rows}
    for example in data.examples("train", 0, 0):
        assert example.positive.text == told[example.query.text]
        assert len(example.negatives) == 4 and told[example.query.text] not in [d.text for d in example.negatives]


def test_records_with_negatives_train(tmp_path):
    """Both kinds of negs, texts and records, are what data.hard_negatives draws from."""
    rows = [{"id": str(i), "question": "q", "document": f"d{i}", "negs": [f"n{i}", {"id": "x", "document": f"m{i}"}]}
            for i in range(4)]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(rows))
    data = vid2r.build(vid2r.Config(path=str(tmp_path / "x.json"), valid_samples=1, hard_negatives=2))
    example = data.examples("train", 0, 0)[0]
    assert {n.text[0] for n in example.negatives} == {"n", "m"}


# ---- dataset_stats


def test_statistics_and_their_page(tmp_path, words, responses, capsys):
    base = knowledge_base(tmp_path / "kb.jsonl")
    records, _ = converted(tmp_path / "a.json", responses, base, "--limit", 40)
    twin = {**records[0], "id": "twin", "image": "twin.jpg", "document": records[0]["document"] + " Extra."}
    leaking = {
        "id": "leak",
        "image": None,
        "question": "Is it an old boat? <b>",
        "document": "x",
        "answer": "an old boat",
    }
    broken = {**twin, "question": "half a pair \ud800"}
    long = {"question": "Whose name is too long?", "document": "Short.", "image": "x" * 5000}
    records += [twin, {**twin, "question": "Again?"}, leaking, {"id": "unusable"}, broken, long, long]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "test.json").write_text(
        json.dumps(
            [
                {**twin, "id": "t", "image": "new.jpg"},
                {
                    "question_id": 1,
                    "question": "q",
                    "ctxs": [{"id": "1", "text": "Nothing of the kind stands anywhere else."}],
                },
            ]
        )
    )
    image = tmp_path / "images" / records[3]["image"]
    image.parent.mkdir(parents=True)
    Image.new("RGB", (600, 400), (9, 99, 9)).save(image)
    dataset_stats.run([str(tmp_path / "a.json"), "--image_dir", str(tmp_path / "images"), "--samples", "45", "--test",
                       str(tmp_path / "test.json")])  # fmt: skip
    report = json.loads((tmp_path / "a.stats" / "stats.json").read_text())
    assert report["records"] == {"read": 47, "usable": 45, "not usable": 2}
    assert report["rules"]["pairs"]["kept"] == 40
    assert report["duplicates"] == {"same id": 1, "same question and document": 1, "same document": 2}
    assert report["images"]["records without"] == 1 and report["images"]["records whose file is missing"] >= 39
    assert report["leakage"]["answer word for word in the question"] == 1
    assert report["leakage"]["answer word for word in the document"] == 42
    assert report["near-duplicates"]["documents with one"] >= 2
    assert any(pair["second"].endswith("Extra.") for pair in report["near-duplicates"]["samples"])
    overlap = report["overlap with test.json"]
    assert (
        overlap["test records"] == 2 and overlap["with the same document"] == 1 and overlap["with the same image"] == 0
    )
    assert overlap["with a near-duplicate document"] == 1 and overlap["with the same question and document"] == 1
    page = (tmp_path / "a.stats" / "index.html").read_text()
    assert page.count('class="card"') == 45 and page.count("data:image/jpeg;base64,") == page.count("<img") >= 1
    assert page.count("<svg") == 3 and "&lt;b&gt;" in page and "<b>" not in page and 'src="http' not in page
    assert "45 usable" in capsys.readouterr().out


def test_samples_are_drawn_evenly_and_the_same_every_time(tmp_path):
    from runs.stats import Stats

    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"id": i, "question": "q", "document": f"d {i}"}) for i in
                                                range(50)))  # fmt: skip
    seen = [r["id"] for seed in range(60) for r in Stats.of(str(tmp_path / "x.jsonl"), None, 10, seed, None).drawn]
    assert set(seen) == set(range(50)) and 170 < sum(id_ < 25 for id_ in seen) * 1.0 < 430
    again = Stats.of(str(tmp_path / "x.jsonl"), None, 10, 7, None)
    assert [r["id"] for r in again.drawn] == seen[70:80] and again.record(33)["id"] == 33
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="holds no record"):
        Stats.of(str(tmp_path / "x.jsonl"), None, 1, 0, None)
