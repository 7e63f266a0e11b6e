"""Records, MaxSim, config, files and stores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import config, files
from core.errors import UserError
from core.maxsim import maxsim, maxsim_packed, maxsim_pairs
from core.records import Document, ImageRef, Query, unique
from core.store import Store, StoreWriter, write_store
from core.tokens import TokenBatch

# ---- records


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Query(""), "query has an empty id"),
    (lambda: Document("  "), "document has an empty id"),
    (lambda: Query(7), "7 is int, not a string"),
    (lambda: ImageRef("a"), "exactly one of path, data or tsv"),
    (lambda: ImageRef("a", path="x", data=b"y"), "exactly one of path, data or tsv"),
])  # fmt: skip
def test_bad_records_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_duplicate_ids_are_named():
    with pytest.raises(UserError, match=r"'b' stands twice \(records 1 and 2\)"):
        list(unique([Document("a"), Document("b"), Document("b")]))


def test_a_box_is_part_of_an_images_key():
    assert ImageRef("a", path="x").key == "a" != ImageRef("a", path="x", box=(0, 0, 4, 2.5)).key == "a#0,0,4,2.5"


# ---- MaxSim


def naive(q: TokenBatch, d: TokenBatch) -> torch.Tensor:
    out = torch.zeros(len(q), len(d))
    for i in range(len(q)):
        for j in range(len(d)):
            rows, columns = q.embeddings[i][q.mask[i]], d.embeddings[j][d.mask[j]]
            if len(columns):
                out[i, j] = sum((max(float(r @ c) for c in columns) for r in rows), 0.0)
    return out


def tokens(generator, batch: int, rows: int, dim: int = 5) -> TokenBatch:
    emb = torch.randn(batch, rows, dim, generator=generator)
    return TokenBatch(emb, torch.rand(batch, rows, generator=generator) > 0.3)


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_maxsim_equals_the_naive_loops(bq, tq, bd, td, seed):
    generator = torch.Generator().manual_seed(seed)
    q, d = tokens(generator, bq, tq), tokens(generator, bd, td)
    expected = naive(q, d)
    assert torch.allclose(maxsim(q, d), expected, atol=1e-4)
    assert torch.allclose(maxsim(q, d, budget_bytes=1), expected, atol=1e-4), "chunking changes a score"
    lengths = d.mask.sum(1)
    packed = torch.cat(d.unpad())
    for i in range(bq):
        own = maxsim_packed(q.embeddings[i][q.mask[i]], packed, lengths)
        assert torch.allclose(own, expected[i], atol=1e-4)
    pairs = maxsim_pairs(q, TokenBatch(d.embeddings.repeat(bq, 1, 1), d.mask.repeat(bq, 1)))
    assert torch.allclose(pairs, expected, atol=1e-4)


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_maxsim_gradients_equal_those_of_the_plain_formula(bq, tq, bd, td, seed):
    generator = torch.Generator().manual_seed(seed)
    q, d = tokens(generator, bq, tq), tokens(generator, bd, td)
    weights = torch.randn(bq, bd, generator=generator)
    grads = []
    for plain in (True, False):
        a, b = q.embeddings.clone().requires_grad_(), d.embeddings.clone().requires_grad_()
        if plain:
            sims = torch.einsum("qid,pjd->qpij", a, b).masked_fill(~d.mask[None, :, None], -1e9).amax(-1)
            scores = (sims * q.mask[:, None] * d.mask.any(-1)[None, :, None]).sum(-1)
        else:
            scores = maxsim(TokenBatch(a, q.mask), TokenBatch(b, d.mask))
        (scores * weights).sum().backward()
        grads.append((a.grad, b.grad))
    assert torch.allclose(grads[0][0], grads[1][0], atol=1e-4) and torch.allclose(grads[0][1], grads[1][1], atol=1e-4)


def test_maxsim_gradients_do_not_depend_on_chunks():
    generator = torch.Generator().manual_seed(0)
    q, d = tokens(generator, 3, 4), tokens(generator, 5, 6)
    grads = []
    for budget in (1 << 30, 1):
        a, b = q.embeddings.clone().requires_grad_(), d.embeddings.clone().requires_grad_()
        maxsim(TokenBatch(a, q.mask), TokenBatch(b, d.mask), budget).square().sum().backward()
        grads.append((a.grad, b.grad))
    assert torch.allclose(grads[0][0], grads[1][0]) and torch.allclose(grads[0][1], grads[1][1])
    assert grads[0][0].abs().sum() > 0


def test_maxsim_sums_in_fp32_and_scores_an_empty_document_zero():
    q = TokenBatch(torch.full((1, 3000, 1), 1.0, dtype=torch.bfloat16), torch.ones(1, 3000, dtype=torch.bool))
    d = TokenBatch(torch.ones(2, 1, 1, dtype=torch.bfloat16), torch.tensor([[True], [False]]))
    assert maxsim(q, d).tolist() == [[3000.0, 0.0]]


def test_single_vectors_are_dot_products():
    q, d = torch.randn(3, 6), torch.randn(4, 6)
    ones = torch.ones(4, 1, dtype=torch.bool)
    assert torch.allclose(maxsim(TokenBatch(q[:, None], ones[:3]), TokenBatch(d[:, None], ones)), q @ d.T, atol=1e-5)


def test_token_batches_pad_unpad_and_concatenate():
    vectors = [torch.randn(n, 3) for n in (2, 0, 4)]
    batch = TokenBatch.pad(vectors)
    assert [len(v) for v in batch.unpad()] == [2, 0, 4] and torch.equal(batch.unpad()[2], vectors[2])
    both = TokenBatch.cat([batch, TokenBatch.pad([torch.randn(6, 3)])])
    assert [len(v) for v in both.unpad()] == [2, 0, 4, 6]
    with pytest.raises(UserError, match=r"embeddings \[B, T, D\]"):
        TokenBatch(torch.randn(2, 3), torch.ones(2, 3))


# ---- config


class Inner(config.Strict):
    size: int = 3


class Outer(config.Strict):
    name: str = "x"
    rate: float = 0.1
    inner: Inner = Inner()


def test_all_config_errors_come_at_once(tmp_path):
    (tmp_path / "a.yaml").write_text("model:\n  nmae: y\n  rate: fast\n  inner: {size: 1.5, sze: 2}\nmdel: {}\n")
    with pytest.raises(UserError) as caught:
        config.validate(config.load_yaml(tmp_path / "a.yaml"), {"model": Outer})
    text = str(caught.value)
    assert "model.nmae: unknown key; did you mean 'model.name'?" in text
    assert "model.rate: got 'fast'" in text
    assert "model.inner.size: got 1.5" in text
    assert "model.inner.sze: unknown key; did you mean 'model.inner.size'?" in text
    assert "mdel: unknown key; did you mean 'model'?" in text


def test_overrides_and_interpolation(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {name: '${model.rate}x', rate: 0.5}\n")
    sections = config.validate(config.load_yaml(tmp_path / "a.yaml", ["model.inner.size=7"]), {"model": Outer})
    assert sections["model"].name == "0.5x" and sections["model"].inner.size == 7


@pytest.mark.parametrize(("overrides", "text", "message"), [
    (["--lr=3"], "a: 1", "overrides are written section.key=value"),
    ([], "a: [1", "cannot be read"),
    ([], "- 1", "no mapping"),
    ([], "a: ${nothing}", "cannot be read"),
])  # fmt: skip
def test_bad_config_files(tmp_path, overrides, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        config.load_yaml(tmp_path / "a.yaml", overrides)


def test_missing_config_file():
    with pytest.raises(UserError, match=r"'nowhere.yaml' does not exist"):
        config.load_yaml("nowhere.yaml")


# ---- files


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_file(tmp_path / "f", "w") as handle:
        handle.write("new")
        raise RuntimeError
    assert (tmp_path / "f").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("new")
        raise RuntimeError
    assert (tmp_path / "d" / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with files.atomic_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "d" / "x").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_kill_between_the_two_renames_of_a_folder_loses_nothing(tmp_path):
    """The moment in which the old folder is set aside and the new one not yet in place."""
    (tmp_path / ".d.old").mkdir()
    (tmp_path / ".d.old" / "x").write_text("old")
    files.restore_folder(tmp_path / "d")
    assert (tmp_path / "d" / "x").read_text() == "old"


# ---- stores

SPEC = {"kind": "test", "weights": "abc", "dtype": "float16"}


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float16)


def test_store_round_trip_with_ragged_items_and_links(tmp_path):
    writer = StoreWriter(tmp_path / "s", SPEC, shard_rows=5)
    for i in range(4):
        writer.add(f"k{i}", f"d{i}", rows(i + 1, i))
    assert writer.link("same", "d2") and not writer.link("new", "d9")
    store = writer.finish()
    assert store.complete and len(store) == 5
    for i in range(4):
        assert np.array_equal(store.get([f"k{i}"])[0], rows(i + 1, i))
    assert np.array_equal(store.get(["same"])[0], rows(3, 2))
    with pytest.raises(UserError, match="'absent' is not in the store"):
        store.get(["absent"])


def test_store_refuses_another_maker(tmp_path):
    write_store(tmp_path / "s", SPEC, [("a", "d", rows(2))])
    with pytest.raises(UserError, match="weights: stored 'abc', wanted 'xyz'"):
        Store(tmp_path / "s", expect={**SPEC, "weights": "xyz"})
    with pytest.raises(UserError, match="no store at"):
        Store(tmp_path / "nothing")


def test_store_refuses_nan_and_keeps_what_was_committed(tmp_path):
    writer = StoreWriter(tmp_path / "s", SPEC)
    writer.add("good", "d0", rows(2))
    writer.commit()
    bad = rows(2)
    bad[1, 1] = np.nan
    with pytest.raises(UserError, match="'bad' hold NaN"):
        writer.add("bad", "d1", bad)
    assert "good" in Store(tmp_path / "s")


def test_changed_content_replaces_a_key(tmp_path):
    write_store(tmp_path / "s", SPEC, [("a", "v1", rows(2, 1))])
    store = write_store(tmp_path / "s", SPEC, [("a", "v2", rows(3, 2))])
    assert np.array_equal(store.get(["a"])[0], rows(3, 2))


def test_a_killed_store_goes_on_where_it_was(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys, numpy as np
        from core.store import StoreWriter
        writer = StoreWriter(sys.argv[1], {"kind": "test", "weights": "abc", "dtype": "float16"}, shard_rows=4)
        for i in range(10):
            if not writer.has(f"k{i}", f"d{i}"):
                print(i, flush=True)
                writer.add(f"k{i}", f"d{i}", np.full((2, 4), i, np.float16))
            if i == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        writer.finish()
    """)

    def go(kill_at: int) -> tuple[int, list[str]]:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "s"), str(kill_at)], capture_output=True, text=True,
            cwd=Path(__file__).parent.parent, env={**os.environ},
        )  # fmt: skip
        return done.returncode, done.stdout.split()

    assert go(6)[0] == -signal.SIGKILL
    assert not Store(tmp_path / "s").complete
    status, made = go(99)
    assert status == 0 and made == ["6", "7", "8", "9"], "what was committed is made again"
    store = Store(tmp_path / "s")
    assert store.complete and all((store.get([f"k{i}"])[0] == i).all() for i in range(10))
