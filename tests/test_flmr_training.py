"""FLMR's and PreFLMR's own YAMLs, run on a tiny M2KR: fine-tuning a released folder, and the stages of pre-training."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dataset
import train_retrieval
from benchmarks import document_encoding
from core.config import check, load_yaml
from core.device import encoding_precision
from core.errors import UserError
from core.records import Document
from models.flmr import FLMR
from runs import evaluate_retrieval, run_indexer
from runs.common import encode_corpus, open_retriever
from tests import tiny
from tests.m2kr_case import passages, tiny_m2kr, tiny_okvqa

ROOT = Path(__file__).resolve().parents[1]
RELEASED = ROOT / "tests/golden/preflmr/hub_layout/checkpoint"


def changed(before: FLMR, after: FLMR) -> set[str]:
    """Parts some weight of which is another now."""
    old = before.state_dict()
    return {name.split(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, old[name])}


def numbers(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


# ---- cfgs/preflmr_finetune_evqa.yaml


@pytest.fixture(scope="module")
def m2kr(tmp_path_factory) -> Path:
    return tiny_m2kr(tmp_path_factory.mktemp("m2kr"))


def finetune(m2kr: Path, out: Path, *changes: str) -> list[str]:
    """The YAML's command, made small: a released folder of random weights, 6 training questions."""
    lengths = [f"model.{s}.{k}_maxlen={n}" for s in ("train", "eval") for k, n in (("query", 32), ("doc", 48))]
    return [
        "--config_path", str(ROOT / "cfgs/preflmr_finetune_evqa.yaml"), f"run.init={RELEASED}", f"run.out={out}",
        "run.device=cpu", f"data.path={m2kr}", f"data.image_dir={m2kr / 'images'}", "model.num_tokens=6",
        "model.dim=16", *lengths, "train.steps=4", "train.batch_size=2", "train.accumulation=2", "train.lr=0.001",
        "train.warmup_steps=1", "train.eval_every=2", "train.num_workers=0", *changes,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finetuned(m2kr, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finetuned") / "run"
    train_retrieval.run(finetune(m2kr, out))
    return out


def test_everything_but_the_vit_learns(finetuned):
    before, after = FLMR.from_pretrained(RELEASED), open_retriever(finetuned)
    assert changed(before, after) == {"text", "query_text", "fusion"}
    changes = changed(before.fusion, after.fusion)
    assert changes == {"projection", "mapping_input", "mapping", "mapping_output"}


def test_validation_retrieves_and_picks_the_best(finetuned):
    found = numbers(finetuned, "valid/Success@5")
    assert len(found) == 3 and all(0 <= v <= 1 for v in found)  # before, in the middle, at the end
    best = json.loads((finetuned / "checkpoints/best.json").read_text())
    state = json.loads((finetuned / "checkpoints" / best["folder"] / "provenance.json").read_text())
    assert state["metrics"]["Success@5"] == max(found[1:])


def test_accumulated_batches_are_one_step(m2kr, tmp_path):
    """At a rate that changes nothing, a step's loss over two batches is the mean of two steps of one."""
    still = ["train.lr=1e-12", "train.precision=fp32"]
    train_retrieval.run(finetune(m2kr, tmp_path / "two", *still, "train.steps=2"))
    train_retrieval.run(finetune(m2kr, tmp_path / "one", *still, "train.steps=4", "train.accumulation=1"))
    # 6 questions, batches of 2: an epoch has 3 steps of one batch, but one of two. Both begin with the same two.
    one, two = numbers(tmp_path / "one", "loss"), numbers(tmp_path / "two", "loss")
    assert two[0] == pytest.approx((one[0] + one[1]) / 2, rel=1e-4) and abs(one[0] - one[1]) > 1e-3


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(m2kr, finetuned, tmp_path):
    train_retrieval.run(finetune(m2kr, tmp_path / "run", "train.steps=2"))
    train_retrieval.run(finetune(m2kr, tmp_path / "run"))
    assert numbers(tmp_path / "run", "loss") == pytest.approx(numbers(finetuned, "loss"), rel=1e-5)
    assert not changed(open_retriever(finetuned), open_retriever(tmp_path / "run"))


def test_negatives_come_from_all_passages(m2kr):
    """The original drew from range(3), the number of splits."""
    raw = load_yaml(ROOT / "cfgs/preflmr_finetune_evqa.yaml")
    section = {**raw["data"], "path": str(m2kr)}
    data = dataset.build(check(dataset.config_class(section), section, "data"))
    everything = {p["passage_id"] for p in passages()}
    first = [data.examples("train", epoch, 1)[0] for epoch in range(12)]
    assert all(len({n.id for n in e.negatives}) == 4 == raw["train"]["nways"] - 1 for e in first)
    positives = set(data.qrels("train")[first[0].query.id])
    assert {n.id for e in first for n in e.negatives} == everything - positives


def test_the_run_is_judged_as_the_yaml_says(m2kr, finetuned):
    run_indexer.run(finetune(m2kr, finetuned))
    evaluate_retrieval.run(finetune(m2kr, finetuned))
    row = json.loads((finetuned / "report.json").read_text())["test"]["image+question"]
    assert row["queries"] == 6 and 0 <= row["PseudoRecall@5"] <= 1


# ---- pre-training


def stage(name: str, root: Path, *changes: str) -> Path:
    """Run cfgs/<name>.yaml on tiny towers; its folder."""
    text, vision = tiny.text_tower(root / "text"), tiny.vision_tower(root / "vision")
    lengths = [f"model.{s}.{k}_maxlen={n}" for s in ("train", "eval") for k, n in (("query", 32), ("doc", 24))]
    train_retrieval.run([
        "--config_path", str(ROOT / f"cfgs/{name}.yaml"), f"run.out={root / name}", "run.device=cpu",
        f"model.text_tower={text}", f"model.vision.tower={vision}", "model.num_tokens=3", "model.dim=16", *lengths,
        "visual.cache=null", "train.batch_size=2", "train.accumulation=1", "train.lr=0.001", "train.warmup_steps=0",
        "train.eval_every=2", "train.num_workers=0", "eval.valid_queries=4", *changes,
    ])  # fmt: skip
    return root / name


def several(root: Path) -> list[str]:
    roots = [f"data.image_roots.{s}={root / 'images'}" for s in ("EVQA", "WIT")]
    return ["data.subset=[EVQA,WIT]", f"data.path={root}", *roots, "data.random_negatives=1", "train.nways=2"]


def test_preflmr_maps_first_then_learns_text_then_all_subsets(tmp_path, m2kr):
    tiny_m2kr(tmp_path, "WIT")
    tiny_m2kr(tmp_path, "EVQA")
    first = open_retriever(stage("preflmr_stage1", tmp_path, *several(tmp_path), "train.steps=2"))
    start = tiny.retriever("flmr", tmp_path / "again", variant="preflmr")
    assert changed(start, first) == {"fusion"}
    assert first.config.train.rows == ["global", "mapped"] and "text" in first.config.eval.rows
    data = [f"data.path={m2kr}", f"data.image_dir={m2kr / 'images'}"]
    before = [f"run.init={tmp_path / 'preflmr_stage1'}", "train.steps=2"]
    second = open_retriever(stage("preflmr_stage2_evqa", tmp_path, *data, *before))
    assert changed(first, second) == {"text", "query_text", "fusion"}
    before = [f"run.init={tmp_path / 'preflmr_stage2_evqa'}", "train.steps=2"]
    third = open_retriever(stage("preflmr_stage3", tmp_path, *several(tmp_path), *before))
    assert changed(second, third) == {"text", "query_text", "fusion"}


def test_flmr_learns_from_pictures_alone_then_from_regions(tmp_path):
    tiny_m2kr(tmp_path, "WIT")
    data = [f"data.path={tmp_path}", f"data.image_dir={tmp_path / 'images'}"]
    first = open_retriever(stage("flmr_wit", tmp_path, *data))
    assert changed(tiny.retriever("flmr", tmp_path / "again"), first) == {"fusion"}
    assert first.config.train.rows == ["global"]
    root = tmp_path / "okvqa"
    tiny_okvqa(root)
    data = [f"data.path={root / 'data'}", f"data.passages={root / 'passages'}", f"data.image_dir={root / 'images'}"]
    before = [f"run.init={tmp_path / 'flmr_wit'}", "data.regions=2", "train.epochs=1"]
    second = open_retriever(stage("flmr_okvqa", tmp_path, *data, *before))
    assert changed(first, second) == {"text", "fusion"}


# ---- noise, which the comparison of fusions wants of every family


def test_noise_is_on_image_rows_and_in_training_alone(tmp_path):
    model = tiny.retriever("flmr", tmp_path, variant="preflmr", visual_noise=0.5, frozen=["text", "vision"])
    model.config.mapping.dropout = 0.0
    batch = model.collate_queries(tiny.queries(tmp_path))
    quiet = model.encode_queries(batch).embeddings
    assert torch.equal(quiet, model.encode_queries(batch).embeddings)
    model.train()
    for part in model.fusion.modules():
        part.dropout = 0.0
    noisy = model.encode_queries(batch)
    kinds = torch.tensor([kind == "text" for kind in noisy.rows.kind])
    assert torch.equal(noisy.embeddings[:, kinds], quiet[:, kinds])
    with_images = noisy.mask & ~kinds
    assert (noisy.embeddings - quiet)[with_images].abs().amax(-1).min() > 1e-3


# ---- how documents are encoded


def mixed_lengths(count: int) -> list[Document]:
    return [Document(str(i), " ".join(["fish"] * (1 + (i * 37) % 40))) for i in range(count)]


def test_documents_are_padded_to_little_more_than_they_have(tmp_path):
    """The cause of the speed: what the trunk computes. Batches of one length, which is their own longest."""
    model, shapes = tiny.retriever("flmr", tmp_path), []
    model.config.eval.doc_maxlen = 48
    documents, forward = mixed_lengths(64), model.encode_documents
    model.encode_documents = lambda batch: shapes.append(batch["ids"].shape) or forward(batch)
    found = dict(encode_corpus(model, documents, 8))
    assert [*found] == [d.id for d in documents], "sorting by length changed the order"
    real = int(model.tokenize("document", [d.text for d in documents])[1].sum())
    computed = sum(batch * length for batch, length in shapes)
    assert len({length for _, length in shapes}) > 4
    assert real <= computed < 1.1 * real and computed < 64 * 48 / 1.5
    alone = model.encode_documents(model.collate_documents([documents[5]])).unpad()[0]
    assert torch.allclose(torch.from_numpy(found["5"]), alone, atol=1e-5)


def test_half_precision_is_the_default_on_cuda_alone(tmp_path, monkeypatch):
    model, documents, asked = tiny.retriever("flmr", tmp_path), mixed_lengths(4), []

    def vectors(precision: str) -> torch.Tensor:
        return torch.cat([torch.from_numpy(v) for _, v in encode_corpus(model, documents, 4, precision=precision)])

    full, half = vectors("fp32"), vectors("bf16")
    assert torch.equal(vectors("auto"), full)
    assert not torch.equal(half, full) and (half * full).sum(-1).min() > 0.99 and half.dtype == torch.float32
    assert (encoding_precision("auto", torch.device("cuda")), encoding_precision("bf16", torch.device("cuda"))) == (
        "fp16", "bf16")  # fmt: skip
    monkeypatch.setattr("core.device.autocast", lambda device, precision: asked.append(precision) or nullcontext())
    forward = model.encode_documents
    model.encode_documents = lambda batch: replace(forward(batch), embeddings=forward(batch).embeddings * torch.inf)
    with pytest.raises(UserError, match=r"leaves the range of fp16 .* index.precision: bf16"):
        vectors("fp16")
    assert asked == ["fp16"]


def test_the_benchmark_of_both_ways(tmp_path, monkeypatch, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{d.text}\n" for d in mixed_lengths(12)))
    words = ["--models", "tiny", "--texts", str(texts), "--passages", "12", "--batch_size", "4", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["x", *words, "--tokenizer", str(tiny.text_tower(tmp_path / "text"))])
    document_encoding.main()
    [computed, padded] = re.search(r"ours (\d+), padded (\d+)", out := capsys.readouterr().out).groups()
    assert int(padded) == 12 * 512 and int(computed) < 12 * 40 and "ratio" in out
