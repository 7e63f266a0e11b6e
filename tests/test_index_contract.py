"""What every index must do, whatever it stores. Modules are discovered: a new one is tested without being named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from core.tokens import TokenBatch
from index import open_index
from tests.index_cases import ENCODER, cls, corpus, modules, oracle, overlap, questions

DOCS = corpus(300)
DOCS[7] = ("doc-7", np.zeros((0, 32), np.float32))
DOCS[131] = ("doc-131", np.zeros((0, 32), np.float32))
IDS = [id_ for id_, _ in DOCS]
QUERIES = questions(DOCS, 6, 9)


@pytest.fixture(scope="module", params=modules())
def built(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "index"
    return cls(request.param).build(path, iter(DOCS), dim=32, encoder=ENCODER, total=len(DOCS))


def test_discovery_sees_the_room():
    assert {"exact", "plaid"} <= set(modules())


def test_exhaustive_search_agrees_with_maxsim(built):
    truth = oracle(DOCS, QUERIES)
    truth[:, [7, 131]] = -torch.inf
    got = built.search(QUERIES, 20, effort="exhaustive")
    wanted = truth.topk(20).indices
    shares = [len({IDS[i] for i in row.tolist()} & set(r.ids)) / 20 for row, r in zip(wanted, got)]
    assert np.mean(shares) > (0.999 if type(built).__module__ == "index.exact" else 0.6)
    for ranking in got:
        assert list(ranking.scores) == sorted(ranking.scores, reverse=True)


def test_everything_is_ranked_and_documents_without_vectors_come_last(built):
    negative = TokenBatch(-QUERIES.embeddings.abs(), QUERIES.mask)  # an empty document must lose to a negative score
    for effort in ("exhaustive", None):
        for ranking in built.search(negative, len(DOCS), effort=effort):
            assert sorted(ranking.ids) == sorted(IDS)
            assert ranking.ids[-2:] == ("doc-7", "doc-131")
            assert json.loads(json.dumps(ranking.scores, allow_nan=False)) == sorted(ranking.scores, reverse=True)


@pytest.mark.parametrize("effort", ["exhaustive", None])
def test_allowed_ids(built, effort):
    few = {"doc-3", "doc-7", "doc-250"}
    for ranking in built.search(QUERIES, 10, few, effort=effort):
        assert set(ranking.ids) == few and ranking.ids[-1] == "doc-7"
    many = [set(IDS[i::2]) for i in (0, 1, 0, 1, 0, 1)]
    for ranking, allowed in zip(built.search(QUERIES, 50, many, effort=effort), many):
        assert len(ranking.ids) == 50 and set(ranking.ids) <= allowed
    mixed = [{"doc-1"}, set(), set(IDS), {"doc-7"}, {"doc-2"}, {"doc-1"}]
    assert [len(r.ids) for r in built.search(QUERIES, 4, mixed, effort=effort)] == [1, 0, 4, 1, 1, 1]


def test_allowed_ids_only_remove(built):
    everything = built.search(QUERIES, 298, effort="exhaustive")
    allowed = set(IDS[50:200])
    for whole, part in zip(everything, built.search(QUERIES, 20, allowed, effort="exhaustive")):
        assert list(part.ids) == [i for i in whole.ids if i in allowed][:20]


def test_masked_and_zero_rows_count_nothing(built):
    extra = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(0))
    extra[0, 0] = torch.nan  # behind the mask anything may stand
    emb = torch.cat([QUERIES.embeddings, extra, torch.zeros(6, 2, 32)], dim=1)
    hidden, zero = torch.zeros(6, 4, dtype=torch.bool), torch.ones(6, 2, dtype=torch.bool)
    longer = TokenBatch(emb, torch.cat([QUERIES.mask, hidden, zero], dim=1))
    for effort in ("exhaustive", None):
        for a, b in zip(built.search(QUERIES, 30, effort=effort), built.search(longer, 30, effort=effort)):
            assert a.ids == b.ids
            assert np.allclose(a.scores, b.scores, atol=1e-5)


def test_a_query_of_zeros_ranks_by_position(built):
    zeros = TokenBatch(torch.zeros(1, 3, 32), torch.ones(1, 3, dtype=torch.bool))
    for effort in ("exhaustive", None):
        assert built.search(zeros, 5, effort=effort)[0].ids == tuple(IDS[:5])


def test_equal_documents_rank_by_position(tmp_path):
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], size=(3, 16)).astype(np.float32) / 4  # exact in float16, length 1
    docs = [(f"d{i:03d}", signs[i % 3][None]) for i in rng.permutation(90)]
    query = TokenBatch(torch.from_numpy(signs[1:2])[None], torch.ones(1, 1, dtype=torch.bool))
    for name in modules():
        opened = cls(name).build(tmp_path / name, docs, dim=16, encoder={})
        same = tuple(id_ for id_, _ in docs if int(id_[1:]) % 3 == 1)
        for effort in ("exhaustive", None):
            for k in (1, 7, 30):
                assert opened.search(query, k, effort=effort)[0].ids == same[:k], (name, effort, k)


def test_single_vectors_are_the_case_of_one_row(tmp_path):
    docs = corpus(400, rows=(1, 2))
    queries = questions(docs, 5, 1)
    queries.mask[:] = True
    truth = oracle(docs, queries).topk(10).indices
    for name in modules():
        opened = cls(name).build(tmp_path / name, docs, dim=32, encoder={})
        got = opened.search(queries, 10, effort="exhaustive")
        hits = np.mean([len({f"doc-{i}" for i in row.tolist()} & set(r.ids)) / 10 for row, r in zip(truth, got)])
        assert hits >= (1.0 if name == "exact" else 0.6), name


def test_what_it_says_about_itself(built):
    assert list(built.ids()) == IDS
    stats = built.stats()
    assert stats["documents"] == 300 and stats["documents_without_vectors"] == 2
    assert stats["vectors"] == sum(len(v) for _, v in DOCS)
    files = [p for p in built.path.rglob("*") if p.is_file()]
    assert stats["bytes"] == sum(p.stat().st_size for p in files if p.name != "manifest.json")
    assert not [p for p in files if p.suffix == ".tmp"]
    assert [p.name for p in built.path.iterdir() if p.is_dir()] == ["seg-00000"]
    got = list(built.vectors())
    assert [id_ for id_, _ in got] == IDS
    for (_, wanted), (_, vectors) in zip(DOCS, got):
        assert vectors.shape == wanted.shape
        cosines = (wanted * vectors.astype(np.float32)).sum(1)
        assert (cosines > 0.8).all()


def test_opens_again_with_the_same_answers(built):
    opened = open_index(built.path, encoder=ENCODER)
    assert type(opened) is type(built)
    assert opened.search(QUERIES, 10) == built.search(QUERIES, 10)


def test_default_effort_finds_what_exact_finds(built, tmp_path):
    exact = cls("exact").build(tmp_path / "exact", DOCS, dim=32, encoder=ENCODER)
    assert overlap(exact.search(QUERIES, 20), built.search(QUERIES, 20), 20) > 0.6
    assert built.search(QUERIES, 1)[0].ids == exact.search(QUERIES, 1)[0].ids


def test_verify_finds_every_kind_of_damage(built, tmp_path):
    import shutil

    assert built.verify() == []
    files = [p.relative_to(built.path) for p in built.path.rglob("*") if p.is_file()]
    for file in sorted(f for f in files if f.name not in ("manifest.json", "segment.json")):
        content = (built.path / file).read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        for damage in (content[:-1], flipped, None):
            copy = tmp_path / "copy"
            shutil.copytree(built.path, copy)
            (copy / file).unlink() if damage is None else (copy / file).write_bytes(damage)
            problems = type(built).open(copy).verify()
            assert len(problems) == 1 and file.name in problems[0], (file, problems)
            shutil.rmtree(copy)
