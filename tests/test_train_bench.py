"""The training benchmark's opponent is the published step, and its small run says everything it promises."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import train_bench
from steps import cost, largest, plain, race, setting
from steps.arms import Plain

from core.errors import UserError
from models import artifacts, originals
from models.keys.mire import to_theirs
from tests.golden_case import Case, cases
from tests.golden_runners.common import parse_loss

MIRE = [path for path in cases() if Case(path).system == "mire"]
NOT_A_STEP = {"doc_images"}
"""Documents with pictures: no recipe trains on them, the plain step leaves them out."""


@pytest.mark.parametrize("path", MIRE, ids=lambda p: p.name)
def test_the_plain_step_has_the_golden_losses_and_gradients(path):
    case = Case(path)
    retriever = originals.load_original(next((path / "checkpoint").glob("*.pth")), root=path / "base")
    released = originals.RELEASED["mire"]
    for name in [n for n in case.expected if n.endswith(".loss")]:
        batch, phase, options, mode, _ = parse_loss(name)
        if options & NOT_A_STEP:
            continue
        stage = originals.training_stage(
            released, originals.metadata(path / "checkpoint"), phase == "pretraining", mode == "train"
        )
        retriever.freeze(["vision", "text", "linear"] if "frozen" in options else ["vision"])
        retriever.train(mode == "train")
        retriever.zero_grad()
        found = plain.loss(
            retriever, inputs(case, batch, retriever), phase == "pretraining", stage.temperature, "no_ib" not in options
        )
        case.tensor(name, found, "loss")
        stem = name.removesuffix(".loss")
        if stem in case.grads:
            found.backward()
            theirs = {
                to_theirs(artifacts.portable_name(retriever, n), released.prefixes): p.grad
                for n, p in retriever.named_parameters()
            }
            case.gradients(stem, theirs)
    assert not case.wrong, "\n".join(case.wrong)
    assert sum(key.startswith("tensor:") for key in case.compared) >= 5
    assert any(key.startswith("gradient:") for key in case.compared)
    assert case.mutate() >= len(case.compared)


def inputs(case: Case, batch: str, retriever) -> plain.Inputs:
    """A golden batch: what the originals' collator made."""
    ids = case.inputs[f"{batch}.T_d_ids"]
    queries = case.inputs[f"{batch}.T_q_ids"]
    return plain.Inputs(
        query_ids=queries,
        query_mask=case.inputs[f"{batch}.T_q_masks"],
        document_ids=ids,
        document_mask=case.inputs[f"{batch}.T_d_masks"],
        document_keep=retriever.tokenizer.keep(ids, True),
        pixels=case.inputs[f"{batch}.I_q"],
        nways=len(ids) // len(queries),
    )


def test_the_plain_tokenizer_makes_the_golden_ids():
    compared = 0
    for path in MIRE:
        case = Case(path)
        retriever = originals.load_original(next((path / "checkpoint").glob("*.pth")), root=path / "base")
        words = retriever.tokenizer
        made = plain.Tokenizer(words.tokenizer, words.query_marker_id, words.doc_marker_id)
        ids, mask, keep = made.documents(case.texts["docs"], 384, to_longest=True)
        assert torch.equal(ids, case.inputs["docs.ids"]) and torch.equal(mask, case.inputs["docs.mask"])
        assert torch.equal(keep, case.expected["docs.keepmask"])
        wide, _, kept = made.documents(case.texts["docs"], 60, to_longest=False)
        assert (
            wide.shape[1] == 60 and torch.equal(kept[:, : keep.shape[1]], keep) and not kept[:, keep.shape[1] :].any()
        )
        ids, mask = made.queries(case.texts["eval_queries"], 64)
        assert torch.equal(ids, case.inputs["eval.query_ids"]) and bool(mask.all())
        compared += 1
    assert compared


def test_the_small_run_gives_every_ratio(tmp_path, capsys):
    train_bench.run(["--smoke", f"--home={tmp_path}", f"--json={tmp_path / 'out.json'}"])
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report["ratios"]) == {
        "finetune_vs_plain", "finetune_vs_plain_cached", "pretrain_vs_plain", "pretrain_vs_plain_cached",
    }  # fmt: skip
    assert all(value > 0 for value in report["ratios"].values()) and report["ceiling"]["fp32"] > 0
    for case, arms in {"finetune": 3, "pretrain": 3, "text": 1}.items():
        found = report["cases"][case]
        assert len(found["arms"]) == len(found["losses"]) == arms
        for one in found["arms"].values():
            assert one["samples_per_s"] > 0 and 0 < one["mfu"] < 1 and one["peak_gb"] > 0
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in report["ratios"])


def test_steps_that_differ_are_not_compared():
    race.check_losses({"plain": 4.0, "cached": 4.001, "ours": 4.05})
    with pytest.raises(UserError, match=r"'cached' computes the loss 4\.10000"):
        race.check_losses({"plain": 4.0, "cached": 4.1})
    with pytest.raises(UserError, match="not the same step"):
        race.check_losses({"ours": 4.0, "sentence-transformers": float("nan")})


def test_a_ratio_is_the_median_over_turns():
    turns = {"turns_s": [[8, 8, 90], [30, 30], [5]]}, {"turns_s": [[2, 2, 2], [3, 3], [5]]}
    assert race.ratio(*turns) == 4  # 4, 10, 1


@pytest.mark.parametrize("most", [16, 17, 100, 1000, 16_384, 99_999])
def test_the_largest_batch_is_found_to_one_part_in_sixteen(most):
    tried = []
    found = largest.search(lambda batch: tried.append(batch) or batch <= most, 16, largest.MOST)
    assert min(most, largest.MOST) * 15 / 16 - 1 <= found <= most and len(tried) < 20
    with pytest.raises(UserError, match="not even a batch of 16"):
        largest.search(lambda batch: False, 16, 100)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cases", "finetune,nothing"], "there is no such case"),
        (["--peers", "nobody"], "there is no such peer"),
        (["--batch", "1"], "--batch 1: it must be 2 or more"),
        (["--largest"], "give --device cuda"),
    ],
)
def test_wrong_values_stop_before_anything_is_built(flags, says):
    with pytest.raises(UserError, match=says):
        train_bench.check(train_bench.arguments().parse_args(flags))


@pytest.mark.parametrize("case", ["finetune", "pretrain"])
def test_the_count_of_flops_is_torchs_own_where_nothing_is_padded(case, tmp_path):
    """Every passage and question of equal length: what is counted by hand is what the plain step does."""
    arm = Plain(setting.Options(case, "tiny", str(tmp_path), batch=4))
    arm.prepare(1, 1)
    words = " ".join(f"w{i}" for i in range(30))
    examples = [replace(e, positive=replace(e.positive, text=words)) for e in arm.batches(0, 1)[0]]
    tokens = arm._tokens(examples)
    width = int(tokens[3][1].sum(1).max())
    tokens = (*tokens[:3], tuple(t[:, :width] for t in tokens[3]))
    # Torch's counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        arm._loss(tokens).backward()
    ours = cost.step(arm.retriever, "plain", case, [tokens[2][0].shape[1]] * 4, [width] * 4)
    # torch counts the dense backward products of MaxSim, and the hard negatives' term, which is none here.
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.1)
