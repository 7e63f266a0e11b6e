"""The loop: what trains, order, schedule, errors, config and trackers."""

import sys
from itertools import chain

import numpy as np
import pytest
import torch

from core.errors import UserError
from tests.toy import ToyConfig, ToyDataset, ToyRetriever
from tests.training_cases import quick, settings, validate  # noqa: F401 (a fixture)
from training import checkpoint
from training.batches import Collator, Order, stream
from training.config import CHANGEABLE, FIXED, Config
from training.loop import fit
from training.objective import Contrastive
from training.parallel import StepModule, train_mode
from training.schedule import lr_factor, param_groups, trainable
from training.tracker import Tracker, read

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
