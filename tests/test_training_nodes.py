"""Beyond one machine: two "nodes" of two processes each meet by torchrun's rendezvous and are one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import FULL
from tests.test_training_distributed import DATA, setting, toy
from tests.toy import ToyDataset, ToyRetriever, ToyVisual
from training import checkpoint
from training.loop import fit
from training.tracker import read

ROOT = Path(__file__).parents[1]

JOB = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from core import distributed
from tests.test_training_distributed import DATA, setting, toy
from tests.toy import ToyDataset, ToyVisual
from training.loop import fit
from training.objective import Contrastive

out, how = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])

class Dies(Contrastive):
    # One process of the second node is killed in its fifth step, once.
    calls = 0
    def step(self, batch, encode):
        self.calls += 1
        if how == "dies" and rank == 3 and self.calls == 5 and not (out / "died").exists():
            (out / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "waits":
            (out / "begun").touch()
            time.sleep(1)
        return super().step(batch, encode)

distributed.init("cpu")
(out / f"life-{rank}-{os.environ['GROUP_RANK']}-{os.getpid()}").write_text(str(distributed.world()))
config = setting(out / "run", 2, save_every=2 if how != "waits" else 1000, steps=7 if how != "waits" else 1000)
fit(toy(), ToyDataset(**DATA), config, ToyVisual(), objective=Dies())
distributed.close()
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(folder: Path, nodes: int, how: str) -> list[subprocess.Popen]:
    """torchrun of each node; how: "dies", "lives" or "waits" (long steps)."""
    job = folder / "job.py"
    job.write_text(JOB)
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc_per_node=2", "--max-restarts=1",
        "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--rdzv_id=test", "--local_addr=127.0.0.1",
        str(job), str(folder), how,
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Nodes may count a restart differently; with one store for all rounds they would read the last round's addresses.
    env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return [subprocess.Popen(command, cwd=ROOT, env=env, **options) for _ in range(nodes)]


def ends(nodes: list[subprocess.Popen]) -> list[str]:
    """Wait for all; what they said."""
    try:
        return [node.communicate(timeout=400)[0] for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)


@pytest.mark.parametrize("dies", [False, True] if FULL else [True])
def test_two_nodes_are_one_process_also_when_one_loses_a_process(tmp_path, dies):
    nodes = start(tmp_path, 2, "dies" if dies else "lives")
    said = ends(nodes)
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    lives = sorted(p.name.rsplit("-", 1)[0] for p in tmp_path.glob("life-*"))
    assert lives == sorted([f"life-{rank}-{rank // 2}" for rank in range(4)] * (1 + dies))
    assert all(p.read_text() == "4" for p in tmp_path.glob("life-*")) and (tmp_path / "died").exists() == dies
    one = toy()
    fit(one, ToyDataset(**DATA), setting(tmp_path / "one", 8, steps=7), ToyVisual())
    folder = checkpoint.folder(tmp_path / "run", 7)
    found = ToyRetriever.from_pretrained(folder).state_dict()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(found[key], value, atol=2e-6, rtol=0, msg=key)
    rows = [
        [(r["step"], r["loss"]) for r in read(out / "metrics.jsonl")] for out in (tmp_path / "one", tmp_path / "run")
    ]
    assert [step for step, _ in rows[1]] == list(range(1, 8)), "the steps after the checkpoint were taken again"
    assert [loss for _, loss in rows[1]] == pytest.approx([loss for _, loss in rows[0]], abs=1e-5)
    assert len(torch.load(folder / "loop.pt", weights_only=True)["rng"]) == 4


if FULL:  # the small suite signals processes that have no torchrun above them

    def test_a_signal_to_torchrun_leaves_a_checkpoint(tmp_path):
        """A scheduler signals torchrun and its processes at once, torchrun passes its own on: one orderly end."""
        (node,) = start(tmp_path, 1, "waits")
        deadline = time.monotonic() + 300
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        workers = [int(p.name.rsplit("-", 1)[1]) for p in tmp_path.glob("life-*")]
        assert len(workers) == 2
        for pid in (*workers, node.pid):
            os.kill(pid, signal.SIGTERM)
        said = ends([node])
        found = checkpoint.steps(tmp_path / "run")
        assert len(found) == 1 and 1 <= found[0] < 900, said
        assert node.returncode != 0, "a scheduler must see that the run is not finished"
