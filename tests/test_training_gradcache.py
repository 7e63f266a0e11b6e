"""Large batches: a gradient cache makes the plain step's gradients, slices of the loss keep memory small."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
import torch.distributed as dist

import models
from core import maxsim as maxsim_module
from core.config import check
from core.device import autocast
from core.errors import UserError
from core.maxsim import kept_bytes, maxsim
from core.records import Document, Example
from core.tokens import TokenBatch
from tests import tiny
from tests.storage_meter import StorageMeter
from tests.toy import ToyConfig, ToyDataset, ToyRetriever, ToyVisual
from tests.two_processes import two_processes
from training import grad_cache, slices
from training.batches import Collator, Order, TrainBatch, document_keys
from training.config import Config
from training.loop import fit
from training.objective import Contrastive
from training.parallel import StepModule, train_mode, wrap
from training.slices import in_slices, slice_size
from training.units import plan

CPU = torch.device("cpu")
FP32 = partial(autocast, CPU, "fp32")
DATA = {"size": 40, "negatives": 2, "image_every": 3}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def setting(out, per_process=8, **more):
    base = {"out": str(out), "steps": 4, "batch_size": per_process, "lr": 0.01, "device": "cpu", "weight_decay": 0.1}
    return check(Config, {**base, **more}, "train")


def gradients(module):
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def side_by_side(module, batch, size):
    """The plain step over the same units: encoded in the same order, everything kept."""

    class Units:
        temperature = module.retriever.temperature

        def encode_queries(self, side):
            return self.encode(side, module.retriever.encode_queries)

        def encode_documents(self, side):
            return self.encode(side, module.retriever.encode_documents)

        def encode(self, side, verb):
            return TokenBatch.cat([verb(side.select(slice(s, s + size))) for s in range(0, len(side), size)])

    return module.objective.step(batch, Units())


def cached_step(model, batch, size, tokens=None):
    """The step with a cache, in units of ``size`` queries or documents and of ``tokens`` positions."""
    batch = dataclasses.replace(batch, plan=plan(batch.queries, batch.documents, size, tokens))
    return grad_cache.backward(model, batch, 1.0, True, FP32)


# ---- gradients


CASES = [(name, changes) for name in models.names() for changes in tiny.VARIANTS.get(name, [{}])[:2]]


@pytest.mark.parametrize(("name", "changes"), CASES, ids=lambda value: str(value))
def test_gradients_are_the_plain_steps_with_its_dropout(name, changes, tmp_path):
    """Every family; of a batch that mixes modalities, in units of which some hold no image."""
    retriever = tiny.retriever(name, tmp_path / "towers", **changes)
    retriever.stage = "train"
    pictured = hasattr(retriever, "pixel_source")
    asked = tiny.queries(tmp_path, pictured)
    words = [" ".join(tiny.WORDS[3 * i : 3 * i + 2 + i]) for i in range(2 * len(asked))]
    answers = [Document(f"d{i}", text) for i, text in enumerate(words)]
    examples = [Example(q, answers[2 * i], (answers[2 * i + 1],)) for i, q in enumerate(asked)]
    batch = TrainBatch(
        retriever.collate_queries(asked), retriever.collate_documents(answers), document_keys(examples, 2), 2
    )
    module = StepModule(retriever, Contrastive())
    train_mode(module)

    def plain(seed):
        module.zero_grad()
        torch.manual_seed(seed)
        losses = side_by_side(module, batch, 3)
        losses["loss"].backward()
        return losses, gradients(module), torch.get_rng_state()

    wanted, expected, after = plain(1)
    module.zero_grad()
    torch.manual_seed(1)
    found = cached_step(module, batch, 3)
    found, wanted = ({k: float(v.detach()) for k, v in numbers.items()} for numbers in (found, wanted))
    assert torch.equal(torch.get_rng_state(), after), "what comes next would draw other noise"
    assert found == pytest.approx(wanted, abs=1e-6)
    got = gradients(module)
    assert {k for k, v in got.items() if v is not None} == {k for k, v in expected.items() if v is not None}
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for key, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(got[key], gradient, atol=2e-6 * max(1.0, largest), rtol=1e-4, msg=key)
    other = plain(2)[1]  # the noise is there, or the test says nothing about it
    assert any(g is not None and not torch.allclose(g, expected[k], atol=1e-4) for k, g in other.items())


def test_activations_of_one_unit_exist_at_a_time():
    retriever = ToyRetriever(ToyConfig(hidden=64))
    module = StepModule(retriever, Contrastive())
    train_mode(module)
    batch = Collator(Order(ToyDataset(**DATA), "train", 32, 1, 3), retriever, ToyVisual())[0]
    widths = []
    for verb in ("encode_queries", "encode_documents"):
        inner = getattr(retriever, verb)
        setattr(retriever, verb, lambda side, inner=inner: widths.append(len(side)) or inner(side))
    with StorageMeter() as whole:
        module(batch)["loss"].backward()
    assert widths == [32, 32]
    widths.clear()
    with StorageMeter() as cached:
        cached_step(module, batch, 4)
    assert widths == [4] * 32  # 8 + 8 units, twice
    assert cached.peak < 0.6 * whole.peak  # the rest are weights' gradients and vectors


def test_a_frozen_side_is_encoded_once(tmp_path):
    retriever = ToyRetriever(ToyConfig(frozen=["trunk", "linear"]))
    module = StepModule(retriever, Contrastive())
    train_mode(module)
    batch = Collator(Order(ToyDataset(**DATA), "train", 12, 1, 3), retriever, ToyVisual())[0]
    calls = []
    for verb in ("encode_queries", "encode_documents"):
        inner = getattr(retriever, verb)
        setattr(retriever, verb, lambda side, verb=verb, inner=inner: calls.append(verb) or inner(side))
    cached_step(module, batch, 1)
    assert calls.count("encode_documents") == 12
    assert calls.count("encode_queries") == 12 + int((batch.queries.image_counts > 0).sum())
    text_only = batch.queries.select((batch.queries.image_counts == 0).nonzero().flatten())
    one = TrainBatch(text_only, batch.documents.select(slice(0, len(text_only))), batch.keys[: len(text_only)], 1)
    assert not cached_step(module, one, 2)["loss"].requires_grad


def test_an_objective_that_encodes_more_is_refused():
    class Halves(Contrastive):
        def step(self, batch, encode):
            return {"loss": encode.encode_queries(batch.queries.select([0])).embeddings.sum()}

    retriever = ToyRetriever()
    batch = Collator(Order(ToyDataset(), "train", 4), retriever)[0]
    with pytest.raises(UserError, match=r"train\.grad_cache: null"):
        cached_step(StepModule(retriever, Halves()), batch, 2)


@pytest.mark.parametrize(
    ("more", "frozen"),
    [({"nways": 3}, []), ({"nways": 2, "accumulation": 2, "memory": 3}, []), ({}, ["trunk", "linear"])],
)
def test_a_run_with_a_cache_is_the_run_without(tmp_path, more, frozen):
    """No dropout here: units draw other noise than a whole batch."""
    made = []
    for name, cache in (("plain", None), ("cached", 3)):
        retriever = ToyRetriever(ToyConfig(dropout=0.0, pooler=True, frozen=frozen))
        fit(retriever, ToyDataset(**DATA), setting(tmp_path / name, grad_cache=cache, **more), ToyVisual())
        made.append(retriever.state_dict())
    for key, value in made[0].items():
        torch.testing.assert_close(made[1][key], value, atol=5e-6, rtol=0, msg=key)
    assert torch.equal(made[1]["pooler.weight"], ToyRetriever(ToyConfig(pooler=True)).pooler.weight)


# ---- two processes

FITS = {
    "cached": ({"nways": 2, "grad_cache": 3}, []),
    "accumulated": ({"accumulation": 2, "grad_cache": 3}, []),
    "frozen": ({"grad_cache": 2}, ["trunk", "linear"]),
    "memory": ({"nways": 2, "memory": 3, "grad_cache": 4}, []),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return two_processes(jobs, tmp_path_factory.mktemp("pair"))


def jobs(rank, folder):
    for name, (more, frozen) in FITS.items():
        retriever = ToyRetriever(ToyConfig(dropout=0.0, pooler=True, frozen=frozen))
        fit(retriever, ToyDataset(**DATA), setting(folder / name, 4, **more), ToyVisual())
        torch.save(retriever.state_dict(), folder / f"{name}-{rank}.pt")
    dropped(rank, folder)


@pytest.mark.parametrize("name", FITS)
def test_two_processes_make_the_steps_of_one(pair, tmp_path, name):
    """A last unit without images, a part that nothing reads, remembered documents of both processes."""
    more, frozen = FITS[name]
    one = ToyRetriever(ToyConfig(dropout=0.0, pooler=True, frozen=frozen))
    before = {k: v.clone() for k, v in one.state_dict().items()}
    plain = {k: v for k, v in more.items() if k != "grad_cache"}
    fit(one, ToyDataset(**DATA), setting(tmp_path / "one", 8, **plain), ToyVisual())
    ranks = [torch.load(pair / f"{name}-{r}.pt") for r in (0, 1)]
    for key, value in one.state_dict().items():
        assert torch.equal(ranks[0][key], ranks[1][key])
        torch.testing.assert_close(ranks[0][key], value, atol=5e-6, rtol=0, msg=key)
    assert not torch.allclose(one.image.weight, before["image.weight"], atol=1e-3)
    assert torch.equal(one.pooler.weight, before["pooler.weight"])


def dropped(rank, folder):
    """Gradients of one step with dropout, cached and side by side: both processes replay their own noise."""
    out = []
    for cached in (True, False):
        retriever = ToyRetriever(ToyConfig(dropout=0.3))
        module = StepModule(retriever, Contrastive())
        train_mode(module)
        batch = Collator(Order(ToyDataset(**DATA), "train", 4, 2, 3), retriever, ToyVisual())[1]
        torch.manual_seed(rank)
        if cached:
            cached_step(wrap(module, CPU, find_unused=True), batch, 3)
        else:
            side_by_side(module, batch, 3)["loss"].backward()
            for p in module.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # the image part of a batch without any
                dist.all_reduce(p.grad)
                p.grad /= 2
        out.append(gradients(module))
    torch.save(out, folder / f"dropped-{rank}.pt")


def test_noise_is_replayed_on_each_process(pair):
    for rank in (0, 1):
        cached, kept = torch.load(pair / f"dropped-{rank}.pt")
        for key in kept:
            torch.testing.assert_close(cached[key], kept[key], atol=1e-6, rtol=1e-4, msg=key)
            assert float(kept[key].abs().max()) > 0


# ---- memory of the loss


def tokens(count, rows, dim, seed, dtype=torch.float32, full=False):
    g = torch.Generator().manual_seed(seed)
    values = torch.nn.functional.normalize(torch.randn(count, rows, dim, generator=g, dtype=dtype), dim=-1)
    mask = torch.rand(count, rows, generator=g) < (2.0 if full else 0.7)
    mask[:, 0] = True
    return TokenBatch(values.requires_grad_(), mask)


@pytest.mark.parametrize(("nways", "hard", "in_batch"), [(1, "own_term", True), (3, "own_term", True),
                                                        (3, "in_batch", True), (2, "own_term", False)])  # fmt: skip
@pytest.mark.parametrize("size", [1, 3, 7])
def test_slices_change_neither_numbers_nor_gradients(nways, hard, in_batch, size):
    queries, documents = tokens(7, 4, 6, 1, torch.float64), tokens(7 * nways + 2 * nways, 5, 6, 2, torch.float64)
    keys = torch.randint(1, 9, (len(documents), 4), generator=torch.Generator().manual_seed(3))
    teacher = torch.randn(7, nways) if nways == 2 else None
    objective = Contrastive(in_batch=in_batch, hard_negatives=hard)

    def loss(part, taken, candidates):
        given = None if teacher is None else teacher[part]
        return objective._losses(taken, candidates, keys, (1 + part.start) * nways, nways, 0.3, given)

    found = []
    for each in (size, 100):
        for t in (queries, documents):
            t.embeddings.grad = None
        numbers = in_slices(loss, queries, documents, each)
        (3 * numbers["loss"]).backward()
        values = {k: float(v.detach()) for k, v in numbers.items()}
        found.append((values, queries.embeddings.grad.clone(), documents.embeddings.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1:], found[1][1:], atol=1e-6, rtol=1e-4)
    assert float(found[1][1].abs().max()) > 1e-3


def test_a_large_batch_costs_its_vectors_and_a_budget(monkeypatch):
    """512 queries and documents of 32 and 128 rows, with a 64th of the budgets that 4096 of them have. The tensor of
    similarities would be 268 million numbers, the winners of MaxSim 8 million."""
    b, rows, document_rows, dim = 512, 32, 128, 8
    share = (4096 // b) ** 2
    budgets = [slices.BUDGET_BYTES // share, maxsim_module.BUDGET_BYTES // share]
    monkeypatch.setattr(slices, "BUDGET_BYTES", budgets[0])
    queries, documents = (tokens(b, n, dim, n, full=True) for n in (rows, document_rows))
    keys = torch.arange(1, 4 * b + 1).view(b, 4)

    def loss(part, taken, candidates):
        monkeypatch.setattr(maxsim_module.maxsim, "__defaults__", (budgets[1],))
        return Contrastive()._losses(taken, candidates, keys, part.start, 1, 0.1, None)

    size = slice_size(queries, documents)
    assert 1 < size < b // 4
    inputs = 4 * dim * b * (rows + document_rows)
    with StorageMeter() as meter:
        in_slices(loss, queries, documents, size)["loss"].backward()
    limit = 3 * inputs + 4 * max(budgets)
    assert kept_bytes(rows * b, b, document_rows) < meter.peak < limit
    # The same rule at full size, dimension 128: below 4 GB above the inputs.
    full = 4 * 128 * 4096 * (rows + document_rows)
    assert 3 * full + 4 * max(slices.BUDGET_BYTES * share, maxsim_module.BUDGET_BYTES) < 4e9


def test_maxsim_keeps_a_byte_per_row_and_document():
    queries, documents = tokens(8, 16, 4, 1, full=True), tokens(64, 32, 4, 2, full=True)
    with StorageMeter() as meter:
        scores = maxsim(queries, documents)
    kept = kept_bytes(8 * 16, 64, 32)
    assert kept == 8 * 16 * 64
    assert kept + scores.nbytes <= meter.held < kept + scores.nbytes + 4096
    assert kept_bytes(1, 1, 257) == 2 and kept_bytes(1, 1, 40_000) == 4


@pytest.mark.parametrize("rows", [256, 257, 300])
def test_winners_of_long_documents_are_told_apart(rows):
    """The best row is the last one, whose number fits into no smaller integer."""
    d = torch.zeros(1, rows, 2)
    d[0, -1] = torch.tensor([2.0, 1.0])
    q = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    d.requires_grad_()
    maxsim(TokenBatch(q, torch.ones(1, 1)), TokenBatch(d, torch.ones(1, rows))).backward()
    assert q.grad.tolist() == [[[2.0, 1.0]]] and d.grad.nonzero().tolist() == [[0, rows - 1, 0]]
