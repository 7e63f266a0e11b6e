"""Every mistake a caller can make is one sentence that names the value and the remedy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.tokens import TokenBatch
from index import open_index
from tests.index_cases import ENCODER, cls, corpus, modules, questions

DOCS = corpus(60)
QUERIES = questions(DOCS, 3, 6)
each_index = pytest.mark.parametrize("name", modules())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("errors")
    return {n: cls(n).build(root / n, DOCS, dim=32, encoder=ENCODER) for n in modules()}


def fails(match: str):
    return pytest.raises(UserError, match=match)


def changed(position: int, item) -> list:
    return [*DOCS[:position], item, *DOCS[position + 1 :]]


@each_index
def test_k(built, name):
    with fails(r"k=61 is more than the 60 documents.*k=60"):
        built[name].search(QUERIES, 61)
    for k in (0, -1, 2.0, True):
        with fails(f"k={k!r} is not a positive integer"):
            built[name].search(QUERIES, k)


@each_index
def test_queries(built, name):
    emb, mask = QUERIES.embeddings, QUERIES.mask
    none = mask.clone()
    none[1] = False
    with fails("query 1 of the batch has no unmasked row"):
        built[name].search(TokenBatch(emb, none), 3)
    bad = emb.clone()
    bad[2, 1, 0] = torch.inf
    with fails("query 2 of the batch holds NaN or infinity in row 1"):
        built[name].search(TokenBatch(bad, mask), 3)
    with fails("queries have 16 dimensions and the index has 32"):
        built[name].search(TokenBatch(emb[..., :16], mask), 3)


@each_index
def test_allowed_ids(built, name):
    with fails("allowed id 'nobody' is not in the index"):
        built[name].search(QUERIES, 3, {"doc-1", "nobody"})
    with fails("2 sets for 3 queries"):
        built[name].search(QUERIES, 3, [{"doc-1"}, {"doc-2"}])
    for wrong in (["doc-1", "doc-2", "doc-3"], "doc-1"):
        with fails("give a set, or one set per query"):
            built[name].search(QUERIES, 3, wrong)


@each_index
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_document_values(tmp_path, name, value):
    vectors = DOCS[5][1].copy()
    vectors[1, 2] = value  # 1e6 is infinite in float16
    with fails("document 'doc-5' hold NaN or infinity"):
        cls(name).build(tmp_path / "i", changed(5, ("doc-5", vectors)), dim=32, encoder={})


@each_index
@pytest.mark.parametrize(
    "item, match",
    [
        (("doc-2", DOCS[9][1]), "id 'doc-2' stands twice"),
        ((" ", DOCS[9][1]), "document 9 has an empty id"),
        ((9, DOCS[9][1]), "document 9 has the id 9 of type int"),
        (("doc-9", DOCS[9][1][:, :8]), r"'doc-9' have shape \(\d+, 8\), the index wants \[n, 32\]"),
        (("doc-9", DOCS[9][1][0]), r"'doc-9' have shape \(32,\).*\[1, d\]"),
        (("doc-9", None), "'doc-9' came without vectors"),
    ],
)
def test_documents(tmp_path, name, item, match):
    with fails(match):
        cls(name).build(tmp_path / "i", changed(9, item), dim=32, encoder={})
    with fails("incomplete"):
        cls(name).open(tmp_path / "i")


@each_index
def test_nothing_to_index(tmp_path, name):
    with fails("no documents were given"):
        cls(name).build(tmp_path / "i", [], dim=32, encoder={})


@each_index
def test_incomplete_and_absent(tmp_path, built, name):
    with fails("there is no index at"):
        cls(name).open(tmp_path / "absent")
    with fails("there is no index at"):
        open_index(tmp_path / "absent")
    (tmp_path / "i").mkdir()
    for opener in (cls(name).open, open_index):
        with fails("run the same command again"):
            opener(tmp_path / "i")
    (tmp_path / "i" / "manifest.json").write_text(json.dumps({"format": "other", "version": 2}))
    with fails(f"format 'other', not '{name}'"):
        cls(name).open(tmp_path / "i")
    with fails("format 'other', which this version does not know"):
        open_index(tmp_path / "i")


@each_index
def test_encoder(built, name):
    path = built[name].path
    cls(name).open(path, encoder=ENCODER)
    cls(name).open(path)
    with fails(r"built by another checkpoint \(weights: index 'abc', now 'xyz'\).*build the index again"):
        cls(name).open(path, encoder={**ENCODER, "weights": "xyz"})
    with fails(r"config.rows: index \['text'\], now \['text', 'patch'\]"):
        cls(name).open(path, encoder={**ENCODER, "config": {"rows": ["text", "patch"]}})


@each_index
def test_building_over_something(tmp_path, built, name):
    with fails("already holds a complete index of 60 documents"):
        cls(name).build(built[name].path, DOCS, dim=32, encoder=ENCODER)
    (tmp_path / "notes.txt").write_text("mine")
    with fails("not empty and holds no index"):
        cls(name).build(tmp_path, DOCS, dim=32, encoder=ENCODER)


@each_index
def test_going_on_with_something_else(tmp_path, name, monkeypatch):
    monkeypatch.setattr("index.stream.BLOCK_DOCS", 20)

    def interrupted():
        yield from DOCS[:45]
        raise KeyboardInterrupt

    def build(docs, **changes):
        return cls(name).build(tmp_path / "i", docs, **{"dim": 32, "encoder": ENCODER, **changes})

    with pytest.raises(KeyboardInterrupt):
        build(interrupted())
    assert cls(name).committed(tmp_path / "i") == 40
    swapped = [DOCS[1], DOCS[0], *DOCS[2:]]
    with fails("document 0 of the stream is 'doc-1', but .* was begun with 'doc-0'.*same order"):
        build(swapped)
    with fails("the stream ended after 30 documents, but .* already holds 40"):
        build(DOCS[:30])
    option = {"exact": {"dtype": "float32"}, "plaid": {"nbits": 8}}[name]
    with fails(f"begun otherwise .*{next(iter(option))}: unfinished .*, now"):
        build(DOCS, **option)
    with fails("begun otherwise .*encoder"):
        build(DOCS, encoder={"weights": "xyz"})
    assert len(build(DOCS)) == 60


def test_damage_is_a_sentence(tmp_path):
    built = cls("exact").build(tmp_path / "i", DOCS, dim=32, encoder=ENCODER)
    file = tmp_path / "i" / "seg-00000" / "vectors.bin"
    file.write_bytes(file.read_bytes()[:-100])
    with fails("missing or damaged"):
        cls("exact").open(built.path).search(QUERIES, 3)


def test_options():
    with fails("dtype 'int8' is not offered"):
        cls("exact").build("unused", DOCS, dim=32, encoder={}, dtype="int8")
    with fails("dim=0 is not a positive integer"):
        cls("exact").build("unused", DOCS, dim=0, encoder={})
    for name in ("sample_vectors", "iterations", "max_centroids"):
        with fails(f"{name}=-1 is not a positive integer"):
            cls("plaid").build("unused", DOCS, dim=32, encoder={}, **{name: -1})
    with fails("nbits=3 is not offered; use one of 1, 2, 4, 8"):
        cls("plaid").build("unused", DOCS, dim=32, encoder={}, nbits=3)


def test_plaid_effort(built):
    plaid = built["plaid"]
    with fails("effort 'best' is unknown; use 'fast', 'balanced', 'exhaustive' or 'colbert'"):
        plaid.search(QUERIES, 3, effort="best")
    with fails("k=20 is more than the n_candidates=10"):
        plaid.search(QUERIES, 20, n_candidates=10)
    with fails("n_probe has no meaning with effort='exhaustive'"):
        plaid.search(QUERIES, 3, effort="exhaustive", n_probe=2)
    with fails("n_probe=0 opens no list"):
        plaid.search(QUERIES, 3, n_probe=0)


def test_plaid_build(tmp_path):
    with fails("none of the 1 documents .* has a vector"):
        cls("plaid").build(tmp_path / "b", [("a", np.zeros((0, 32)))], dim=32, encoder={})
