"""Losses against loops that can be checked by reading them."""

import math

import pytest
import torch

from core.errors import UserError
from core.records import Document, Example, ImageRef, Query
from core.tokens import TokenBatch
from training.batches import document_keys
from training.losses import contrastive, document_accuracy, false_negatives, query_accuracy


def tokens(b, seed, dim=5, longest=4):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (b,), generator=g)
    return TokenBatch.pad([torch.randn(int(n), dim, generator=g, dtype=torch.float64) for n in lengths])


def naive_score(queries, documents, i, j):
    total = 0.0
    for row in queries.unpad()[i]:
        total += max(float(row @ other) for other in documents.unpad()[j])
    return total


def log_softmax_at(values, at):
    return values[at] - math.log(sum(math.exp(v) for v in values))


@pytest.mark.parametrize(
    "nways,in_batch,hard", [(1, True, "own_term"), (3, True, "own_term"), (3, False, "own_term"), (3, True, "in_batch")]
)
def test_contrastive_equals_a_naive_loop(nways, in_batch, hard):
    b, tau = 4, 0.3
    queries, documents = tokens(b, 1), tokens(b * nways, 2)
    out = contrastive(queries, documents, nways, tau, in_batch, hard_negatives=hard)
    first, second = 0.0, 0.0
    for i in range(b):
        score = [naive_score(queries, documents, i, j) / tau for j in range(b * nways)]
        own = list(range(i * nways, (i + 1) * nways))
        assert out["scores"][i].tolist() == pytest.approx([score[j] for j in own], rel=1e-5)
        first -= log_softmax_at([score[j] for j in own], 0) / b
        others = [j for j in range(b * nways) if j == i * nways or j not in own or hard == "in_batch"]
        second -= log_softmax_at([score[j] for j in others], others.index(i * nways)) / b
    if hard == "in_batch":
        first = 0.0
    expected = first + (second if in_batch else 0.0)
    assert float(out["loss"]) == pytest.approx(expected, rel=1e-5)
    if nways == 1:
        assert float(out["loss"]) == pytest.approx(float(out["in_batch"]), rel=1e-7)


def test_distillation_replaces_the_first_term():
    b, n, alpha = 3, 2, 0.7
    queries, documents = tokens(b, 3), tokens(b * n, 4)
    teacher = torch.randn(b, n, generator=torch.Generator().manual_seed(5))
    out = contrastive(queries, documents, n, 1.0, in_batch=False, teacher=teacher, alpha=alpha)
    expected = 0.0
    for i in range(b):
        student = [naive_score(queries, documents, i, i * n + k) for k in range(n)]
        wanted = [float(t) * alpha for t in teacher[i]]
        for k in range(n):
            p = log_softmax_at(wanted, k)
            expected += math.exp(p) * (p - log_softmax_at(student, k)) / b
    assert float(out["loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("hard", ["own_term", "in_batch"])
def test_offset_takes_the_own_block_of_gathered_documents(hard):
    n = 2
    queries, documents = tokens(6, 1), tokens(12, 2)
    whole = contrastive(queries, documents, n, hard_negatives=hard)
    halves = [
        contrastive(queries.select(slice(3 * r, 3 * r + 3)), documents, n, offset=6 * r, hard_negatives=hard)
        for r in (0, 1)
    ]
    torch.testing.assert_close(torch.cat([h["scores"] for h in halves]), whole["scores"])
    torch.testing.assert_close(sum(h["loss"] for h in halves) / 2, whole["loss"])


def test_too_few_documents_are_refused():
    with pytest.raises(UserError, match="7 documents"):
        contrastive(tokens(4, 1), tokens(7, 2), 2)


def test_false_negatives_leave_the_denominators():
    """Same id (with another text), same text (under another id), another positive of the same query; others stay."""
    records = [
        Example(Query("q0"), Document("a", "red fox"), (Document("x", "red  fox "), Document("y", "one"))),
        Example(Query("q1"), Document("a", "other words"), (Document("b", "two"), Document("z", "red fox"))),
        Example(Query("q0"), Document("c", "third"), (Document("c", "four"), Document("y", "five"))),
        Example(Query("q3"), Document("d", "fourth"), (Document("e", "six"), Document("f", "seven"))),
    ]
    keys = document_keys(records, 3)
    same = false_negatives(keys, 3)
    wanted = {0: {0, 1, 3, 5, 6}, 1: {0, 3}, 2: {0, 6, 7}, 3: {9}}
    assert {i: set(same[i].nonzero().flatten().tolist()) for i in range(4)} == wanted
    queries, documents = tokens(4, 1), tokens(12, 2)
    out = contrastive(queries, documents, 3, 1.0, same=same)
    expected = 0.0
    for i in range(4):
        score = [naive_score(queries, documents, i, j) for j in range(12)]
        own = [3 * i] + [j for j in (3 * i + 1, 3 * i + 2) if j not in wanted[i]]
        others = [3 * i] + [j for j in range(12) if j not in range(3 * i, 3 * i + 3) and j not in wanted[i]]
        expected -= (log_softmax_at([score[j] for j in own], 0) + log_softmax_at([score[j] for j in others], 0)) / 4
    assert float(out["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(out["loss"]) != pytest.approx(float(contrastive(queries, documents, 3, 1.0)["loss"]), rel=1e-3)


def test_masks_agree_for_one_rank_of_gathered_documents():
    keys = torch.randint(0, 5, (12, 3), generator=torch.Generator().manual_seed(0))
    whole = false_negatives(keys, 2)
    assert torch.equal(false_negatives(keys, 2, offset=6, queries=3), whole[3:])


def test_documents_with_the_same_caption_and_other_images_differ():
    def document(name, image):
        return Document(name, "a photo", (ImageRef(image, data=b"x"),))

    records = [
        Example(Query("a"), document("a", "i")),
        Example(Query("b"), document("b", "j")),
        Example(Query("c"), document("c", "i")),
    ]
    assert false_negatives(document_keys(records, 1), 1).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


def test_accuracies_look_along_different_axes():
    scores = torch.tensor([[3.0, 1.0, 2.0], [4.0, 2.0, 0.0], [0.0, 1.0, 1.5]])
    assert float(query_accuracy(scores)) == pytest.approx(2 / 3)  # rows: 0 right, 1 wrong, 2 right
    assert float(document_accuracy(scores)) == pytest.approx(1 / 3)  # columns: 0 wrong, 1 right, 2 wrong
