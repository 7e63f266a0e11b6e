"""The curve compares like with like: one loss for both sides, each run once, one start."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import train_curve
from steps import plain, setting
from steps.arms import Ours

from models.towers.tokenizer import ColbertTokenizer
from training.batches import Collator, Order
from training.objective import Contrastive


@pytest.mark.parametrize(("case", "nways"), [("text", 1), ("text", 2), ("finetune", 1), ("finetune", 2)])
def test_both_sides_minimise_the_same_loss_on_a_batch(case, nways, tmp_path):
    arm = Ours(setting.Options(case, "tiny", str(tmp_path), batch=4, nways=nways))
    arm.features()
    if case == "text":  # as the start that TriviaWiki's runs have: questions are not filled with [MASK]
        own = arm.retriever.tokenizer
        arm.retriever.tokenizer = ColbertTokenizer(own.tokenizer, replace(own.conventions, expansion=False))
    order = Order(arm.made.dataset, "train", 4, nways, 0)
    batch = Collator(order, arm.retriever, arm.visual, None).collate(order.examples(0))
    with torch.no_grad():
        theirs = plain.loss(arm.retriever, train_curve.inputs(batch), False, arm.retriever.temperature())
        ours = Contrastive(gather=False, false_negatives="keep").step(batch, arm.retriever)["loss"]
    assert float(theirs) == pytest.approx(float(ours), rel=1e-4) and float(ours) > 0.1


def test_every_run_of_the_series_comes_once():
    args = train_curve.arguments().parse_args(["--batches", "8", "128", "--steps", "64", "--batch", "32"])
    jobs = train_curve.plan(args)
    assert len(jobs) == len(set(jobs)) == 3 * (2 + 1 + 2 + 2) + 1
    ours = {(j.batch, j.steps) for j in jobs if j.who == "ours"}
    assert ours == {(32, 64), (8, 256), (128, 16), (8, 64), (128, 64)}
    assert {j.nways for j in jobs if j.who == "plain"} == {1}


def test_what_was_measured_is_not_measured_again_and_is_plotted(tmp_path, capsys, monkeypatch):
    measured = []

    def measure(args, job):
        measured.append(job)
        return {**vars(job), "seconds": 1.0, "Success@1": 0.1, "Success@5": 0.2, "MRR@10": 0.05 * (1 + job.seed)}

    monkeypatch.setattr(train_curve, "measure", measure)
    flags = ["--home", str(tmp_path), "--batches", "8", "--plot", str(tmp_path / "curve.png")]
    train_curve.run([*flags, "--series", "compare"])
    assert len(measured) == 7
    train_curve.run([*flags, "--series", "compare", "negatives"])
    assert len(measured) == 10 and len(json.loads((tmp_path / "flagfacts.json").read_text())) == 10
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "| ours, 2 hard | 32 | 64 | 2,048 | 3 | 1 | .100 .100 .100 |" in capsys.readouterr().out
