"""FSDP: two processes with half of every weight each make the steps of one process, and leave ordinary checkpoints."""

from __future__ import annotations

import pytest
import torch

import models
from core.config import check
from core.errors import UserError
from core.records import Document, ImageRef, Query
from runs.training import best
from tests import tiny
from tests.conftest import FULL
from tests.test_training_distributed import DATA, mixed_data, setting, toy
from tests.test_training_throughput import WordDataset
from tests.toy import ToyDataset, ToyRetriever, ToyVisual
from tests.two_processes import two_processes
from training import checkpoint
from training.config import Config
from training.loop import fit
from training.sharding import reshard, shard
from training.tracker import read

CASES = {"hard": {"nways": 3, "accumulation": 2}, "cached": {"nways": 2, "memory": 2, "clip": None, "grad_cache": 3}}
TOWERS = {"frozen": {"frozen": ["text"]}, "recomputed": {"checkpoint_activations": True}}
if FULL:
    CASES |= {"plain": {}, "memory": {"memory": 2, "clip": None}}
    TOWERS |= {"all": {}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    tiny.text_tower(folder / "text")
    tiny.vision_tower(folder / "vision")
    tiny.image(folder)
    return two_processes(jobs, folder)


def colbert(folder, frozen=()):
    module = models.module("colbert")
    stage = {"query_maxlen": 12, "doc_maxlen": 24, "temperature": 0.5}
    section = {"text_tower": str(folder / "text"), "dim": 16, "frozen": list(frozen), "train": stage, "eval": stage}
    torch.manual_seed(0)
    made = module.build(check(module.Config, section, "model"))
    for part in made.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return made


def jobs(rank, folder):
    for name, more in CASES.items():
        fit(toy(), ToyDataset(**DATA), setting(folder / name, 4, steps=4, parallel="fsdp", **more), ToyVisual())
    for name, more in TOWERS.items():
        towers(folder, rank, name, dict(more))
    resumed(folder)
    fit(toy(), mixed_data(), setting(folder / "mixed", 4, steps=2, parallel="fsdp"), ToyVisual())
    torch.save(found_among_mixed(folder, sliced=True), folder / f"mixed-{rank}.pt")


def found_among_mixed(folder, sliced=False):
    """What a validation finds in a corpus of which every other batch has images."""
    module, stage = models.module("mire"), {"query_maxlen": 12, "doc_maxlen": 24}
    section = {"text_tower": str(folder / "text"), "vision": {"tower": str(folder / "vision")}, "dim": 16}
    section |= {"num_tokens": 3, "num_heads": 2, "train": stage, "eval": stage}
    torch.manual_seed(0)
    model = module.build(check(module.Config, section, "model")).eval()
    if sliced:
        shard(model, torch.device("cpu"))
    picture = (ImageRef("image.png", path=str(folder / "image.png")),)
    corpus = [Document(f"{i}", "bird fish " * (i % 3 + 1), picture if i // 10 % 2 else ()) for i in range(40)]
    with torch.inference_mode():
        asked = [model.encode_queries(model.collate_queries([Query("a", "bird"), Query("b", "fish", images=picture)]))]
        return best(model, asked, corpus, size=10)


def towers(folder, rank, name, more):
    """Also what each process holds, and a validation in inference mode before the first step and between."""
    retriever = colbert(folder, more.pop("frozen", ()))
    seen = []

    def validate(model):
        with torch.inference_mode():
            found = model.encode_documents(model.collate_documents(tiny.documents()))
        reshard(model)
        held = sum(p.to_local().numel() for p in model.parameters())
        seen.append((float(found.embeddings.sum()), held))
        return {"m": 1.0}

    config = setting(folder / f"towers-{name}", 2, steps=3, eval_every=1, parallel="fsdp", **more)
    fit(retriever, WordDataset(), config, validate=validate)
    torch.save(seen, folder / f"towers-{name}-{rank}.pt")


def resumed(folder):
    for steps in (2, 3):
        config = setting(folder / "resumed", 4, steps=steps, save_every=1, parallel="fsdp")
        fit(toy(), ToyDataset(**DATA), config, ToyVisual())
    fit(toy(), ToyDataset(**DATA), setting(folder / "unbroken", 4, steps=3, parallel="fsdp"), ToyVisual())
    # A run that began in slices goes on with whole copies.
    config = setting(folder / "resumed", 4, steps=4, save_every=1)
    fit(toy(), ToyDataset(**DATA), config, ToyVisual())


def weights(folder, step):
    return ToyRetriever.from_pretrained(checkpoint.folder(folder, step)).state_dict()


@pytest.mark.parametrize("name", CASES)
def test_slices_make_the_steps_of_one_process(pair, tmp_path, name):
    one = toy()
    fit(one, ToyDataset(**DATA), setting(tmp_path, 8, steps=4, **CASES[name]), ToyVisual())
    found = weights(pair / name, 4)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(found[key], value, atol=3e-6, rtol=0, msg=key)
    rows = [[r["loss"] for r in read(out / "metrics.jsonl")] for out in (tmp_path, pair / name)]
    assert rows[1] == pytest.approx(rows[0], abs=1e-5)
    norms = [[r["grad_norm"] for r in read(out / "metrics.jsonl")] for out in (tmp_path, pair / name)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_layers_of_towers_are_sliced_and_a_checkpoint_is_whole(pair, tmp_path, name):
    more = dict(TOWERS[name])
    one = colbert(pair, more.pop("frozen", ()))
    total = sum(p.numel() for p in one.parameters())
    seen = []

    def validate(model):
        seen.append(float(model.encode_documents(model.collate_documents(tiny.documents())).embeddings.sum()))
        return {"m": 1.0}

    fit(one, WordDataset(), setting(tmp_path, 4, steps=3, eval_every=1, **more), validate=validate)
    found = models.from_pretrained(checkpoint.folder(pair / f"towers-{name}", 3)).state_dict()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(found[key], value, atol=5e-5, rtol=1e-4, msg=key)
    ranks = [torch.load(pair / f"towers-{name}-{r}.pt") for r in (0, 1)]
    assert [v for v, _ in ranks[0]] == pytest.approx(seen, abs=1e-3)
    assert [v for v, _ in ranks[0]] == [v for v, _ in ranks[1]]
    assert all(0.4 * total < held < 0.6 * total for rank in ranks for _, held in rank)


def test_a_run_in_slices_goes_on_exactly(pair):
    again, whole = weights(pair / "resumed", 3), weights(pair / "unbroken", 3)
    assert all(torch.equal(again[k], whole[k]) for k in whole)
    assert checkpoint.steps(pair / "resumed")[-1] == 4
    a, b = (torch.load(checkpoint.folder(pair / n, 3) / "loop.pt", weights_only=True) for n in ("resumed", "unbroken"))
    assert str(a["optimizer"]) == str(b["optimizer"])


def test_images_may_be_missing_on_one_process(pair, tmp_path):
    """All processes exchange gradients of the same weights all the same; what nobody used gets zeros."""
    fit(toy(), mixed_data(), setting(tmp_path, 8, steps=2), ToyVisual())
    # Zeros instead of none: weight decay alone moved the image part in the first step.
    rows = [[r["loss"] for r in read(out / "metrics.jsonl")] for out in (tmp_path, pair / "mixed")]
    assert rows[1] == pytest.approx(rows[0], abs=1e-3)
    first, last = toy().image.weight, weights(pair / "mixed", 2)["image.weight"]
    assert float((first - last).detach().abs().max()) > 5e-3


def test_one_process_has_nothing_to_slice(tmp_path):
    fit(toy(), ToyDataset(**DATA), setting(tmp_path, 4, steps=1, parallel="fsdp"), ToyVisual())
    with pytest.raises(UserError, match="fsdp goes without unit_tokens, compile and lora"):
        check(Config, {"out": "x", "steps": 1, "parallel": "fsdp", "unit_tokens": 9}, "train")


def test_a_validation_of_passages_some_of_which_have_images(pair):
    """Shares would go through other layers on one process than on the other, which gather their weights together."""
    places, scores = found_among_mixed(pair)
    assert any(i // 10 % 2 for i in places[1]) and len(places[0]) == 10
    for rank in (0, 1):
        found, values = torch.load(pair / f"mixed-{rank}.pt")
        torch.testing.assert_close(torch.tensor(values), torch.tensor(scores), atol=1e-4, rtol=0)
        assert {i % 3 for i in found[0]} == {i % 3 for i in places[0]}  # others say the same
