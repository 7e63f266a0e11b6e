"""The kernels give torch's scores and gradients: interpreted where no GPU is, else as they run in training."""

from __future__ import annotations

import os
import subprocess
import sys
from math import prod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import maxsim as plain
from core.maxsim_triton import FusedMaxSim, tiles
from core.tokens import TokenBatch
from training.losses import contrastive

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
ROOT = Path(__file__).parents[2]


def tokens(batch: int, rows: int, dim: int, dtype: torch.dtype, seed: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(batch, rows, dim, generator=generator) / dim**0.5
    mask = torch.rand(batch, rows, generator=generator) > 0.3
    return TokenBatch(made.to(DEVICE, dtype), mask.to(DEVICE))


def both(function, q: TokenBatch, d: TokenBatch, budget: int = 1 << 28) -> tuple[torch.Tensor, ...]:
    """Scores, and the gradients of their weighted sum."""
    a, b = q.embeddings.clone().requires_grad_(), d.embeddings.clone().requires_grad_()
    scores = function.apply(a, q.mask, b, d.mask, budget)
    weights = torch.linspace(-1, 1, scores.numel(), device=scores.device).view_as(scores)
    return scores.detach(), *torch.autograd.grad((scores * weights).sum(), (a, b))


sizes = st.tuples(st.integers(1, 3), st.integers(1, 50), st.integers(1, 3), st.integers(1, 80), st.integers(1, 128))


@given(sizes, st.sampled_from([torch.float32, torch.float16]), st.booleans(), st.integers(0, 99))
def test_scores_and_gradients_are_those_of_plain_torch(size, dtype, chunked, seed):
    """Sizes on both sides of the tiles' edges; documents without rows come up by themselves."""
    bq, tq, bd, td, dim = size
    q, d = tokens(bq, tq, dim, dtype, seed), tokens(bd, td, dim, dtype, seed + 100)
    exact = [TokenBatch(t.embeddings.float(), t.mask) for t in (q, d)]
    # Half precision: against the same numbers in float32, because plain torch rounds its products.
    expected = both(plain._MaxSim, *exact)
    found = both(FusedMaxSim, q, d, budget=1 if chunked else 1 << 28)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for a, b in zip(found, expected):
        assert torch.allclose(a.float(), b, atol=tolerance, rtol=tolerance)


def test_a_long_document_wins_beyond_the_first_255_rows_and_the_first_of_equals_wins():
    q = TokenBatch(torch.ones(1, 1, 16, device=DEVICE), torch.ones(1, 1, dtype=torch.bool, device=DEVICE))
    rows = torch.zeros(2, 300, 16, device=DEVICE)
    rows[0, 290], rows[1, 7], rows[1, 40] = 1.0, 1.0, 1.0
    d = TokenBatch(rows, torch.ones(2, 300, dtype=torch.bool, device=DEVICE))
    scores, _, to_d = both(FusedMaxSim, q, d)
    assert scores.tolist() == [[16.0, 16.0]]
    assert to_d.abs().sum(-1).nonzero().tolist() == [[0, 290], [1, 7]]


def test_a_document_without_rows_scores_zero_and_gets_no_gradient():
    q, d = tokens(2, 5, 16, torch.float32, 0), tokens(3, 7, 16, torch.float32, 1)
    d.mask[1] = False
    scores, to_q, to_d = both(FusedMaxSim, q, d)
    assert (scores[:, 1] == 0).all() and (scores[:, 0] != 0).all()
    assert to_d[1].abs().sum() == 0 and to_d[0].abs().sum() > 0 and to_q.isfinite().all()


def test_what_is_no_number_reaches_the_loss_unless_it_is_masked():
    """A maximum passes over it, and the loop would not notice that a step is bad."""
    q, d = tokens(3, 5, 16, torch.float32, 8), tokens(3, 40, 16, torch.float32, 9)
    clean = both(FusedMaxSim, q, d)[0]
    for t, place in ((q, (0, 2)), (d, (1, 33))):
        t.embeddings[place] = torch.nan
        t.mask[place] = False
    q.mask[1], d.mask[0] = True, True
    assert both(FusedMaxSim, q, d)[0].isfinite().all() and clean.isfinite().all()
    d.mask[1, 33] = True
    assert both(FusedMaxSim, q, d)[0].isfinite().tolist() == [[True, False, True]] * 3
    assert not contrastive_of(q, d).isfinite()
    d.mask[1, 33], q.mask[0, 2] = False, True
    assert both(FusedMaxSim, q, d)[0].isfinite().tolist() == [[False] * 3, [True] * 3, [True] * 3]
    assert not contrastive_of(q, d).isfinite()


def contrastive_of(q: TokenBatch, d: TokenBatch) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "_function", lambda q, n: FusedMaxSim)
        return contrastive(q, d)["loss"]


def test_the_same_bits_twice():
    q, d = tokens(4, 40, 48, torch.float32, 2), tokens(5, 70, 48, torch.float32, 3)
    for a, b in zip(both(FusedMaxSim, q, d), both(FusedMaxSim, q, d)):
        assert torch.equal(a, b)


def test_only_what_needs_a_gradient_is_worked_out(monkeypatch):
    q, d = tokens(2, 5, 16, torch.float32, 4), tokens(2, 6, 16, torch.float32, 5)
    d.embeddings.requires_grad_()
    called = []
    for name in ("to_queries", "to_documents"):
        kernel = getattr(sys.modules["core.maxsim_triton"], name)
        monkeypatch.setattr(
            f"core.maxsim_triton.{name}", lambda *a, n=name, k=kernel, **o: (called.append(n), k(*a, **o))[1]
        )
    FusedMaxSim.apply(q.embeddings, q.mask, d.embeddings, d.mask, 1 << 28).sum().backward()
    assert called == ["to_documents"] and d.embeddings.grad.abs().sum() > 0


def test_the_loss_of_training_is_the_same_through_the_kernels(monkeypatch):
    q, d = tokens(3, 20, 32, torch.float32, 6), tokens(6, 40, 32, torch.float32, 7)
    found = []
    for function in (plain._MaxSim, FusedMaxSim):
        monkeypatch.setattr(plain, "_function", lambda q, n, f=function: f)
        a, b = q.embeddings.clone().requires_grad_(), d.embeddings.clone().requires_grad_()
        loss = contrastive(TokenBatch(a, q.mask), TokenBatch(b, d.mask), nways=2, temperature=0.5)["loss"]
        found.append((loss.detach(), *torch.autograd.grad(loss, (a, b))))
    for a, b in zip(*found):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("shape", "fused"), [
    ((1, 1, 128), True), ((1, 1, 256), False), ((0, 1, 128), False), ((2, 0, 128), False),
])  # fmt: skip
def test_cuda_takes_the_kernels_where_they_can_run(shape, fused, monkeypatch):
    monkeypatch.setattr(plain, "_has_triton", lambda: True)
    on_cuda = SimpleNamespace(is_cuda=True, shape=shape, numel=lambda: prod(shape), element_size=lambda: 4)
    assert plain._function(on_cuda, 1) is (FusedMaxSim if fused else plain._MaxSim)
    assert plain._function(on_cuda, 0) is plain._MaxSim
    assert plain._function(torch.empty(shape), 1) is plain._MaxSim


def test_plain_torch_is_taken_where_triton_cannot_start(monkeypatch, capsys):
    class Driver:
        @property
        def active(self):
            raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr("triton.runtime.driver", Driver())
    assert plain._has_triton.__wrapped__() is False
    assert "cannot start (Failed to find C compiler.); plain torch does it" in capsys.readouterr().err
    monkeypatch.setattr("triton.runtime.driver", SimpleNamespace(active="cuda"))
    assert plain._has_triton.__wrapped__() is True


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_a_gpu(capability):
    """To machine code, in a process of its own, because here they are interpreted; at training's dtypes and sizes."""
    code = f"from tests.kernels.compile_kernels import main; main({capability})"
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 3 * 3 * 2 * 2
    assert all(int(shared) <= 100_000 and int(size) > 1000 for *_, shared, size in lines)


def test_tiles_are_no_larger_than_a_short_document():
    assert tiles(torch.empty(1, 128, dtype=torch.bfloat16), 9)["BLOCK"] == 16
    assert tiles(torch.empty(1, 100, dtype=torch.bfloat16), 400) == {"ROWS": 64, "BLOCK": 64, "DIM": 128}
