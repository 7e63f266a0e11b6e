"""The faiss adapter answers what the exact index answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.tokens import TokenBatch
from tests.index_cases import cls, corpus, questions

DOCS = corpus(2000, dim=48, rows=(1, 2))
QUERIES = TokenBatch(questions(DOCS, 40, 1).embeddings, torch.ones(40, 1, dtype=torch.bool))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("faiss")
    exact = cls("exact").build(root / "exact", DOCS, dim=48, encoder={}, dtype="float32")
    return exact, cls("faiss_flat").build(root / "faiss", DOCS, dim=48, encoder={})


def same(a, b):
    """The same ids at the same places, but for scores that differ by less than the two products' rounding."""
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x.scores, y.scores, atol=1e-6)
        score = dict(zip(x.ids, x.scores))
        for place, (i, j) in enumerate(zip(x.ids, y.ids, strict=True)):
            assert i == j or abs(score[j] - x.scores[place]) < 1e-6


@pytest.mark.parametrize("k", [1, 10, 2000])
def test_equals_exact(pair, k):
    exact, faiss = pair
    same(exact.search(QUERIES, k), faiss.search(QUERIES, k))
    one = TokenBatch(QUERIES.embeddings[:1], QUERIES.mask[:1])
    same(exact.search(one, k), faiss.search(one, k))


def test_equals_exact_among_the_allowed(pair):
    exact, faiss = pair
    some = {f"doc-{i}" for i in range(0, 2000, 3)}
    same(exact.search(QUERIES, 50, some), faiss.search(QUERIES, 50, some))
    own = [{f"doc-{i}" for i in range(b, 2000, 2 + b)} for b in range(40)]
    same(exact.search(QUERIES, 30, own), faiss.search(QUERIES, 30, own))


def test_masked_rows_count_nothing(pair):
    extra = torch.cat([torch.full((40, 2, 48), torch.nan), QUERIES.embeddings], dim=1)
    mask = torch.tensor([[False, False, True]]).repeat(40, 1)
    same(pair[1].search(QUERIES, 9), pair[1].search(TokenBatch(extra, mask), 9))


def test_stored_vectors_are_bit_equal(pair):
    for (id_, wanted), (found, vectors) in zip(DOCS, pair[1].vectors(), strict=True):
        assert id_ == found and np.array_equal(wanted, vectors)


def test_the_file_is_memory_mapped(pair):
    # Flags of faiss that copy instead would show no mapping of the file.
    pair[1].search(QUERIES, 1)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert str(pair[1].path / "vectors.faiss") in maps.read()


def test_a_damaged_file_is_one_sentence(pair, tmp_path):
    index = cls("faiss_flat").build(tmp_path / "i", DOCS[:10], dim=48, encoder={})
    (index.path / "vectors.faiss").write_bytes(b"IxFI")
    with pytest.raises(UserError, match=r"missing or damaged.*build the index again"):
        index.search(QUERIES, 3)


def test_only_single_vectors(pair, tmp_path):
    for rows in (0, 2):
        with pytest.raises(UserError, match=f"document 'two' has {rows} vectors.*index.name exact or plaid"):
            cls("faiss_flat").build(tmp_path / str(rows), [("two", np.ones((rows, 48)))], dim=48, encoder={})
    several = TokenBatch(QUERIES.embeddings.repeat(1, 2, 1), QUERIES.mask.repeat(1, 2))
    several.mask[:3, 1] = False
    with pytest.raises(UserError, match="query 3 of the batch has 2 unmasked rows"):
        pair[1].search(several, 5)
