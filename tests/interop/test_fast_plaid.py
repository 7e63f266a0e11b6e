"""The fast-plaid adapter: its rankings are close to exact, ids and empty documents are where they belong."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.tokens import TokenBatch
from index.common import NO_VECTORS
from tests.index_cases import cls, corpus, overlap, questions

DOCS = corpus(1500)
EMPTY = (0, 7, 700, 1499)
for i in EMPTY:
    DOCS[i] = (f"doc-{i}", np.zeros((0, 32), np.float32))
IDS = [id_ for id_, _ in DOCS]
QUERIES = questions([d for d in DOCS if len(d[1])], 40, 9)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return cls("exact").build(tmp_path_factory.mktemp("exact") / "i", DOCS, dim=32, encoder={})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("fast-plaid")
    made = {bits: cls("fast_plaid").build(root / str(bits), DOCS, dim=32, encoder={}, nbits=bits) for bits in (8, 4)}
    batches = cls("fast_plaid").build(root / "batches", DOCS, dim=32, encoder={}, nbits=8, batch_docs=373)
    return {**made, "batches": batches}


@pytest.mark.parametrize("which, least", [(8, 0.97), (4, 0.85), ("batches", 0.95)])
def test_close_to_exact(built, exact, which, least):
    wanted, got = exact.search(QUERIES, 20), built[which].search(QUERIES, 20, effort="exhaustive")
    assert overlap(wanted, got, 20) >= least
    assert overlap(wanted, built[which].search(QUERIES, 20), 20) >= least - 0.1
    for a, b in zip(wanted, got):
        assert abs(a.scores[0] - b.scores[0]) < (0.5 if which == 4 else 0.15)


@pytest.mark.parametrize("which", [8, "batches"])
def test_everything_is_ranked_and_empty_documents_come_last(built, which):
    for ranking in built[which].search(QUERIES, len(DOCS), effort="exhaustive"):
        assert sorted(ranking.ids) == sorted(IDS)
        assert ranking.ids[-4:] == tuple(f"doc-{i}" for i in EMPTY)
        assert ranking.scores[-1] == pytest.approx(NO_VECTORS) and ranking.scores[-5] > NO_VECTORS / 2
    got = built[which].search(QUERIES, 10, {"doc-7", "doc-8", "doc-1499"})
    assert all(r.ids == ("doc-8", "doc-7", "doc-1499") for r in got)


@pytest.mark.parametrize("which", [8, 4, "batches"])
def test_numbers_and_ids_belong_together(built, which):
    got = list(built[which].vectors())
    assert [id_ for id_, _ in got] == IDS
    for (_, wanted), (_, vectors) in zip(DOCS, got):
        assert vectors.shape == wanted.shape and ((wanted * vectors).sum(1) > 0.9).all()
    found = built[which].search(TokenBatch.pad([torch.from_numpy(v) for _, v in DOCS[1:6]]), 1)
    assert [r.ids[0] for r in found] == IDS[1:6]


def test_masked_and_zero_rows_count_nothing(built):
    extra = torch.full((40, 2, 32), torch.nan)
    emb = torch.cat([extra, QUERIES.embeddings, torch.zeros(40, 2, 32)], dim=1)
    mask = torch.cat([torch.zeros(40, 2), QUERIES.mask, torch.ones(40, 2)], dim=1).bool()
    for a, b in zip(built[8].search(QUERIES, 30), built[8].search(TokenBatch(emb, mask), 30)):
        assert a.ids == b.ids
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)
    alone = [built[8].search(QUERIES.select([b]), 30)[0] for b in range(5)]
    assert [r.ids for r in alone] == [r.ids for r in built[8].search(QUERIES, 30)[:5]]  # batches do not matter
    zeros = TokenBatch(torch.zeros(1, 3, 32), torch.ones(1, 3, dtype=torch.bool))
    assert len(built[8].search(zeros, 5)[0].ids) == 5


def test_effort(built, exact):
    wanted = exact.search(QUERIES, 20)
    shares = [overlap(wanted, built[8].search(QUERIES, 20, effort=e), 20) for e in ("fast", None, "exhaustive")]
    assert shares == sorted(shares)
    few = built[8].search(QUERIES, 20, n_ivf_probe=1, n_full_scores=80)
    assert overlap(wanted, few, 20) < shares[-1]
    with pytest.raises(UserError, match=r"k=30 is more than the 20 documents.*n_full_scores=120 or more"):
        built[8].search(QUERIES, 30, n_full_scores=80)
    with pytest.raises(UserError, match="effort 'much' is unknown; use 'fast', 'balanced' or 'exhaustive'"):
        built[8].search(QUERIES, 3, effort="much")
    with pytest.raises(UserError, match="n_ivf_probe=0 is not a positive integer"):
        built[8].search(QUERIES, 3, n_ivf_probe=0)
    built[8].search(QUERIES, 3, n_ivf_probe=10**6)  # more lists than there are: all
    assert built[8].search(QUERIES, 9, n_processes=2) == built[8].search(QUERIES, 9)


def test_building_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    cls("fast_plaid").build(tmp_path / "i", DOCS[:60], dim=32, encoder={}, batch_docs=59)  # the last batch is one
    assert torch.equal(torch.rand(2), wanted)


def test_what_it_cannot_build(tmp_path):
    with pytest.raises(UserError, match="nbits=3 is not offered; use 1, 2, 4 or 8"):
        cls("fast_plaid").build(tmp_path / "a", DOCS, dim=32, encoder={}, nbits=3)
    with pytest.raises(UserError, match="dim=30 is not a multiple of 8"):
        cls("fast_plaid").build(tmp_path / "b", DOCS, dim=30, encoder={})
    for few in (DOCS[:1], DOCS[1:2]):  # no vector at all; too few for held-out samples
        with pytest.raises(UserError, match=r"fast-plaid could not index a batch of . documents.*index.name exact"):
            cls("fast_plaid").build(tmp_path / "c", few, dim=32, encoder={})


def test_another_version_is_refused_because_it_would_rewrite_the_files(built, tmp_path):
    shutil.copytree(built[4].path, tmp_path / "i")
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text())
    assert re.fullmatch(r"fast-plaid 1\.\d\.\d\.\d+", manifest["library"])
    (tmp_path / "i" / "manifest.json").write_text(json.dumps({**manifest, "library": "fast-plaid 1.3.0.2110"}))
    opened = cls("fast_plaid").open(tmp_path / "i")
    assert opened.verify() == []
    with pytest.raises(UserError, match=r"written by fast-plaid 1.3.0.2110.*install the version that wrote it"):
        opened.search(QUERIES, 3)
