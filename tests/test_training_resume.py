"""A run that was stopped goes on exactly; checkpoints are whole, found again and kept as asked."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.errors import UserError
from tests.toy import ToyConfig, ToyDataset, ToyRetriever, ToyVisual
from tests.training_cases import StopAfter, loop_state, quick, same_weights, settings, validate  # noqa: F401 (a fixture)
from training import checkpoint
from training.loop import fit
from training.meter import UNREPEATABLE
from training.same_run import check_same_run
from training.tracker import read

# ---- resume


@pytest.mark.parametrize("more", [
    {},
    {"accumulation": 2, "nways": 3, "schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1},
    {"num_workers": 2, "eval_every": 2, "save_every": 3, "precision": "bf16"},
])  # fmt: skip
def test_ten_steps_equal_five_resumed_and_five(tmp_path, more):
    """Bit for bit, with dropout, over an epoch's end (40 examples: 10 batches, 5 steps with accumulation)."""
    data = {"size": 30, "negatives": 2, "image_every": 2}
    whole, parts = ToyRetriever(), ToyRetriever()
    fit(whole, ToyDataset(**data), settings(tmp_path / "a", **more), ToyVisual(), validate=validate)
    # Stopped by SIGTERM in the middle of an epoch: 4 examples are read for the early check, 4 per micro-batch.
    size = 4 * more.get("accumulation", 1)
    config = settings(tmp_path / "b", **{**more, "num_workers": 0})
    half = fit(parts, StopAfter(4 + 4 * size + 1, **data), config, ToyVisual(), validate=validate)
    assert (half.step, half.stopped) == (5, True)
    assert not same_weights(whole, parts)
    again = ToyRetriever(seed=99)
    done = fit(again, ToyDataset(**data), settings(tmp_path / "b", **more), ToyVisual(), validate=validate)
    assert (done.step, done.stopped) == (10, False)
    assert same_weights(whole, again)
    a, b = loop_state(tmp_path / "a"), loop_state(tmp_path / "b")
    assert str(a["optimizer"]) == str(b["optimizer"])
    assert all(
        torch.equal(a["optimizer"]["state"][k]["exp_avg_sq"], s["exp_avg_sq"])
        for k, s in b["optimizer"]["state"].items()
    )
    assert str(a["rng"]) == str(b["rng"]) and a["position"] == b["position"] and a["best"] == b["best"]
    lines = [read(tmp_path / run / "metrics.jsonl") for run in "ab"]
    lines = [[{k: v for k, v in row.items() if k not in UNREPEATABLE} for row in rows] for rows in lines]
    assert lines[0] == lines[1] and [r["step"] for r in lines[1] if "loss" in r] == list(range(1, 11))


def test_validation_changes_nothing(tmp_path):
    one, other = ToyRetriever(), ToyRetriever()
    fit(one, ToyDataset(), settings(tmp_path / "a", eval_every=1), validate=validate)
    fit(other, ToyDataset(), settings(tmp_path / "b"))
    assert same_weights(one, other)


def test_a_finished_run_can_be_lengthened(tmp_path):
    long, parts = ToyRetriever(), ToyRetriever()
    fit(long, ToyDataset(), settings(tmp_path / "a", steps=8))
    fit(parts, ToyDataset(), settings(tmp_path / "b", steps=3))
    assert fit(ToyRetriever(), ToyDataset(), settings(tmp_path / "b", steps=3)).step == 3
    fit(parts, ToyDataset(), settings(tmp_path / "b", steps=8))
    assert same_weights(long, parts)


@pytest.mark.parametrize("more,word", [({"batch_size": 2}, "batch_size: 4, now 2"), ({"seed": 1}, "seed"),
                                       ({"resume": False}, "resume")])  # fmt: skip
def test_a_run_that_cannot_go_on_says_why(tmp_path, more, word):
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=2))
    with pytest.raises(UserError, match=word):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=4, **more))


def test_other_frozen_parts_are_refused_and_another_rate_is_said(tmp_path, capsys):
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=2))
    with pytest.raises(UserError, match="other parameters"):
        fit(ToyRetriever(ToyConfig(frozen=["trunk"])), ToyDataset(), settings(tmp_path, steps=4))
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=4, lr=0.02))
    assert "train.lr is now 0.02" in capsys.readouterr().err


BASE = {
    "model": {"name": "mire", "num_heads": 12, "train": {"rows": ["text"]}},
    "data": {"name": "toy", "limit": None},
    "run": {"out": "here", "init": None},
}


@pytest.mark.parametrize(("change", "line"), [
    ({"model": {**BASE["model"], "num_heads": 3}}, "model.num_heads: 12 there, 3 now"),
    ({"model": {**BASE["model"], "train": {"rows": ["global"]}}}, r"model.train.rows: \['text'\] there"),
    ({"data": {**BASE["data"], "limit": 10}}, "data.limit: null there, 10 now"),
    ({"run": {"out": "here", "init": "phase_a"}}, "run.init: null there, 'phase_a' now"),
])  # fmt: skip
def test_a_run_of_another_model_or_other_data_does_not_go_on(tmp_path, monkeypatch, change, line):
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=2), provenance={"config": BASE})
    config, other = settings(tmp_path, steps=4), {"config": {**BASE, **change}}
    monkeypatch.setattr(checkpoint, "restore_weights", lambda *a: pytest.fail("weights were loaded first"))
    for attempt in (
        lambda: check_same_run(tmp_path, config, other),
        lambda: fit(ToyRetriever(ToyConfig(hidden=6)), ToyDataset(), config, provenance=other),
    ):
        with pytest.raises(UserError, match=line) as error:
            attempt()
        assert "run.out" in str(error.value) and "run.init" in str(error.value)
        assert "train.out" not in str(error.value)


def test_the_same_run_goes_on_wherever_it_is_and_with_defaults_written_out(tmp_path):
    config = settings(tmp_path, steps=2)
    check_same_run(tmp_path, config, {"config": BASE})  # nothing there yet
    fit(ToyRetriever(), ToyDataset(), config, provenance={"config": BASE})
    moved = {**BASE, "run": {"out": "there"}, "data": {"name": "toy"}}
    longer = settings(tmp_path, steps=4)
    check_same_run(tmp_path, longer, {"config": moved})
    check_same_run(tmp_path, longer, None)
    assert fit(ToyRetriever(), ToyDataset(), longer, provenance={"config": moved}).step == 4
    with pytest.raises(UserError, match="batch_size"):
        check_same_run(tmp_path, settings(tmp_path, batch_size=2), {"config": BASE})
    with pytest.raises(UserError, match=r"train\.resume is false; give another run\.out"):
        check_same_run(tmp_path, settings(tmp_path, resume=False), {"config": BASE})


# ---- checkpoints

KILL = """
import os, signal, sys
from core.config import check
from tests.toy import ToyDataset, ToyRetriever
from training.config import Config
from training.loop import fit

def die(): os.kill(os.getpid(), signal.SIGKILL)
real, save = os.replace, ToyRetriever.save_pretrained

def run(where, out):
    def replace(a, b):
        target = str(b)
        newest = os.path.isdir(out + "/checkpoints/step-0000004")
        if where == "rename" and target.endswith("step-0000004"): die()
        if where == "pointer" and target.endswith("latest.json") and newest: die()
        real(a, b)
        if where == "prune" and ".step-0000002.gone" in target: die()
    def save_half(self, path, provenance=None):
        save(self, path, provenance)
        if where == "weights" and provenance["step"] == 4:
            open(str(path) + "/model.safetensors", "r+b").truncate(100)
            die()
    os.replace, ToyRetriever.save_pretrained = replace, save_half
    config = {"out": out, "steps": 6, "batch_size": 4, "lr": 0.01, "device": "cpu", "save_every": 2, "keep": 1}
    fit(ToyRetriever(), ToyDataset(), check(Config, config, "train"))

for where in sys.argv[2:]:  # forked, because starting Python and torch takes longer than the run
    child = os.fork()
    if child == 0:
        run(where, sys.argv[1] + "/" + where)
        os._exit(0)
    print(where, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
KILLED = {"weights": 2, "rename": 2, "pointer": 4, "prune": 4}
"""where the process dies while step 4 is written -> the step that must be found"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder, root = tmp_path_factory.mktemp("killed"), Path(__file__).parents[1]
    command = [sys.executable, "-c", KILL, str(folder), *KILLED]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{where} {-signal.SIGKILL}" for where in KILLED], done.stderr
    return folder


@pytest.mark.parametrize("where", KILLED)
def test_sigkill_while_writing_leaves_a_usable_checkpoint(tmp_path, killed, where):
    out = killed / where
    path, state = checkpoint.load_latest(out)
    assert state["step"] == KILLED[where] and path == checkpoint.folder(out, KILLED[where])
    assert [p for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]  # the kill did come in the middle
    resumed, whole = ToyRetriever(seed=5), ToyRetriever()
    fit(resumed, ToyDataset(), settings(out, steps=6, save_every=2, keep=1))
    fit(whole, ToyDataset(), settings(tmp_path, steps=6))
    assert same_weights(resumed, whole)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["latest.json", "step-0000006"]


def test_a_damaged_newest_falls_back_with_a_message(tmp_path, capsys):
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=4, save_every=2))
    with open(checkpoint.folder(tmp_path, 4) / "model.safetensors", "r+b") as handle:
        handle.seek(200)
        handle.write(b"\x55\x55\x55\x55")
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 2
    assert "model.safetensors has changed" in capsys.readouterr().err
    done = fit(ToyRetriever(seed=3), ToyDataset(), settings(tmp_path, steps=5, keep=1, save_every=1))
    assert done.step == 5 and checkpoint.steps(tmp_path) == [5]
    (checkpoint.folder(tmp_path, 5) / "loop.pt").unlink()
    with pytest.raises(UserError, match="every checkpoint"):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=6))


def test_the_best_and_the_newest_are_kept_and_carry_provenance(tmp_path):
    values = iter([0.0, 3.0, 9.0, 5.0, 1.0, 2.0])
    config = settings(tmp_path, steps=5, eval_every=1, keep=2, metric="MRR@10")
    done = fit(
        ToyRetriever(), ToyDataset(), config, validate=lambda r: {"other": 0.0, "MRR@10": next(values)},
        provenance={"data": "toy"},
    )  # fmt: skip
    assert done.best == {"step": 2, "metric": "MRR@10", "value": 9.0}
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    folder = tmp_path / "checkpoints"
    assert json.loads((folder / "best.json").read_text())["folder"] == "step-0000002"
    assert json.loads((folder / "latest.json").read_text())["folder"] == "step-0000005"
    facts = json.loads((folder / "step-0000002" / "provenance.json").read_text())
    assert facts["data"] == "toy" and facts["metrics"]["MRR@10"] == 9.0 and facts["train"]["lr"] == 0.01
    assert ToyRetriever.from_pretrained(done.checkpoint).stage == "eval"


def test_an_unknown_metric_fails_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match=r"train.metric is 'MRR@10', validation gives loss_free"):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, metric="MRR@10"), validate=validate)
    assert checkpoint.steps(tmp_path) == []
