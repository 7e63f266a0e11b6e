"""Two processes are one process with the concatenated batch: gradients, weights, negatives, signals."""

import dataclasses
import os
import shutil
import signal

import pytest
import torch
import torch.distributed as dist

from core import distributed
from core.config import check
from core.errors import UserError
from core.records import ImageRef
from core.tokens import TokenBatch
from tests.toy import ToyConfig, ToyDataset, ToyRetriever, ToyVisual
from tests.two_processes import two_processes
from training import checkpoint
from training.batches import Collator, Order
from training.config import Config
from training.loop import fit
from training.objective import Contrastive
from training.parallel import StepModule, find_unused, quiet, train_mode, wrap
from training.schedule import trainable
from training.tracker import read

FITS = {
    "in_batch": ({}, []),
    "hard": ({"nways": 3}, []),
    "hard_only": ({"nways": 3, "in_batch": False}, []),
    "accumulated": ({"nways": 2, "accumulation": 2, "hard_negatives": "in_batch"}, []),
    # Only the image part trains, as in MIRe's phase A.
    "frozen": ({"nways": 2, "false_negatives": "keep"}, ["trunk", "linear"]),
}
GRADIENTS = {"one_way": (1, True), "three_ways": (3, True), "not_gathered": (3, False)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folder with what the jobs of two processes left behind."""
    return two_processes(jobs, tmp_path_factory.mktemp("pair"))


def jobs(rank, folder):
    distributed.patient_barrier()
    run_uneven(rank, folder / "uneven")
    for name, (nways, gather) in GRADIENTS.items():
        run_gradients(rank, folder / name, nways, gather)
    for name, (more, frozen) in FITS.items():
        run_fit(rank, folder / name, more, frozen)
    run_interrupted(rank, folder / "interrupted")
    run_mixed(rank, folder / "mixed")


def setting(out, per_process, **more):
    """No dropout in these tests: its noise is the one thing that may differ between one process and two."""
    base = {"out": str(out), "steps": 6, "batch_size": per_process, "lr": 0.01, "device": "cpu", "weight_decay": 0.1}
    return check(Config, {**base, **more}, "train")


def toy(**more):
    return ToyRetriever(ToyConfig(dropout=0.0, **more))


DATA = {"size": 40, "negatives": 2, "image_every": 3}


def run_fit(rank, folder, more, frozen):
    retriever = toy(pooler=True, frozen=frozen)
    fit(retriever, ToyDataset(**DATA), setting(folder / "two", 4, **more), ToyVisual(), validate=validate)
    save(retriever.state_dict(), folder, rank)


def save(tensors, folder, rank):
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / f"rank{rank}.pt")


def validate(retriever):
    assert retriever.stage == "valid"
    return {"rank": float(distributed.rank())}


@pytest.mark.parametrize("name", FITS)
def test_two_processes_make_the_steps_of_one(pair, tmp_path, name):
    """Over an epoch's end, with clipping, a part without gradient (the pooler) and images in some batches only."""
    more, frozen = FITS[name]
    one = toy(pooler=True, frozen=frozen)
    before = {k: v.clone() for k, v in one.state_dict().items()}
    fit(one, ToyDataset(**DATA), setting(tmp_path / "one", 8, **more), ToyVisual(), validate=validate)
    ranks = [torch.load(pair / name / f"rank{r}.pt") for r in (0, 1)]
    for key, value in one.state_dict().items():
        assert torch.equal(ranks[0][key], ranks[1][key])
        torch.testing.assert_close(ranks[0][key], value, atol=2e-6, rtol=0)
    assert not torch.allclose(one.image.weight, before["image.weight"], atol=1e-3)
    assert torch.equal(one.pooler.weight, before["pooler.weight"])
    rows = [read(out / "metrics.jsonl") for out in (tmp_path / "one", pair / name / "two")]
    assert [r.get("loss") for r in rows[1]] == pytest.approx([r.get("loss") for r in rows[0]], abs=1e-5)
    assert [r.get("accuracy") for r in rows[1]] == pytest.approx([r.get("accuracy") for r in rows[0]], abs=1e-6)
    assert [r["valid/rank"] for r in rows[1] if "valid/rank" in r] == [0.0, 0.0]


def run_gradients(rank, folder, nways, gather):
    retriever = toy()
    module = StepModule(retriever, Contrastive(gather=gather))
    train_mode(module)
    model = wrap(module, torch.device("cpu"), find_unused=True)
    with quiet(model, last=False):
        assert not model.require_backward_grad_sync  # earlier micro-batches send nothing
    batch = Collator(Order(ToyDataset(**DATA), "train", 4, nways, 3), retriever, ToyVisual())[1]
    model(batch)["loss"].backward()
    save({n: p.grad for n, p in retriever.named_parameters()}, folder, rank)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_the_concatenated_batch(pair, name):
    """With ``gather`` they are; without it each process has only its own negatives, and they are not."""
    nways, gather = GRADIENTS[name]
    retriever = toy()
    train_mode(retriever)
    batch = Collator(Order(ToyDataset(**DATA), "train", 8, nways, 3), retriever, ToyVisual())[1]
    Contrastive().step(batch, retriever)["loss"].backward()
    found = torch.load(pair / name / "rank0.pt")
    gaps = {n: float((found[n] - p.grad).abs().max()) for n, p in retriever.named_parameters() if p.grad is not None}
    assert len(gaps) == 7 and all(p.grad.abs().max() > 1e-4 for p in retriever.parameters())
    assert (max(gaps.values()) < 1e-6) == gather


def run_uneven(rank, folder):
    rows = torch.ones(2, 3 + rank, 4, requires_grad=rank == 0)
    out = distributed.gather_tokens(TokenBatch(rows, torch.ones(2, 3 + rank, dtype=torch.bool)))
    assert out.embeddings.shape == (4, 4, 4) and out.mask.sum() == 2 * 3 + 2 * 4
    (out.embeddings.sum() * (rank + 1)).backward()
    if rank == 0:
        assert torch.equal(rows.grad, torch.full((2, 3, 4), 3.0))  # both processes' losses
    save({"done": torch.tensor(True)}, folder, rank)


def test_one_process_without_gradient_does_not_stall_the_others(pair):
    assert all(torch.load(pair / "uneven" / f"rank{r}.pt")["done"] for r in (0, 1))


class Interrupted(ToyDataset):
    """On rank 1 a SIGTERM comes while an epoch's examples are drawn."""

    def examples(self, split, epoch, seed):
        if epoch == 1 and distributed.rank() == 1 and distributed.world() == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().examples(split, epoch, seed)


def run_interrupted(rank, folder):
    folder.mkdir(exist_ok=True)
    config = setting(folder / "run", 4, steps=9)
    dropout = {"dropout": 0.3}  # each rank has its own noise, restored on resume
    first = fit(ToyRetriever(ToyConfig(**dropout)), Interrupted(**DATA), config, ToyVisual())
    assert (first.step, first.stopped) == (6, True), first
    again = ToyRetriever(ToyConfig(**dropout), seed=4)
    done = fit(again, ToyDataset(**DATA), config, ToyVisual())
    whole = ToyRetriever(ToyConfig(**dropout))
    fit(whole, ToyDataset(**DATA), setting(folder / "whole", 4, steps=9), ToyVisual())
    assert done.step == 9
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters()))


def test_a_signal_to_one_process_stops_all_at_one_step(pair, tmp_path):
    shutil.copytree(pair / "interrupted" / "run", tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == [6, 9]
    with pytest.raises(ValueError, match="processes: 2, now 1"):
        fit(toy(), ToyDataset(**DATA), setting(tmp_path / "run", 4, steps=12), ToyVisual())


def mixed_data():
    """Rank 0 meets images in its second step only: the first batch does not show that the image part trains."""
    dataset = ToyDataset(size=16, image_every=0)
    order = Order(dataset, "train", 4, seed=2024, rank=0, world=2)
    late = {dataset._queries[row].id for row in order.rows(1)}
    dataset._queries = [
        dataclasses.replace(q, images=(ImageRef(q.id, data=b"x"),)) if q.id in late else q for q in dataset._queries
    ]
    return dataset


def run_mixed(rank, folder):
    retriever = toy()
    config = setting(folder / "run", 4, steps=2, find_unused="always")
    fit(retriever, mixed_data(), config, ToyVisual())
    save(retriever.state_dict(), folder, rank)


def test_modalities_may_be_missing_on_one_process(pair):
    a, b = (torch.load(pair / "mixed" / f"rank{r}.pt") for r in (0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["image.weight"], toy().image.weight)


@pytest.mark.parametrize(("images_every", "frozen", "looks"), [(1, [], False), (3, [], True), (0, [], True),
                                                               (0, ["trunk", "linear"], True)])  # fmt: skip
def test_when_a_later_batch_may_leave_a_part_out(images_every, frozen, looks):
    """Images everywhere: no. For some queries only: a later batch may have none. None: the image part is unused, also
    where nothing else learns and the first batch has no gradient at all."""
    retriever = toy(frozen=frozen)
    batch = Collator(Order(ToyDataset(image_every=images_every), "train", 8), retriever, ToyVisual())[0]
    module = StepModule(retriever, Contrastive())
    assert find_unused(module, batch, trainable(retriever), torch.device("cpu"), "fp32") == looks
    assert all(p.grad is None for p in retriever.parameters())


@pytest.mark.parametrize(("device", "cuda", "backend"), [
    ("cpu", True, "gloo"), ("auto", True, "nccl"), ("cuda", True, "nccl"), ("auto", False, "gloo"),
])  # fmt: skip
def test_the_backend_follows_the_device_asked_for(monkeypatch, device, cuda, backend):
    seen = []
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: seen.append(backend))
    distributed.init(device)
    assert seen == [backend]
    monkeypatch.setenv("LOCAL_RANK", "1")
    if backend == "nccl":
        with pytest.raises(UserError, match="this machine has 1; start as many processes as GPUs"):
            distributed.init(device)
