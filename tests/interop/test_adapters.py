"""What both adapters promise: documents are checked, folders are whole or absent, the library is named when absent."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.tokens import TokenBatch
from index import open_index
from tests.index_cases import ENCODER, cls, corpus, questions, run_killed

NAMES = ("faiss_flat", "fast_plaid")
DOCS = corpus(120, rows=(1, 2))
IDS = [id_ for id_, _ in DOCS]
each = pytest.mark.parametrize("name", NAMES)


def queries(n: int) -> TokenBatch:
    return TokenBatch(questions(DOCS, n, 1).embeddings, torch.ones(n, 1, dtype=torch.bool))


QUERIES = queries(5)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {n: cls(n).build(root / n, iter(DOCS), dim=32, encoder=ENCODER, total=len(DOCS)) for n in NAMES}


def fails(match: str):
    return pytest.raises(UserError, match=match)


@each
def test_says_what_it_is_and_opens_by_its_format(built, name):
    index = built[name]
    assert list(index.ids()) == IDS and len(index) == 120
    stats = index.stats()
    assert stats["format"] == name and stats["documents"] == stats["vectors"] == 120 and stats["dim"] == 32
    assert stats["bytes"] <= sum(p.stat().st_size for p in index.path.rglob("*") if p.is_file())
    opened = open_index(index.path, encoder=ENCODER)
    assert type(opened) is type(index) and cls(name).committed(index.path) == 0
    assert opened.search(QUERIES, 7) == index.search(QUERIES, 7)
    with fails("built by another checkpoint"):
        open_index(index.path, encoder={**ENCODER, "weights": "xyz"})


@each
def test_vectors_come_back(built, name):
    got = list(built[name].vectors())
    assert [id_ for id_, _ in got] == IDS
    for (_, wanted), (_, vectors) in zip(DOCS, got):
        assert vectors.shape == (1, 32) and float((wanted * vectors).sum()) > 0.98


@each
def test_rankings_are_ordered_and_ties_go_by_position(built, name, tmp_path):
    for ranking in built[name].search(QUERIES, 20, effort="exhaustive"):
        assert list(ranking.scores) == sorted(ranking.scores, reverse=True) and len(set(ranking.ids)) == 20
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(3, 32)).astype(np.float32) / 32**0.5
    docs = [(f"d{i:03d}", signs[i % 3][None]) for i in range(90)]
    query = TokenBatch(torch.from_numpy(signs[1:2])[None], torch.ones(1, 1, dtype=torch.bool))
    opened = cls(name).build(tmp_path / name, docs, dim=32, encoder={})
    same = tuple(id_ for i, (id_, _) in enumerate(docs) if i % 3 == 1)
    assert opened.search(query, 30, effort="exhaustive")[0].ids == same


@each
@pytest.mark.parametrize("effort", ["exhaustive", None])
def test_allowed_ids(built, name, effort):
    few = {"doc-3", "doc-7", "doc-110"}
    for ranking in built[name].search(QUERIES, 10, few, effort=effort):
        assert set(ranking.ids) == few
    own = [{"doc-1"}, set(), set(IDS), {"doc-7", "doc-8"}, {"doc-2"}]
    got = built[name].search(QUERIES, 4, own, effort=effort)
    assert [len(r.ids) for r in got] == [1, 0, 4, 2, 1]
    assert all(set(r.ids) <= a for r, a in zip(got, own))
    whole = built[name].search(QUERIES, 120, effort="exhaustive")
    half = set(IDS[20:80])
    for all_, part in zip(whole, built[name].search(QUERIES, 15, half, effort="exhaustive")):
        assert list(part.ids) == [i for i in all_.ids if i in half][:15]


@each
def test_mistakes_of_a_search(built, name):
    index = built[name]
    with fails("k=121 is more than the 120 documents"):
        index.search(QUERIES, 121)
    with fails("queries have 16 dimensions and the index has 32"):
        index.search(TokenBatch(QUERIES.embeddings[..., :16], QUERIES.mask), 3)
    with fails("allowed id 'nobody' is not in the index"):
        index.search(QUERIES, 3, {"nobody"})
    with fails("query 2 of the batch holds NaN"):
        bad = QUERIES.embeddings.clone()
        bad[2, 0, 3] = torch.nan
        index.search(TokenBatch(bad, QUERIES.mask), 3)


@each
@pytest.mark.parametrize(
    "item, match",
    [
        (("doc-2", DOCS[9][1]), "id 'doc-2' stands twice"),
        ((" ", DOCS[9][1]), "document 9 has an empty id"),
        ((9, DOCS[9][1]), "document 9 has the id 9 of type int"),
        (("doc-9", DOCS[9][1][:, :8]), r"'doc-9' have shape \(\d+, 8\), the index wants \[n, 32\]"),
        (("doc-9", DOCS[9][1][0]), r"'doc-9' have shape \(32,\).*\[1, d\]"),
        (("doc-9", None), "'doc-9' came without vectors"),
        (("doc-9", DOCS[9][1] * np.nan), "document 'doc-9' hold NaN or infinity"),
    ],
)
def test_mistakes_in_documents(tmp_path, name, item, match):
    with fails(match):
        cls(name).build(tmp_path / "i", [*DOCS[:9], item, *DOCS[10:]], dim=32, encoder={})
    for opener in (cls(name).open, open_index):
        with fails("incomplete.*run the same command again"):
            opener(tmp_path / "i")
    assert len(cls(name).build(tmp_path / "i", DOCS, dim=32, encoder={})) == 120  # starts anew


@each
def test_folders(tmp_path, built, name):
    with fails("no documents were given"):
        cls(name).build(tmp_path / "none", [], dim=32, encoder={})
    with fails("already holds a complete index of 120 documents"):
        cls(name).build(built[name].path, DOCS, dim=32, encoder={})
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with fails("is not empty and holds no index"):
        cls(name).build(tmp_path / "letters", DOCS, dim=32, encoder={})
    with fails("there is no index at"):
        cls(name).open(tmp_path / "absent")
    other = NAMES[1 - NAMES.index(name)]
    with fails(f"format '{other}', not '{name}'"):
        cls(name).open(built[other].path)


@each
def test_a_killed_build_leaves_no_index_and_starts_anew(tmp_path, built, name):
    code = (
        f"from tests.interop import test_adapters as t\nfrom index import {name}, peers\n"
        "peers.write_json, kept = (lambda path, v: die() if path.name == 'manifest.json' else kept(path, v)), "
        f"peers.write_json\n{name}.Index.build(sys.argv[1], t.DOCS[:50], dim=32, encoder={{}})\n"
    )
    run_killed(code, tmp_path / "i")
    assert (tmp_path / "i" / "ids.json").is_file() and not (tmp_path / "i" / "manifest.json").exists()
    with fails("it starts anew"):
        cls(name).open(tmp_path / "i")
    index = cls(name).build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER)
    assert index.verify() == [] and index.ids() == built[name].ids()
    assert index.search(QUERIES, 5)[0].ids[0] == built[name].search(QUERIES, 5)[0].ids[0]


@each
def test_verify_finds_every_kind_of_damage(built, name, tmp_path):
    built[name].search(QUERIES, 3)  # reading changes nothing that counts
    assert built[name].verify() == []
    files = json.loads((built[name].path / "manifest.json").read_text())["files"]
    assert {"spec.json", "ids.json"} < set(files)
    for file in files:
        content = (built[name].path / file).read_bytes()
        for damage in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), None):
            copy = tmp_path / "copy"
            shutil.copytree(built[name].path, copy)
            (copy / file).unlink() if damage is None else (copy / file).write_bytes(damage)
            problems = cls(name).open(copy).verify()
            assert len(problems) == 1 and file in problems[0], (file, problems)
            shutil.rmtree(copy)


@each
def test_without_the_library_one_sentence_names_the_command(tmp_path, built, name, monkeypatch):
    index = cls(name)
    for module in [m for m in sys.modules if m.split(".")[0] == index.MODULE]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, index.MODULE, None)
    with fails(f"needs {index.PACKAGE}.*pip install {index.PACKAGE}"):
        index.build(tmp_path / "i", DOCS, dim=32, encoder={})
    assert not (tmp_path / "i").exists()
    opened = index.open(built[name].path)
    assert opened.verify() == [] and list(opened.ids()) == IDS  # these need no library
    with fails(f"pip install {index.PACKAGE}"):
        opened.search(QUERIES, 3)
