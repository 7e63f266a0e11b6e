"""The loop: exact resume, order, frozen parts, schedule, errors, files."""

import json
import os
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from core.config import check
from core.errors import UserError
from tests.toy import ToyConfig, ToyDataset, ToyRetriever, ToyVisual
from training import checkpoint
from training.batches import Collator, Order, stream
from training.config import CHANGEABLE, FIXED, Config
from training.loop import fit
from training.meter import UNREPEATABLE
from training.objective import Contrastive
from training.parallel import StepModule, train_mode
from training.same_run import check_same_run
from training.schedule import lr_factor, param_groups, trainable
from training.tracker import Tracker, read


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Toy tensors gain nothing from threads (which slow parallel tests down), and one test of the picture is enough."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("training.tracker.plot", lambda rows, path: None)
    yield
    torch.set_num_threads(before)


def settings(out, **more):
    base = {"out": str(out), "steps": 10, "batch_size": 4, "lr": 0.01, "device": "cpu"}
    return check(Config, {**base, **more}, "train")


def validate(retriever):
    """A number that rises with training; draws random numbers, as a careless validation might."""
    assert retriever.stage == "valid" and not retriever.training
    torch.rand(3)
    np.random.rand(2)
    return {"loss_free": float(sum(p.double().abs().sum() for p in retriever.parameters()))}


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def loop_state(out):
    return torch.load(checkpoint.folder(out, checkpoint.steps(out)[-1]) / "loop.pt", weights_only=True)


class StopAfter(ToyDataset):
    """Sends this process SIGTERM while the examples of one global batch are read."""

    def __init__(self, at, **kwargs):
        super().__init__(**kwargs)
        self.at, self.reads = at, 0

    def examples(self, split, epoch, seed):
        outer, items = self, super().examples(split, epoch, seed)

        class Watched(list):
            def __getitem__(self, i):
                outer.reads += 1
                if outer.reads == outer.at:
                    os.kill(os.getpid(), signal.SIGTERM)
                return super().__getitem__(i)

        return Watched(items)


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
        if where == "prune" and ".step-0000002.old" in target: die()
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


# ---- what trains


def test_frozen_parts_stay_as_they_are_and_in_eval_mode(tmp_path):
    retriever = ToyRetriever(ToyConfig(frozen=["trunk"], dropout=0.5))
    before = {k: v.clone() for k, v in retriever.state_dict().items()}
    seen = []
    forward = retriever.trunk.forward
    retriever.trunk.forward = lambda ids: (seen.append((retriever.trunk.drop.training, retriever.stage)), forward(ids))[
        1
    ]
    fit(retriever, ToyDataset(), settings(tmp_path, weight_decay=0.5, eval_every=2), validate=validate)
    after = retriever.state_dict()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"linear"}  # no image in the data, so the image part got no gradient and no decay
    assert set(seen) == {(False, "train")}
    assert all(p.grad is None for p in retriever.trunk.parameters())
    assert retriever.stage == "eval" and not retriever.training


def test_train_mode_keeps_dropout_where_something_learns():
    retriever = ToyRetriever(ToyConfig(frozen=["image"]))
    module = StepModule(retriever, Contrastive())
    module.eval()
    train_mode(module)
    assert retriever.trunk.drop.training and not retriever.image.training


def test_all_frozen_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing trains"):
        fit(ToyRetriever().requires_grad_(False), ToyDataset(), settings(tmp_path))


def test_lr_scale_groups_by_longest_prefix():
    retriever = ToyRetriever()
    config = settings("x", lr_scale={"trunk": 0.5, "trunk.words": 0.0, "image": 10}, weight_decay=0.1)
    groups = param_groups(trainable(retriever), config)
    of = {name: (g["scale"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert of["trunk.words.weight"] == (0.0, 0.1) and of["trunk.mix.0.bias"] == (0.5, 0.0)
    assert of["image.weight"] == (10, 0.1) and of["linear.weight"] == (1.0, 0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(retriever.parameters()))
    with pytest.raises(UserError, match="'tronk'"):
        param_groups(trainable(retriever), settings("x", lr_scale={"tronk": 2}))


def test_scaled_rate_zero_trains_nothing_there(tmp_path):
    retriever = ToyRetriever()
    before = retriever.trunk.words.weight.clone()
    fit(retriever, ToyDataset(), settings(tmp_path, lr_scale={"trunk.words": 0}))
    assert torch.equal(before, retriever.trunk.words.weight)


def test_schedule_values():
    assert [lr_factor(s, 10, 4) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [lr_factor(s, 6, 2, "linear") for s in range(7)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert lr_factor(5, 8, 2, "cosine") == pytest.approx(0.5)
    assert lr_factor(2, 8, 2, "cosine") == 1.0 and lr_factor(8, 8, 2, "cosine") == pytest.approx(0.0)
    assert lr_factor(7, 8, 0, "constant") == 1.0


def test_the_logged_rate_follows_the_schedule(tmp_path):
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=6, warmup_steps=2, schedule="linear", log_every=2))
    rows = read(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["lr"]) for r in rows] == [(2, 0.01), (4, 0.0075), (6, 0.0025)]


def test_learning_learns(tmp_path):
    retriever = ToyRetriever()
    fit(retriever, ToyDataset(), settings(tmp_path, steps=40, batch_size=10, lr=0.03))
    losses = [r["loss"] for r in read(tmp_path / "metrics.jsonl")]
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_two_accumulated_batches_weigh_as_one_of_both(tmp_path):
    """Where the batch itself gives no negatives, accumulation is only a matter of memory."""
    common = {"nways": 3, "in_batch": False, "steps": 4}
    fit(ToyRetriever(ToyConfig(dropout=0.0)), ToyDataset(negatives=2), settings(tmp_path / "a", batch_size=8, **common))
    halves = settings(tmp_path / "b", batch_size=4, accumulation=2, **common)
    fit(ToyRetriever(ToyConfig(dropout=0.0)), ToyDataset(negatives=2), halves)
    one, two = ([(r["loss"], r["grad_norm"]) for r in read(tmp_path / run / "metrics.jsonl")] for run in "ab")
    assert np.array(one) == pytest.approx(np.array(two), rel=1e-4)


def test_clip_limits_the_step(tmp_path):
    config = settings(tmp_path / "a", steps=1, clip=1e-12)  # far below AdamW's eps, so the weights hardly move
    free = settings(tmp_path / "b", steps=1, clip=None)
    moved = []
    for c in (config, free):
        retriever, start = ToyRetriever(), ToyRetriever()
        fit(retriever, ToyDataset(), c)
        moved.append(float((retriever.linear.weight - start.linear.weight).detach().abs().max()))
    assert moved[0] < 1e-5 < 0.005 < moved[1]


def test_a_loss_that_is_not_a_number_names_step_and_remedy(tmp_path):
    class Breaks(Contrastive):
        calls = 0

        def step(self, batch, encode):
            losses = super().step(batch, encode)
            self.calls += 1
            return {**losses, "loss": losses["loss"] * (float("nan") if self.calls == 4 else 1.0)}

    retriever = ToyRetriever()
    with pytest.raises(UserError, match=r"step 4: the loss is nan.*train\.lr"):
        fit(retriever, ToyDataset(), settings(tmp_path, save_every=1, max_bad_steps=1), objective=Breaks())
    assert checkpoint.steps(tmp_path)[-1] == 3
    assert all(p.isfinite().all() for p in retriever.parameters())


def test_an_objective_may_have_parameters_and_a_step_after(tmp_path):
    class Scaled(Contrastive):
        def __init__(self):
            super().__init__()
            self.scale, self.register_steps = torch.nn.Parameter(torch.ones(())), 0
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def step(self, batch, encode):
            losses = super().step(batch, encode)
            return {**losses, "loss": losses["loss"] * self.scale}

        def after_step(self):
            self.count += 1

    whole, again = Scaled(), Scaled()
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path / "a", steps=6), objective=whole)
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path / "b", steps=3), objective=Scaled())
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path / "b", steps=6), objective=again)
    assert int(again.count) == 6 and whole.scale.item() != 1.0
    assert torch.equal(whole.scale, again.scale)


# ---- order


def test_each_epoch_has_its_own_order_and_every_example():
    order = Order(ToyDataset(40, negatives=2), "train", 8, 3, seed=1, rank=0, world=1)
    first = [order.rows(i) for i in range(len(order))]
    negatives = [e.negatives for e in order.examples(0)]
    order.set_epoch(1)
    second = [order.rows(i) for i in range(len(order))]
    assert first != second and negatives != [e.negatives for e in order.examples(0)]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(40))
    order.set_epoch(0)
    assert [order.rows(i) for i in range(len(order))] == first
    other = Order(ToyDataset(40, negatives=2), "train", 8, 3, seed=2, rank=0, world=1)
    assert [other.rows(i) for i in range(5)] != first


def test_ranks_share_one_global_batch():
    data = ToyDataset(43)
    one = Order(data, "train", 12, seed=1, rank=0, world=1)
    three = [Order(data, "train", 4, seed=1, rank=r, world=3) for r in range(3)]
    assert len(one) == len(three[0]) == 3
    for i in range(3):
        assert one.rows(i) == list(chain(*(o.rows(i) for o in three)))


def test_worker_processes_give_the_same_batches_and_plain_errors():
    order = Order(ToyDataset(24, negatives=1), "train", 4, 2, seed=1)
    collator = Collator(order, ToyRetriever())
    for a, b in zip(stream(collator, 1, 6), stream(collator, 1, 6, num_workers=2), strict=True):
        assert torch.equal(a.queries["ids"], b.queries["ids"]) and torch.equal(a.keys, b.keys)
    order.nways = 3
    with pytest.raises(UserError, match=r"^example 'q\d+' has 1 hard negatives, train.nways 3 wants 2"):
        list(stream(collator, 0, 2, num_workers=1))


def test_too_few_examples_or_negatives_are_named(tmp_path):
    with pytest.raises(UserError, match="has 3 examples"):
        fit(ToyRetriever(), ToyDataset(3), settings(tmp_path))
    with pytest.raises(UserError, match="10 micro-batches"):
        fit(ToyRetriever(), ToyDataset(40), settings(tmp_path, accumulation=11))
    with pytest.raises(UserError, match=r"example 'q\d+' has 1 hard negatives"):
        fit(ToyRetriever(), ToyDataset(negatives=1), settings(tmp_path, nways=4))


def test_epochs_count_full_batches(tmp_path):
    done = fit(ToyRetriever(), ToyDataset(19), settings(tmp_path, steps=None, epochs=3, accumulation=2))
    assert done.step == done.total == 6
    assert [r["epoch"] for r in read(tmp_path / "metrics.jsonl")] == [0, 0, 1, 1, 2, 2]


# ---- config and tracker


@pytest.mark.parametrize("more", [{"epochs": 1}, {"steps": None}, {"in_batch": False}, {"warmup_steps": 10},
                                  {"schedule": "cosin"}, {"lr": 0.0}, {"lr_scale": {"a": -1.0}}])  # fmt: skip
def test_contradictions_in_the_config_are_errors(more):
    with pytest.raises(UserError, match="train"):
        settings("x", **more)


def test_every_key_is_documented_and_sorted_into_one_list():
    assert all(field.description for field in Config.model_fields.values())
    assert set(Config.model_fields) >= CHANGEABLE | set(FIXED) and not CHANGEABLE & set(FIXED)


def test_the_picture_shows_every_number(tmp_path, monkeypatch):
    monkeypatch.undo()
    fit(ToyRetriever(), ToyDataset(), settings(tmp_path, steps=2), validate=validate)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_resume_drops_later_lines_and_a_torn_one(tmp_path):
    tracker = Tracker(settings(tmp_path))
    for step in range(1, 6):
        tracker.log(step, loss=1.0 / step)
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 6, "lo')
    tracker.resume(3)
    tracker.log(4, loss=9.0)
    assert [(r["step"], r["loss"]) for r in read(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 9.0),
    ]


@pytest.mark.parametrize("library", ["wandb", "tensorboard"])
def test_a_missing_tracker_library_is_one_sentence(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=f"pip install {library}"):
        Tracker(settings(tmp_path, trackers=[library]))


class FakeWandb:
    """Stands for the library: no key, and the service does not answer."""

    def __init__(self, key, fails):
        self.api = type("Api", (), {"api_key": key})
        self.fails, self.calls, self.logged = fails, [], []

    def init(self, mode, **options):
        self.calls.append((mode, options["id"]))
        if self.fails and mode != "offline":
            raise OSError("no network")
        return self

    def define_metric(self, *args, **kwargs): ...
    def log(self, row):
        self.logged.append(row)

    def finish(self): ...


@pytest.mark.parametrize(
    "key,fails,modes", [(None, False, ["offline"]), ("k", False, [None]), ("k", True, [None, "offline"])]
)
def test_wandb_never_stops_a_run(tmp_path, monkeypatch, key, fails, modes):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    fake = FakeWandb(key, fails)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = settings(tmp_path, steps=2, trackers=["wandb"])
    fit(ToyRetriever(), ToyDataset(), config)
    assert [mode for mode, _ in fake.calls] == modes and len(fake.logged) == 2
    Tracker(config)
    assert len({run for _, run in fake.calls}) == 1  # a resumed run goes on in the same curves
