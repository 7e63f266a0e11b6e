"""Batches cut by a budget of token positions: every family's vectors and gradients stay what they were."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import models
from core.batch import Batch
from core.records import Document, Example
from tests import tiny
from tests.test_training_gradcache import cached_step, gradients, setting
from tests.toy import ToyConfig, ToyDataset, ToyRetriever
from training.batches import TrainBatch, document_keys
from training.loop import fit
from training.objective import Contrastive
from training.parallel import StepModule
from training.tracker import read
from training.units import InUnits, cut, plan


def batch_of(retriever, folder, images=True):
    """Queries of all modalities, passages of 0 to 8 words that have pictures of their own now and then."""
    asked = tiny.queries(folder, images)
    words = [" ".join(tiny.WORDS[i : i + n]) for i, n in enumerate((8, 0, 3, 6, 1, 8, 2, 5)[: 2 * len(asked)])]
    answers = [Document(f"d{i}", text) for i, text in enumerate(words)]
    if images:
        answers[2] = dataclasses.replace(answers[2], images=(tiny.image(folder, "own.png"),))
    examples = [Example(q, answers[2 * i], (answers[2 * i + 1],)) for i, q in enumerate(asked)]
    keys = document_keys(examples, 2)
    return TrainBatch(retriever.collate_queries(asked), retriever.collate_documents(answers), keys, 2)


def test_a_budget_makes_units_of_one_length():
    mask = torch.tensor([[1] * n + [0] * (9 - n) for n in (2, 9, 5, 2, 4, 0)])
    batch = Batch({"mask": mask, "ids": mask * 7, "flag": torch.arange(6)}, offsets=torch.zeros(7, dtype=torch.int64))
    units = cut(batch, "documents", None, 10)
    assert [(u.rows.tolist(), u.width) for u in units] == [([1], 9), ([2, 4], 5), ([0, 3, 5], 2)]
    assert all(len(u.rows) * u.width <= 10 for u in units)
    part = units[1].of(batch)
    assert part["ids"].tolist() == [[7, 7, 7, 7, 7], [7, 7, 7, 7, 0]] and part["flag"].tolist() == [2, 4]
    assert [u.rows.tolist() for u in cut(batch, "documents", 1, 10)] == [[1], [2], [4], [0], [3], [5]]
    assert [(u.rows.tolist(), u.width) for u in cut(batch, "queries", None, 20)] == [
        ([0, 1], 9),
        ([2, 3], 9),
        ([4, 5], 9),
    ]
    assert [(u.rows.tolist(), u.width) for u in cut(batch, "documents", 4, None)] == [
        ([0, 1, 2, 3], None),
        ([4, 5], None),
    ]
    assert cut(batch, "documents", None, 1)[0].rows.tolist() == [1], "an item larger than the budget is alone"
    both = plan(batch, batch, None, 10)
    assert torch.cat([u.rows for u in both.documents])[both.order("documents")].tolist() == list(range(6))
    assert plan(batch, batch, None, None) is None


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", models.names())
def test_no_family_minds_the_units(name, cached, tmp_path):
    """Values and gradients; padded positions, which nothing may read, are the only ones that disappear."""
    retriever = tiny.retriever(name, tmp_path / "towers")
    retriever.stage = "train"
    batch = batch_of(retriever, tmp_path, hasattr(retriever, "pixel_source"))
    module = StepModule(retriever, Contrastive()).eval()  # without dropout: units draw other noise than one batch

    module.zero_grad()
    wanted = module(batch)
    wanted["loss"].backward()
    expected = gradients(module)
    module.zero_grad()
    cut_up = dataclasses.replace(batch, plan=plan(batch.queries, batch.documents, 3, 30))
    assert len({u.width for u in cut_up.plan.documents}) > 1
    whole = retriever.encode_documents(batch.documents).unpad()
    parts = InUnits(retriever, cut_up).encode_documents(batch.documents).unpad()
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4)
    if cached:
        found = cached_step(module, batch, 3, 30)
    else:
        found = module(cut_up)
        found["loss"].backward()
    assert float(found["loss"].detach()) == pytest.approx(float(wanted["loss"].detach()), abs=1e-6)
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for key, gradient in gradients(module).items():
        assert (gradient is None) == (expected[key] is None), key
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[key], atol=3e-6 * max(1.0, largest), rtol=1e-3, msg=key)


class Seen(ToyRetriever):
    def __init__(self, config):
        super().__init__(config)
        self.sizes = []

    def encode_documents(self, batch):
        self.sizes.append(tuple(batch["ids"].shape))
        return super().encode_documents(batch)


@pytest.mark.parametrize("more", [{"unit_tokens": 14}, {"unit_tokens": 14, "grad_cache": 3}])
def test_a_run_in_units_is_the_run_without(tmp_path, more):
    config = ToyConfig(dropout=0.0)
    data = ToyDataset()
    data._documents = [
        dataclasses.replace(d, text=" ".join(d.text.split()[: 1 + i % 6])) for i, d in enumerate(data._documents)
    ]
    plain, units = Seen(config), Seen(config)
    fit(plain, data, setting(tmp_path / "plain"))
    fit(units, data, setting(tmp_path / "units", **more))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(units.state_dict()[key], value, atol=2e-6, rtol=0, msg=key)
    assert max(n * width for n, width in units.sizes[1:]) <= 14 < min(n * width for n, width in plain.sizes[1:])
    ours, theirs = (read(tmp_path / out / "metrics.jsonl") for out in ("units", "plain"))
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], abs=1e-6)
