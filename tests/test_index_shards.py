"""Divided among devices or processes, an index answers as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from core.errors import UserError
from index import plaid
from index.plaid import Index
from index.shards import Alone, share
from tests.index_cases import ENCODER, ROOT, corpus, questions

DOCS = corpus(900, rows=(1, 14), topics=150)
DOCS[5] = ("doc-5", np.zeros((0, 32), np.float32))
DOCS[899] = ("doc-899", np.zeros((0, 32), np.float32))
QUERIES = questions(DOCS, 5, 20)
WAYS = (
    {"effort": "fast", "n_probe": 1, "n_candidates": 40},
    {"effort": "balanced"},
    {"effort": "exhaustive"},
    {"n_probe": 1, "n_candidates": 30, "threshold": 0.9},
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "i"
    built = Index.build(path, DOCS[:500], dim=32, encoder=ENCODER, nbits=4, max_centroids=128)
    built.add(DOCS[500:])
    built.delete(["doc-7", "doc-501"])
    return path


def answers(index) -> list:
    allowed = set(index.ids()[3:600:2])
    found = [index.search(QUERIES, 30, **way) for way in WAYS] + [index.search(QUERIES, 30, allowed, **WAYS[0])]
    return [[(list(r.ids), list(r.scores)) for r in rankings] for rankings in found]


def test_shares_are_all_documents_once(path):
    index = Index.open(path)
    whole = Alone().stretches(index.bases, index.segments)
    for of in (1, 2, 3, 7):
        shares = [share(whole, n, of) for n in range(of)]
        found = [base + i for one in shares for base, first, last, _ in one for i in range(first, last)]
        assert sorted(found) == list(range(900))
        sizes = [sum(int(s.offsets[b] - s.offsets[a]) for _, a, b, s in one) for one in shares]
        assert max(sizes) - min(sizes) < 60


def test_several_devices_answer_as_one(path, monkeypatch):
    one = Index.open(path)
    monkeypatch.setattr("index.plaid_search.compiled", lambda: False)
    monkeypatch.setattr(plaid, "devices", lambda device: [device] * 3)
    three = Index.open(path)
    assert len(three._searcher.codecs) == 3 and len(three._searcher.parts) == 6
    for a, b in zip(answers(one), answers(three)):
        for (ids, scores), (other_ids, other_scores) in zip(a, b):
            assert set(ids) == set(other_ids) and np.allclose(scores, other_scores, atol=1e-4)


def test_what_does_not_fit_on_the_device_is_read_from_the_file(path, monkeypatch):
    from index import plain

    index = Index.open(path)
    wanted = answers(index)
    monkeypatch.setattr("index.plaid_search.compiled", lambda: False)
    for room, held in ((1 << 30, ["codes", "residuals"]), (20_000, ["codes"]), (0, [])):
        monkeypatch.setattr(plain, "free_bytes", lambda device, room=room: room)
        monkeypatch.setattr(plain.PlainPart, "_on_host", lambda self: False)
        opened = Index.open(path)
        found = answers(opened)
        assert sorted(opened._searcher.parts[0]._held) == held
        assert [[set(ids) for ids, _ in a] for a in found] == [[set(ids) for ids, _ in a] for a in wanted]


RANKS = """
import json, sys
import torch
torch.set_num_threads(1)
from core import distributed
from index.plaid import Index
from index.shards import Ranks
from tests.test_index_shards import answers
distributed.init("cpu")
index = Index.open(sys.argv[1], group=Ranks())
found = answers(index)
held = sum(part.last - part.first for part in index._searcher.parts)
with open(f"{sys.argv[2]}/{distributed.rank()}.json", "w") as handle:  # their prints would mix
    json.dump({"rank": distributed.rank(), "held": held, "answers": found}, handle)
distributed.close()
"""


def test_processes_answer_as_one(path, tmp_path):
    """torchrun with gloo: every rank holds a stretch, and every rank gets the whole answer."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(script), str(path), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert sorted(r["rank"] for r in reports) == [0, 1]
    assert sum(r["held"] for r in reports) == 900 and min(r["held"] for r in reports) > 300
    wanted = json.loads(json.dumps(answers(Index.open(path))))
    assert reports[0]["answers"] == wanted and reports[1]["answers"] == wanted


def test_a_device_list_is_all_gpus(path, monkeypatch):
    with pytest.raises(UserError, match="device 'cuda' is not available here"):
        Index.open(path, device="cuda").search(QUERIES, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [d.index for d in plaid.devices(torch.device("cuda"))] == [0, 1, 2, 3]
    assert plaid.devices(torch.device("cuda:2")) == [torch.device("cuda:2")]
    assert plaid.devices(torch.device("cpu")) == [torch.device("cpu")]
