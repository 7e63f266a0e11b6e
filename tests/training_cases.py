"""What the tests of training share: a quick run, a validation, a run that is stopped in its middle."""

import os
import signal

import numpy as np
import pytest
import torch

from core.config import check
from tests.toy import ToyDataset
from training import checkpoint
from training.config import Config


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
