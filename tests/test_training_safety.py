"""What may go wrong in a long run: numbers that are none, a full disk, kills at any moment."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from core.errors import UserError
from tests.conftest import FULL
from tests.toy import ToyDataset, ToyRetriever
from tests.training_cases import quick, same_weights, settings  # noqa: F401 (a fixture)
from training import checkpoint, parallel
from training.bad_steps import BadSteps
from training.batches import Order
from training.loop import fit
from training.objective import Contrastive
from training.tracker import Tracker, read

# ---- losses and gradients that are no numbers


class Breaks(Contrastive):
    """The loss (or only its gradient) is ``value`` in the given micro-batches, counted from 1."""

    def __init__(self, at, value=float("nan"), gradient=False):
        super().__init__()
        self.at, self.value, self.gradient, self.calls, self.updates = at, value, gradient, 0, 0

    def step(self, batch, encode):
        losses = super().step(batch, encode)
        self.calls += 1
        if self.calls in self.at:
            if self.gradient:
                losses["loss"].register_hook(lambda grad: grad * self.value)
            else:
                losses["loss"] = losses["loss"] * self.value
        return losses

    def after_step(self):
        self.updates += 1


@pytest.mark.parametrize("breaks", [{}, {"value": float("inf")}, {"gradient": True}])
def test_a_step_that_is_no_number_changes_nothing_and_is_written_down(tmp_path, breaks):
    hurt, whole = ToyRetriever(), ToyRetriever()
    objective = Breaks({4}, **breaks)
    done = fit(hurt, ToyDataset(), settings(tmp_path / "a", steps=4, schedule="linear"), objective=objective)
    assert (done.step, done.skipped, objective.updates, done.stopped) == (4, 1, 3, False)
    fit(whole, ToyDataset(), settings(tmp_path / "b", steps=4), objective=Breaks({4}, **breaks))
    assert not same_weights(hurt, whole)  # another schedule: the weights did move
    fit(three := ToyRetriever(), ToyDataset(), settings(tmp_path / "c", steps=3))
    assert same_weights(three, whole)
    rows = read(tmp_path / "a" / "metrics.jsonl")
    assert [row.get("skipped") for row in rows] == [None, None, None, 1]
    assert ("loss" in rows[3]) == ("gradient" in breaks) and "grad_norm" not in rows[3]
    written = json.loads((tmp_path / "a" / "bad_steps.jsonl").read_text())
    assert written["step"] == 4 and written["queries"] == [
        e.query.id for e in Order(ToyDataset(), "train", 4, seed=2024).examples(3)
    ]


def test_the_queries_of_all_micro_batches_are_named_in_a_later_epoch_too(tmp_path):
    """12 examples, 2 micro-batches of 2: step 5 is the second of epoch 1."""
    fit(
        ToyRetriever(),
        ToyDataset(12),
        settings(tmp_path, steps=6, batch_size=2, accumulation=2),
        objective=Breaks({10}),
    )
    order = Order(ToyDataset(12), "train", 2, seed=2024)
    order.set_epoch(1)
    wanted = [e.query.id for i in (2, 3) for e in order.examples(i)]
    assert json.loads((tmp_path / "bad_steps.jsonl").read_text())["queries"] == wanted


def test_several_in_a_row_end_the_run_also_across_a_resume(tmp_path):
    config = settings(tmp_path, save_every=1, max_bad_steps=2)
    retriever = ToyRetriever()
    with pytest.raises(UserError, match=r"step 6: the loss is nan.* as in the 1 before it\. Lower train\.lr.*is whole"):
        fit(retriever, ToyDataset(), config, objective=Breaks({3, 5, 6}))
    assert checkpoint.steps(tmp_path)[-1] == 5  # step 3 was followed by a good one, so it did not count
    assert all(p.isfinite().all() for p in retriever.parameters())
    with pytest.raises(UserError, match="step 6: the loss is nan"):
        fit(ToyRetriever(), ToyDataset(), config, objective=Breaks({1}))
    assert fit(ToyRetriever(), ToyDataset(), config).skipped == 2


# ---- a full disk


@pytest.fixture
def no_room(monkeypatch):
    """While the checkpoint of step ``at`` is written no file may exceed ``size`` bytes: the system itself refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    wanted: dict = {}
    real = checkpoint.save

    def save(out, step, *args):
        if step == wanted["at"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["size"], before[1]))
        try:
            return real(out, step, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(checkpoint, "save", save)
    return wanted


@pytest.mark.parametrize("size", [1000, 12_000, 100])  # the weights, the optimizer, the first file
def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(tmp_path, no_room, size):
    no_room |= {"at": 4, "size": size}
    message = r"step-0000004' could not be written \(.*GB are free.*last good one is '.*step-0000002'.*Make room"
    with pytest.raises(UserError, match=message):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, save_every=2, steps=6, keep=1))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest.json", "step-0000002"]
    assert checkpoint.load_latest(tmp_path)[1]["step"] == 2
    no_room["at"] = None
    again, whole = ToyRetriever(seed=3), ToyRetriever()
    fit(again, ToyDataset(), settings(tmp_path, save_every=2, steps=6, keep=1))
    fit(whole, ToyDataset(), settings(tmp_path / "whole", steps=6))
    assert same_weights(again, whole)


def test_a_first_checkpoint_without_room_says_that_there_is_none(tmp_path, no_room):
    no_room |= {"at": 2, "size": 100}
    with pytest.raises(UserError, match=r"could not be written.*there is none yet"):
        fit(ToyRetriever(), ToyDataset(), settings(tmp_path, save_every=2, steps=6))


def test_a_full_disk_tears_no_line_of_the_diaries_and_ends_no_run(tmp_path, capsys):
    """Of a line that did not fit nothing stays; later ones, when there is room again, follow whole ones."""
    track = Tracker(settings(tmp_path))
    track.log(1, loss=0.5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (track.path.stat().st_size + 20, before[1]))  # half a line
    try:
        track.log(2, loss=0.4)
        BadSteps(tmp_path, 3).bad(2, float("nan"), 1.0, lambda: ["q" * 300])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    track.log(3, loss=0.3)
    assert [row["step"] for row in read(track.path)] == [1, 3]
    said = capsys.readouterr().err
    assert "lacks a line of step 2" in said and "bad_steps.jsonl' could not be written" in said and "qqq" in said


# ---- signals


def test_one_sigterm_passed_on_twice_is_one_and_a_later_one_is_meant(monkeypatch):
    """A scheduler signals torchrun and its processes, and torchrun signals them too."""
    asked, clock = [], [100.0]
    monkeypatch.setattr(parallel.time, "monotonic", lambda: clock[0])
    stopped = []
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs this behind "&"
    try:
        with parallel.on_signal(lambda: asked.append(1)):
            for wait in (0, 1, 5, 20):
                clock[0] += wait
                os.kill(os.getpid(), signal.SIGTERM)
                assert len(asked) == 1 and len(stopped) == (wait == 20)
        with parallel.on_signal(lambda: asked.append(1)):
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)


# ---- faults of torch's own machinery


class Greedy(ToyDataset):
    """Whoever collates one of the last examples in a process of its own is killed, as for its memory."""

    here = os.getpid()

    def examples(self, split, epoch, seed):
        class Watched(list):
            def __getitem__(self, i):
                if os.getpid() != Greedy.here:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__getitem__(i)

        return Watched(super().examples(split, epoch, seed))


def test_a_killed_worker_is_one_sentence_and_the_run_goes_on(tmp_path):
    with pytest.raises(UserError, match=r"ahead was ended .*lower train\.num_workers \(now 2; 0 needs none"):
        fit(ToyRetriever(), Greedy(), settings(tmp_path, num_workers=2))
    assert fit(ToyRetriever(), Greedy(), settings(tmp_path, num_workers=0)).step == 10


def test_other_errors_stay_as_they_are(tmp_path):
    class Broken(ToyDataset):
        def examples(self, split, epoch, seed):
            raise RuntimeError("a fault of the data set")

    with pytest.raises(RuntimeError, match=r"^a fault of the data set"):
        fit(ToyRetriever(), Broken(), settings(tmp_path, compile=True))


# ---- kills at any moment

KILLS = """
import os, random, signal, sys
from pathlib import Path
import torch
import torch._dynamo  # an optimizer imports it: once here instead of once in every child
torch.set_num_threads(1)
from core.config import check
from tests.toy import ToyDataset, ToyRetriever, ToyVisual
from training import tracker
from training.config import Config
from training.loop import fit

tracker.plot = lambda rows, path: None

def count(die_at, log):
    # An event: a batch is read, weights are updated, a file is opened for writing, synced, renamed or removed.
    seen = [0]
    def watch(owner, name):
        # What is not synced survives a kill all the same, and syncing is slow.
        real = (lambda handle: None) if name == "fsync" else getattr(owner, name)
        def watched(*args, **kwargs):
            seen[0] += 1
            if seen[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(owner, name, watched)
    for owner, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "write"),
                        (torch, "save"), (torch.optim.AdamW, "step"), (ToyRetriever, "collate_queries"),
                        (ToyRetriever, "save_pretrained"), (ToyVisual, "fetch")):
        watch(owner, name)
    return seen

def validate(retriever):
    return {"size": float(sum(p.double().abs().sum() for p in retriever.parameters()))}

def run(out, die_at):
    seen = count(die_at, out)
    config = {"out": out, "steps": 7, "batch_size": 3, "lr": 0.01, "device": "cpu", "save_every": 2, "keep": 1,
              "eval_every": 3, "accumulation": 2, "schedule": "cosine"}
    data = ToyDataset(size=24, image_every=3)
    fit(ToyRetriever(seed=5), data, check(Config, config, "train"), ToyVisual(), validate=validate)
    return seen[0]

def child(out, die_at=None):
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            seen = run(out, die_at)
            os.write(write, str(seen).encode())
        finally:
            os._exit(0)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, os.read(read, 20).decode()

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
status, events = child(str(folder / "whole"))
print(events)
rng = random.Random(8)
for i in range(kills):
    # Twice in one run: somewhere in the whole of it, and again somewhere in what is left.
    first, second = rng.randint(1, int(events)), rng.randint(1, int(events) // 2)
    ends = [child(str(folder / str(i)), die_at)[0] for die_at in (first, second, None)]
    print(first, second, *ends)
"""


def test_runs_killed_at_random_moments_end_with_the_same_weights(tmp_path):
    kills = 20 if FULL else 6
    command = [sys.executable, "-c", KILLS, str(tmp_path), str(kills)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert int(lines[0]) > 80, done.stderr
    assert len(lines) == kills + 1
    last = checkpoint.folder(".", 7)
    whole = torch.load(tmp_path / "whole" / last / "loop.pt", weights_only=True)
    weights = (tmp_path / "whole" / last / "model.safetensors").read_bytes()
    for i, line in enumerate(lines[1:]):
        ends = line.split()[2:]
        assert ends[0] == "-9" and ends[1] in ("-9", "0") and ends[2] == "0", (line, done.stderr)
        out = tmp_path / str(i)
        assert (out / last / "model.safetensors").read_bytes() == weights, line
        state = torch.load(out / last / "loop.pt", weights_only=True)
        for key in ("position", "best", "optimizer", "counts"):
            assert str(state[key]) == str(whole[key]), (key, line)
        assert torch.equal(state["rng"][0]["torch"], whole["rng"][0]["torch"]), line
        rows = [r["step"] for r in read(out / "metrics.jsonl") if "loss" in r]
        assert rows == list(range(1, 8)), line
        assert not [p for p in (out / "checkpoints").iterdir() if p.name.startswith(".")], line


# ---- signals while batches are made ahead, and while a validation is due

GROUP = """
import os, subprocess, sys, time
import torch
torch.set_num_threads(1)
from core.config import check
from tests.toy import ToyDataset, ToyRetriever
from training import checkpoint, tracker
from training.config import Config
from training.loop import fit

tracker.plot = lambda rows, path: None
asked = []

class Signalled(ToyRetriever):
    def encode_queries(self, batch):
        asked.append(1)
        if len(asked) == 6:
            kill = ["kill", "-TERM", "--", str(-os.getpgid(0))]
            subprocess.run(kill, start_new_session=True, check=True)
            time.sleep(0.5)
        return super().encode_queries(batch)

config = {"out": sys.argv[1], "steps": 60, "batch_size": 4, "device": "cpu", "num_workers": 2}
done = fit(Signalled(), ToyDataset(size=400), check(Config, config, "train"))
print(done.stopped, checkpoint.steps(sys.argv[1]) == [done.step])
"""


def test_a_signal_to_the_whole_group_leaves_workers_for_the_checkpoint(tmp_path):
    """As torchrun, Slurm and a terminal send it. Workers that died of it would end the run before it has saved."""
    done = subprocess.run(
        [sys.executable, "-c", GROUP, str(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, start_new_session=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_signal_does_not_wait_for_a_validation_which_the_resumed_run_makes_up_for(tmp_path):
    def run(name, signalled):
        seen, model = [], ToyRetriever()
        config = settings(tmp_path / name, steps=6, eval_every=2, eval_first=False)

        def validate(retriever):
            seen.append(round(float(sum(p.double().abs().sum() for p in retriever.parameters())), 9))
            return {"m": float(len(seen))}

        class Last(Contrastive):
            def after_step(self):
                self.n = getattr(self, "n", 0) + 1
                if signalled and self.n == 3:  # travels at the end of step 4, after which a validation is due
                    os.kill(os.getpid(), signal.SIGTERM)

        outcome = fit(model, ToyDataset(), config, validate=validate, objective=Last())
        if signalled:
            assert outcome.stopped and outcome.step == 4 and len(seen) == 1
            model = ToyRetriever(seed=3)
            fit(model, ToyDataset(), config, validate=validate)
        rows = [row["step"] for row in read(tmp_path / name / "metrics.jsonl") if "valid/m" in row]
        assert rows == [2, 4, 6]
        return seen, model

    (whole, a), (parts, b) = run("whole", False), run("parts", True)
    assert whole == parts and same_weights(a, b)
