"""The live line, and what MFU counts."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from tests.test_training_units import batch_of
from tests.toy import ToyConfig, ToyDataset, ToyRetriever, ToyVisual
from tests.training_cases import quick, settings  # noqa: F401 (a fixture)
from training import flops, meter
from training.batches import Collator, Order
from training.flops import Flops, ceiling
from training.loop import fit
from training.parallel import train_mode
from training.tracker import read

CPU = torch.device("cpu")
H, D = 12, 8  # the toy's widths


def toy_batch(retriever, image_every=2):
    order = Order(ToyDataset(size=16, image_every=image_every), "train", 8, seed=3)
    return Collator(order, retriever, ToyVisual())[0]


@pytest.mark.parametrize("frozen", [[], ["trunk"], ["trunk", "linear"]])
def test_flops_by_hand(frozen):
    """A weight that learns and an input that learns cost as much as the way forward, each."""
    retriever = ToyRetriever(ToyConfig(frozen=frozen))
    train_mode(retriever)
    batch, before = toy_batch(retriever), torch.get_rng_state()
    counted = Flops(retriever, batch, CPU, "fp32")
    assert torch.equal(before, torch.get_rng_state())
    asked, answers = int(batch.queries["mask"].sum()), int(batch.documents["mask"].sum())
    assert (asked, answers) == (16, 48)
    trunk, linear = (1 if "trunk" in frozen else 3), {0: 3, 1: 2, 2: 1}[len(frozen)]
    images = int(batch.queries.image_counts.sum())
    encoding = (asked + answers) * 2 * (trunk * H * H + linear * H * D) + images * 2 * 2 * (4 * 2 * D)
    sides = counted.sides
    scoring = 2 * 8 * 8 * sides["queries"].rows * sides["documents"].rows * D
    assert images and counted.of(batch) == pytest.approx(encoding + scoring)
    assert (sides["queries"].rows, sides["documents"].rows) == (2 + 2, 6)  # two rows of an image, two words; six words


def test_padding_is_no_work():
    retriever = ToyRetriever()
    batch = toy_batch(retriever, image_every=0)
    counted = Flops(retriever, batch, CPU, "fp32")
    before = counted.of(batch)
    for side in (batch.queries, batch.documents):
        for key in ("ids", "mask"):
            side.tensors[key] = torch.nn.functional.pad(side[key], (0, 50))
    assert counted.of(batch) == before
    again = Flops(retriever, batch, CPU, "fp32").of(batch)
    assert again == pytest.approx(before), "measured on a padded batch"


@pytest.mark.parametrize("name", ["colbert", "mire"])
def test_towers_as_torch_counts_them(name, tmp_path):
    """Without padding, images and attention's products the count is that of torch's own counter."""
    retriever = tiny.retriever(name, tmp_path / "towers", frozen=[] if name == "colbert" else ["vision"])
    retriever.stage = "train"
    batch = batch_of(retriever, tmp_path, images=False)
    counted = Flops(retriever, batch, CPU, "fp32").sides["documents"]
    retriever.zero_grad()
    with FlopCounterMode(display=False) as torchs:
        retriever.encode_documents(batch.documents).embeddings.sum().backward()
    by_kind = torchs.get_flop_counts()["Global"]
    matrices = sum(value for kind, value in by_kind.items() if str(kind) in ("aten.mm", "aten.addmm"))
    positions = batch.documents["mask"].numel()
    assert counted.per_token * positions == pytest.approx(matrices, rel=0.005)  # BERT's pooler, which nothing reads


def test_the_ceiling_is_of_a_plausible_machine():
    found = ceiling(CPU)
    assert 1e9 < found < 1e14 and ceiling(CPU) == found, "measured once"


def test_the_live_line_and_the_file_say_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flops, "ceiling", lambda device, precision: 1e6)
    retriever = ToyRetriever()
    fit(retriever, ToyDataset(image_every=3), settings(tmp_path, steps=4, log_every=2), ToyVisual())
    line = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    number = r"[\d.e+-]+"
    assert re.search(
        rf"4/4 \[\d\d:\d\d<\d\d:\d\d, .*loss={number}, acc q->d=[01]\.\d+, lr=1\.00e-02, samples/s={number}, "
        rf"tokens/s={number}, MFU={number}%, GB=\d+\.\d+",
        line,
    ), line
    rows = read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4] and rows[1]["eta_s"] == 0
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(row["samples_per_s"] * 8, rel=0.01)  # two words and six
        assert row["memory_gb"] > 0.01
        # All in units of the two steps' own time: FLOPs of 8 samples over the ceiling.
        work = row["mfu"] * 1e6 * 2 * row["seconds"]
        least = 64 * 2 * 3 * (H * H + H * D)  # of the tokens alone
        assert least < work < 1.3 * least


def test_the_estimate_follows_the_pace_and_pauses_do_not_count():
    clock = meter.Meter(CPU, total=10)
    for _ in range(3):
        clock.add(8, 100, 0.0, 2.0)
    said = clock.take(3)
    assert (said["seconds"], said["samples_per_s"], said["tokens_per_s"], said["eta_s"]) == (2.0, 4.0, 50.0, 14)
    assert "mfu" not in said
    clock.add(8, 100, 0.0, 4.0)
    said = clock.read(4)
    assert said["seconds"] == 4.0 and 12 < said["eta_s"] < 24
