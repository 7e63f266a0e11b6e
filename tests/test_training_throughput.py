"""Switches that change how fast a step is and how much memory it takes, and nothing else."""

from __future__ import annotations

import shutil

import pytest
import torch

import models
from core.errors import UserError
from core.records import Document, Example
from tests import tiny
from tests.conftest import FULL
from tests.storage_meter import StorageMeter
from tests.test_training_gradcache import gradients
from tests.test_training_units import batch_of
from tests.toy import ToyDataset, ToyRetriever
from tests.training_cases import quick, same_weights, settings  # noqa: F401 (a fixture)
from training import activations, compiling
from training.batches import TrainBatch
from training.loop import fit
from training.objective import Contrastive
from training.parallel import StepModule, train_mode
from training.prefetch import Ahead
from training.schedule import optimizer, param_groups, trainable


class WordDataset(ToyDataset):
    """Queries and passages in the tiny towers' words, of 2 to 9 words."""

    def __init__(self) -> None:
        super().__init__(size=12)
        texts = [" ".join(tiny.WORDS[i : i + 2 + i % 8]) for i in range(12)]
        self._documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
        self._queries = [type(q)(q.id, " ".join(t.split()[:2])) for q, t in zip(self._queries, texts)]

    def examples(self, split, epoch, seed):
        return [Example(q, d) for q, d in zip(self._queries, self._documents)]


def step_of(retriever, batch, seed=1):
    """Loss and gradients of one step with dropout."""
    module = StepModule(retriever, Contrastive())
    train_mode(module)
    module.zero_grad()
    torch.manual_seed(seed)
    losses = module(batch)
    losses["loss"].backward()
    return float(losses["loss"].detach()), gradients(module)


def assert_same(found, wanted):
    assert found[0] == pytest.approx(wanted[0], abs=1e-6)
    assert found[1].keys() == wanted[1].keys()
    for key, gradient in wanted[1].items():
        if gradient is not None:
            torch.testing.assert_close(found[1][key], gradient, atol=2e-6, rtol=1e-4, msg=key)


# ---- activations that are computed again


@pytest.mark.parametrize("name", models.names())
def test_recomputed_layers_give_the_same_gradients_dropout_included(name, tmp_path):
    retriever = tiny.retriever(name, tmp_path / "towers")
    retriever.stage = "train"
    batch = batch_of(retriever, tmp_path, hasattr(retriever, "pixel_source"))
    wanted = step_of(retriever, batch)
    calls = []
    chosen = activations.layers(retriever)
    assert {type(layer).__name__ for layer in chosen} >= {"BertLayer"}
    handles = [layer.attention.register_forward_hook(lambda *_: calls.append(1)) for layer in chosen[:1]]
    with activations.recomputed(retriever):
        found = step_of(retriever, batch)
    again = len(calls)
    assert_same(found, wanted)
    step_of(retriever, batch)
    assert again == 2 * (len(calls) - again), "each layer ran twice, and once when the switch was off again"
    for handle in handles:
        handle.remove()


def test_recomputing_needs_less_memory(tmp_path):
    retriever = tiny.retriever("colbert", tmp_path, frozen=[])
    retriever.stage = "train"
    documents = [Document(str(i), " ".join(tiny.WORDS)) for i in range(16)]
    batch = TrainBatch(batch_of(retriever, tmp_path, False).queries, retriever.collate_documents(documents), None, 8)
    peaks = []
    for switch in (False, True):
        with StorageMeter() as meter:
            if switch:
                with activations.recomputed(retriever.train()):
                    retriever.encode_documents(batch.documents).embeddings.sum().backward()
            else:
                retriever.train().encode_documents(batch.documents).embeddings.sum().backward()
        peaks.append(meter.peak)
    assert peaks[1] < 0.75 * peaks[0]


def test_nothing_to_recompute_is_said_before_the_run(tmp_path):
    with pytest.raises(UserError, match="no tower that trains has repeated layers"):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, checkpoint_activations=True))


# ---- torch.compile


@pytest.fixture
def backend(monkeypatch):
    """Counts compilations; their code runs as torch traced it unless the full suite asks for the real compiler."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor" if FULL else "eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    yield counter
    torch._dynamo.reset()


def test_a_compiled_run_is_the_plain_run_and_compiles_a_bounded_number_of_times(tmp_path, backend):
    """Two layers, lengths from 5 to 12, batches of 3 and 1, training and validation."""
    losses, kept = {}, {}
    for name, compile in (("plain", False), ("compiled", True)):
        retriever = tiny.retriever("colbert", tmp_path / "towers", frozen=[])
        for part in retriever.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0  # compiled kernels draw their own noise
        seen = []

        def validate(model, seen=seen):
            encoded = model.encode_documents(model.collate_documents(WordDataset()._documents[:5]))
            seen.append(float(encoded.embeddings.sum()))
            return {"m": 1.0}

        config = settings(tmp_path / name, steps=6, batch_size=3, eval_every=3, compile=compile, unit_tokens=20)
        fit(retriever, WordDataset(), config, validate=validate)
        losses[name], kept[name] = seen, retriever.state_dict()
    for key, value in kept["plain"].items():
        torch.testing.assert_close(kept["compiled"][key], value, atol=2e-5, rtol=1e-3, msg=key)
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-3)
    assert 2 <= backend.frame_count <= 8
    assert all("forward" not in vars(layer) for layer in activations.layers(retriever, frozen=True))


def test_compiled_layers_may_be_recomputed_too(tmp_path, backend):
    retriever = tiny.retriever("colbert", tmp_path / "towers", frozen=[])
    for part in retriever.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    retriever.stage = "train"
    batch = batch_of(retriever, tmp_path, images=False)
    wanted = step_of(retriever, batch)
    with compiling.compiled(retriever), activations.recomputed(retriever):
        found = step_of(retriever, batch)
    assert backend.frame_count >= 1
    assert_same(found, wanted)


def test_without_a_compiler_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.*apt install g\+\+.*train\.compile: false"):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, compile=True))
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install triton"):
        compiling.check(torch.device("cuda"))


def test_a_compiler_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def failing(graph, inputs):
        raise ValueError("no such instruction")

    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "BACKEND", failing)
    retriever = tiny.retriever("colbert", tmp_path / "towers", frozen=[])
    with pytest.raises(UserError, match=r"torch\.compile failed .*no such instruction.*set train\.compile: false"):
        fit(retriever, WordDataset(), settings(tmp_path / "run", steps=1, batch_size=3, compile=True))
    torch._dynamo.reset()


def test_towers_without_layers_have_nothing_to_compile(tmp_path):
    with pytest.raises(UserError, match="no tower has repeated layers"):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, compile=True))


# ---- attention, precision, optimizer, batches ahead


@pytest.mark.parametrize("name", models.names())
def test_towers_use_fused_attention(name, tmp_path, monkeypatch):
    retriever = tiny.retriever(name, tmp_path / "towers")
    calls = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    retriever.encode_documents(retriever.collate_documents(tiny.documents()))
    assert len(calls) == 2, "one call per layer of the text tower"


def test_bf16_encodes_in_bf16_and_keeps_weights_and_losses_in_fp32(tmp_path):
    seen = set()

    class Watched(ToyRetriever):
        def encode_documents(self, batch):
            found = self.linear(self.trunk(batch["ids"]))
            seen.add(found.dtype)
            return super().encode_documents(batch)

    class Checks(Contrastive):
        def step(self, batch, encode):
            losses = super().step(batch, encode)
            assert losses["loss"].dtype == torch.float32
            return losses

    half, full = Watched(), ToyRetriever()
    fit(half, ToyDataset(), settings(tmp_path / "a", steps=3, precision="bf16"), objective=Checks())
    assert seen == {torch.bfloat16}
    fit(full, ToyDataset(), settings(tmp_path / "b", steps=3))
    assert all(p.dtype == torch.float32 for p in half.parameters())
    gap = max(float((a - b).abs().max()) for a, b in zip(half.parameters(), full.parameters()))
    assert 0 < gap < 0.1 and not same_weights(half, full)


def test_adamw_is_fused_and_takes_the_same_steps():
    config = settings("x", weight_decay=0.1)
    plain, fused = ToyRetriever(), ToyRetriever()
    made = optimizer(param_groups(trainable(fused), config), 0.01, torch.device("cpu"))
    assert all(group["fused"] for group in made.param_groups)
    other = torch.optim.AdamW(param_groups(trainable(plain), config), lr=0.01, foreach=False, fused=False)
    for _ in range(3):
        for model, steps in ((plain, other), (fused, made)):
            for p in model.parameters():
                p.grad = p.detach().sin()
            steps.step()
    for a, b in zip(plain.parameters(), fused.parameters()):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_the_next_batch_is_made_before_anybody_waits():
    made = []

    def source():
        for i in range(3):
            made.append(i)
            yield batch()

    def batch():
        retriever = ToyRetriever()
        side = retriever.collate_queries(ToyDataset().queries("train")[:2])
        return TrainBatch(side, side, torch.zeros(2, 4, dtype=torch.int64), 1)

    ahead = Ahead(source(), torch.device("cpu"), lambda b: (len(b.queries), 0.0), early=True)
    assert next(ahead)[1] == (2, 0.0) and made == [0]
    ahead.prepare()
    ahead.prepare()
    assert made == [0, 1]
    next(ahead)
    assert made == [0, 1], "the one that was there already"
    next(ahead)
    ahead.prepare()
    with pytest.raises(StopIteration):
        next(ahead)
    lazy = Ahead(source(), torch.device("cpu"), lambda b: (0, 0.0))
    lazy.prepare()
    assert made == [0, 1, 2], "without a GPU there is nothing to wait for meanwhile"


def test_a_fault_met_early_is_raised_in_its_turn():
    def source():
        yield from ()
        raise UserError("broken")

    ahead = Ahead(source(), torch.device("cpu"), lambda b: (0, 0.0), early=True)
    ahead.prepare()
    with pytest.raises(UserError, match="broken"):
        next(ahead)
