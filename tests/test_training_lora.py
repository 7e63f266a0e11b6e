"""Adapters: what learns, what a checkpoint holds, that a run goes on exactly, and that nothing else notices."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml

import train_retrieval
from core.errors import UserError
from models import from_pretrained
from runs import evaluate_retrieval, run_indexer
from runs.common import best_checkpoint
from tests import tiny
from tests.test_pipeline import make_config
from tests.test_training_throughput import WordDataset
from tests.training_cases import quick, same_weights, settings  # noqa: F401 (a fixture)
from training import checkpoint, lora
from training.loop import fit
from training.lora import Lora, adapted

SMALL = {"r": 3, "alpha": 6.0}


def colbert(tmp_path, **changes):
    return tiny.retriever("colbert", tmp_path / "towers", frozen=[], **changes)


def documents(retriever):
    with torch.no_grad():
        found = retriever.eval().encode_documents(retriever.collate_documents(tiny.documents()))
    return found.embeddings


def run(retriever, out, steps=4, **more):
    config = settings(out, steps=steps, batch_size=3, lora={**SMALL, "dropout": 0.1, **more}, save_every=2)
    return fit(retriever, WordDataset(), config)


def test_adapters_begin_as_nothing_and_the_rest_learns_as_before(tmp_path):
    retriever = colbert(tmp_path)
    before, names = documents(retriever), [n for n, _ in retriever.named_parameters()]
    learned = {n for n, p in retriever.named_parameters() if p.requires_grad}
    with adapted(retriever, Lora(**SMALL), seed=1):
        torch.testing.assert_close(documents(retriever), before, atol=1e-6, rtol=0)
        learns = {n for n, p in retriever.named_parameters() if p.requires_grad}
        assert "text.linear.weight" in learns
        of_tower = {n for n in learns if n.startswith("text.trunk.")}
        assert of_tower and all(".lora_" in n for n in of_tower) and not any("pooler" in n for n in of_tower)
        assert len(of_tower) == 2 * 2 * 6, "A and B of six matrices in each of two layers"
        count = sum(p.numel() for n, p in retriever.named_parameters() if ".lora_" in n)
        assert count == 2 * (4 * 3 * (32 + 32) + 2 * 3 * (32 + 64))
    assert [n for n, _ in retriever.named_parameters()] == names
    assert {n for n, p in retriever.named_parameters() if p.requires_grad} == learned
    torch.testing.assert_close(documents(retriever), before, atol=1e-6, rtol=0)


def test_a_run_moves_the_targets_by_r_dimensions_and_leaves_the_rest(tmp_path):
    retriever = colbert(tmp_path)
    before = {k: v.clone() for k, v in retriever.state_dict().items()}
    run(retriever, tmp_path / "run", targets=["query", "value"])
    after = retriever.state_dict()
    assert after.keys() == before.keys()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    layers = {f"text.trunk.encoder.layer.{i}.attention.self.{n}.weight" for i in (0, 1) for n in ("query", "value")}
    assert moved == {"text.linear.weight", *layers}
    for name in layers:
        assert int(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3)) <= 3


def test_a_checkpoint_is_an_ordinary_one_and_holds_the_adapters_beside(tmp_path):
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    retriever = colbert(tmp_path)
    run(retriever, tmp_path / "run")
    folder = checkpoint.folder(tmp_path / "run", 4)
    loaded = from_pretrained(folder)
    torch.testing.assert_close(documents(loaded), documents(retriever), atol=1e-6, rtol=0)
    assert same_weights(loaded, retriever)
    # peft makes the same of the towers and the adapters alone (the projection learned beside them).
    again = colbert(tmp_path)
    config = LoraConfig.from_pretrained(str(folder / "lora"))
    assert (config.r, config.lora_alpha) == (3, 6.0)
    inject_adapter_in_model(config, again)
    tensors = load_file(folder / "lora" / "adapter_model.safetensors")
    set_peft_model_state_dict(again, {k.removeprefix("base_model.model."): v for k, v in tensors.items()})
    again.text.linear.load_state_dict(loaded.text.linear.state_dict())
    torch.testing.assert_close(documents(again), documents(retriever), atol=1e-5, rtol=0)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    whole, first, second = (colbert(tmp_path) for _ in range(3))
    run(whole, tmp_path / "whole")
    run(first, tmp_path / "run", steps=2)
    assert not same_weights(first, whole)
    run(second, tmp_path / "run")
    assert same_weights(second, whole)
    with pytest.raises(UserError, match=r"trained otherwise \(lora: .*'r': 3.*now .*'r': 4"):
        run(colbert(tmp_path), tmp_path / "run", steps=6, r=4)
    other = colbert(tmp_path)
    with torch.no_grad():
        other.text.trunk.embeddings.word_embeddings.weight[5] += 1
    with pytest.raises(UserError, match="beside other weights than the towers have now"):
        run(other, tmp_path / "run", steps=6)


@pytest.mark.parametrize(("more", "frozen", "message"), [
    ({"towers": ["text.tree"]}, [], r"names 'text\.tree', which has no linear layers.*text\.trunk"),
    ({}, ["text"], r"'text\.trunk', which is frozen.*take it out of model\.frozen"),
    ({"targets": ["q_proj"]}, [], r"\['q_proj'\] names no linear layer.*query"),
])  # fmt: skip
def test_wrong_settings_say_what_there_is(tmp_path, more, frozen, message):
    retriever = tiny.retriever("colbert", tmp_path / "towers", frozen=frozen)
    with pytest.raises(UserError, match=message):
        run(retriever, tmp_path / "run", **more)


def test_without_peft_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-lora\.txt"):
        run(colbert(tmp_path), tmp_path / "run")


def test_the_commands_after_it_notice_nothing(tmp_path):
    """A family with images; then index and evaluation of its checkpoint."""
    train = {"steps": 3, "batch_size": 4, "lr": 1e-3, "eval_every": 3, "lora": SMALL}
    config = make_config(tmp_path, train=train)
    raw = yaml.safe_load(config.read_text())
    raw["model"]["frozen"] = ["vision"]
    config.write_text(yaml.safe_dump(raw))
    for command in (train_retrieval, run_indexer, evaluate_retrieval):
        command.run(["--config_path", str(config)])
    assert json.loads((tmp_path / "run" / "report.json").read_text())["test"]
    folder = best_checkpoint(tmp_path / "run")
    assert (folder / "lora" / "adapter_config.json").is_file()
    assert not [n for n, _ in from_pretrained(folder).named_parameters() if "lora" in n]
    assert lora.NAME == "default"
