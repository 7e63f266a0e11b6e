"""TriviaWiki: what its builder promises, what the data set draws, and the benchmark from end to end on a tiny one."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

import dataset
from core.config import check
from core.errors import UserError
from scripts.build_triviawiki import (
    Asked,
    add_negatives,
    deal,
    families,
    mark_answerable,
    match,
    plain,
    read_questions,
    write,
)
from tests import tiny
from tests.test_dataset import contract
from tests.triviawiki_case import LEADS, asked, rank, tiny_triviawiki

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import triviawiki
import triviawiki_start
import triviawiki_systems

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "cfgs" / "triviawiki_colbert.yaml")
SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("triviawiki") / "data"
    tiny_triviawiki(out)
    return out


@pytest.fixture(scope="module")
def splits(root):
    return {split: json.loads((root / f"{split}.json").read_text()) for split in SPLITS}


def build(root, **changes):
    module = dataset.module("triviawiki")
    return module.build(check(module.Config, {"name": "triviawiki", "root": str(root), **changes}, "data"))


# ---- the builder's rules


def ask(question: str, *answers: str, id: str = "q") -> Asked:
    return Asked(id, "toy", question, answers)


def test_texts_are_compared_without_case_accents_punctuation_and_articles():
    assert plain("The  Café-au-lait, a drink!") == "cafe au lait drink"


def test_question_files_of_both_forms_are_read_and_cut_lines_left_out():
    lines = [
        b"who\t['A', \"B's\"]\r",
        b'what\t"[""C \'d\' "", \'E\']"',
        b"cut\t['A',",
        b'{"question": "why ", "answer": ["F"]}',
    ]
    raw = b"\n".join(lines)
    found = list(read_questions(raw, "wq.test"))
    assert [(q.id, q.question, q.answers) for q in found] == [
        ("wq.test:0", "who", ("A", "B's")),
        ("wq.test:1", "what", ("C 'd' ", "E")),
        ("wq.test:3", "why", ("F",)),
    ]
    assert found[0].source == "WebQuestions"


LIBRARY = {"Mercury": "x", "The Lion": "x", "Lion": "x", "Tiger": "x", "1984": "x", "Go": "x", "Bear": "x", "Ant": "x"}


@pytest.mark.parametrize(("question", "answers", "titles"), [
    ("who", ["tiger!", "panthera"], ["Tiger"]),
    ("who", ["Tiger", "Bear"], ["Bear", "Tiger"]),
    ("who", ["Tiger", "Bear", "Ant"], None),  # three articles: no answer is meant
    ("who", ["lion"], None),  # two titles are the same
    ("who", ["1984"], None),
    ("who", ["Go"], None),
    ("is the tiger a cat", ["Tiger"], None),  # the title stands in the question
    ("is tigerish a word", ["Tiger"], ["Tiger"]),
    ("who", ["", "the"], None),
])  # fmt: skip
def test_which_articles_answer(question, answers, titles):
    rows = match([ask(question, *answers)], LIBRARY)
    assert [r["positives"] for r in rows] == ([] if titles is None else [titles])
    assert all("" not in r["answers"] for r in rows)


def test_of_equal_questions_the_first_stays():
    rows = match([ask("Who is it?", "Tiger", id="1"), ask("who is it", "Bear", id="2")], LIBRARY)
    assert [r["id"] for r in rows] == ["1"]


def test_answerable_means_two_informative_words_and_one_article():
    leads = {f"Other {i}": "common words stand here" for i in range(100)} | {
        "Tiger": "striped jungle animal",
        "Bear": "x",
    }
    rows = [{"question": q, "positives": p} for q, p in [
        ("which striped one lives in jungles", ["Tiger"]),  # the first six letters count
        ("which striped one", ["Tiger"]),
        ("which common striped words", ["Tiger"]),  # common words are not informative, and the lead lacks them
        ("which striped one lives in jungles", ["Bear", "Tiger"]),
    ]]  # fmt: skip
    mark_answerable(rows, leads)
    assert [r["answerable"] for r in rows] == [True, False, False, False]


def test_questions_that_share_an_article_are_one_family():
    rows = [{"positives": p} for p in (["A"], ["B"], ["A", "C"], ["D"], ["C", "E"], ["E"])]
    assert sorted(sorted(f) for f in families(rows)) == [[0, 2, 4, 5], [1], [3]]


def test_splits_share_no_article_and_lose_no_question():
    rows = [{"id": i, "positives": sorted({f"a{i % 40}", f"a{(i * 7) % 40}"} if i % 9 == 0 else {f"a{i % 40}"})}
            for i in range(200)]  # fmt: skip
    parts = deal(rows, test=60, dev=20)
    assert sorted(r["id"] for part in parts.values() for r in part) == list(range(200))
    assert len(parts["test"]) >= 60 and len(parts["dev"]) >= 20 and parts["train"]
    articles = {split: {t for r in part for t in r["positives"]} for split, part in parts.items()}
    assert not articles["train"] & articles["dev"] and not articles["train"] & articles["test"]
    assert not articles["dev"] & articles["test"]
    assert deal(rows, test=60, dev=20) == parts and deal(rows, test=60, dev=20, seed=1) != parts
    with pytest.raises(UserError, match="too few"):
        deal(rows, test=190, dev=20)


def test_mined_negatives_neither_are_nor_hold_an_answer():
    leads = {
        "Tiger": "striped cat",
        "Cat": "it resembles the tiger",
        "Big cat": "Panthera!",
        "Pantherae": "more",
        "Dog": "x",
    }
    row = {"question": "which striped one", "positives": ["Tiger"], "answers": ["tiger", "panthera"]}
    add_negatives([row], leads, lambda texts, queries, k: [[1, 3, 0, 2, 4]])
    assert row["negatives"] == ["Pantherae", "Dog"], "whole words, in the order of the ranking"


def test_the_folder(root, splits, tmp_path):
    manifest = json.loads((root / "manifest.json").read_text())
    assert {s: len(rows) for s, rows in splits.items()} == {s: manifest["counts"][s] for s in SPLITS}
    questions = [plain(r["question"]) for rows in splits.values() for r in rows]
    assert len(questions) == len(set(questions)) == 72
    articles = {split: {t for r in rows for t in r["positives"]} for split, rows in splits.items()}
    assert all(not articles[a] & articles[b] for a, b in itertools.combinations(SPLITS, 2))
    ids = [json.loads(line)["id"] for line in (root / "passages.jsonl").read_text().splitlines()]
    assert len(ids) == len(LEADS) and not any(c.isspace() for i in ids for c in i)
    assert all("negatives" in r for r in splits["train"]) and not any("negatives" in r for r in splits["test"])
    write(tmp_path / "again", asked(), LEADS, rank, test=24, dev=12)
    assert {p.name: p.read_bytes() for p in root.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


# ---- the data set


def test_contract(root):
    data = build(root, hard_negatives=3)
    first, later = contract(data, ("train", "dev", "test", "test_answerable"))
    assert all(len(e.negatives) == 3 for e in first)
    assert [e.negatives for e in first] != [e.negatives for e in later], "negatives are redrawn"
    part = {q.id for q in data.queries("test_answerable")}
    assert part == {q.id for q in data.queries("test") if q.meta["answerable"]} and 0 < len(part) < 24


def test_what_the_negatives_are(root, splits):
    mined = {r["id"]: set(r["negatives"]) for r in splits["train"]}
    assert all(n.id in mined[e.query.id] for e in build(root).examples("train", 0, 0) for n in e.negatives)
    many = build(root, hard_negatives=30).examples("train", 0, 0)[0]  # more than are mined: any other lead
    ids = [n.id for n in many.negatives]
    assert len(set(ids)) == 30 and many.positive.id not in ids and not mined[many.query.id] >= set(ids)
    with pytest.raises(UserError, match="hard_negatives is 99, but there are"):
        build(root, hard_negatives=99).examples("train", 0, 0)[0]


def test_limit_and_what_is_missing(root, tmp_path):
    data = build(root, limit=5)
    contract(data, ("train", "dev", "test", "test_answerable"))
    assert len(data.queries("test")) == 5 and len(data.corpus()) < len(LEADS)
    with pytest.raises(UserError, match="no split 'test_photo'"):
        data.queries("test_photo")
    with pytest.raises(UserError, match=r"holds no TriviaWiki .*build_triviawiki.py --fetch"):
        build(tmp_path)


# ---- the benchmark


def test_the_trained_system_is_compared_by_families(root):
    """A difference carried by one family is no evidence, the same spread over all families is."""
    data = build(root)
    groups = triviawiki.families_of(data, "test")
    ids = [q.id for q in data.queries("test")]
    assert len(set(groups.values())) == 8 and set(groups) == set(ids)
    zero = dict.fromkeys(ids, 0.0)
    one_family = {i: float(groups[i] == groups[ids[0]]) for i in ids}
    spread = dict.fromkeys(ids, 1.0)
    scores = {"bm25": zero, "single": spread, "untrained": zero}
    narrow = triviawiki.comparisons({**scores, "trained": one_family}, data)["test"]
    wide = triviawiki.comparisons({**scores, "trained": spread}, data)["test"]
    assert narrow["bm25"]["p"] == 1 and narrow["bm25"]["gap"] == pytest.approx(3 / 24)
    assert wide["bm25"]["p"] == pytest.approx(2 / 2**8, rel=0.3) and wide["bm25"]["holm"] == 3 * wide["bm25"]["p"]
    assert wide["single"]["gap"] == 0 and not wide["single"]["better"]


def test_ties_on_dev_go_to_the_first_setting(root):
    bench = triviawiki_systems.Bench.__new__(triviawiki_systems.Bench)
    bench.data = build(root)
    asked_for = []

    def attempt(name):
        return lambda split: asked_for.append((name, split)) or {split: name}

    values = {"a": 0.2, "b": 0.5, "c": 0.5}
    bench.dev = lambda rankings: {"Success@10": values[rankings["dev"]]}
    best, metrics, rankings = bench.choose({name: attempt(name) for name in values})
    assert best == "b" and rankings == {"dev": {"dev": "b"}, "test": {"test": "b"}}
    assert metrics["a"] == {"Success@10": 0.2}
    assert [name for name, split in asked_for if split == "test"] == ["b"], "test is looked at once, for the chosen one"


def test_the_untrained_projection_keeps_most_of_what_there_is(root, tmp_path):
    """Its rows are orthonormal, and no other projection of that width keeps more of the token states."""
    import torch

    cfg = settings(root, tmp_path)
    data = dataset.build(cfg.data)
    retriever = triviawiki_systems.open_retriever(triviawiki_start.make_start(cfg, data, tmp_path / "start"))
    axes = retriever.text.linear.weight.detach()
    assert torch.allclose(axes @ axes.T, torch.eye(16), atol=1e-4) and not retriever.tokenizer.conventions.expansion
    batch = retriever.collate_documents(list(data.corpus()))
    with torch.inference_mode():
        rows = retriever.states(batch)[batch["keep"]]
    other = torch.linalg.qr(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))[0]
    assert (rows @ axes.T).square().sum() > 1.05 * (rows @ other).square().sum()


def overrides(root, tmp_path) -> list[str]:
    tower = tiny.text_tower(tmp_path / "text", colbert=False)
    return [f"data.root={root}", f"model.text_tower={tower}", "model.dim=16", "train.precision=fp32", "run.device=cpu"]


def settings(root, tmp_path):
    from runs.settings import load

    return load(CONFIG, overrides(root, tmp_path))


def test_smoke(root, tmp_path, capsys):
    """Every stage on a handful of records; given again, nothing is computed anew and the answer is the same."""
    args = ["--smoke", "--config", CONFIG, "--out", str(tmp_path / "out"), *overrides(root, tmp_path)]
    assert triviawiki.run(args) is None
    results, table = (tmp_path / "out" / "results.json"), (tmp_path / "out" / "table.md").read_text()
    first = json.loads(results.read_text())
    assert set(first["systems"]) == {"bm25", "single", "untrained", "trained"}
    for system in first["systems"].values():
        assert 0 <= system["test"]["Success@1"]["mean"] <= system["test"]["Success@10"]["mean"] <= 1
    assert len(first["tried_on_dev"]["bm25"]) == 24 and len(first["tried_on_dev"]["untrained"]) == 2
    assert set(first["comparisons"]["test"]) == set(triviawiki.RIVALS) and "MaxSim, trained" in table
    assert not list((tmp_path / "out" / "index").iterdir()), "an index is deleted once its result is written"
    capsys.readouterr()
    (tmp_path / "out" / "results" / "single.json").unlink()
    assert triviawiki.run(args) is None
    said = capsys.readouterr().out
    assert said.count("was complete") == 3 and "single: ..." in said
    again = json.loads(results.read_text())
    for one in (first, again):
        for system in one["systems"].values():
            system.pop("seconds")
    assert again == first
