"""The Slurm script with Slurm's commands pretended: two nodes train, their time is up, the job queues itself again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.test_training_distributed import DATA, setting, toy
from tests.test_training_nodes import free_port
from tests.toy import ToyDataset, ToyRetriever, ToyVisual
from training import checkpoint
from training.loop import fit

ROOT = Path(__file__).parents[1]

JOB = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from core import distributed
from tests.test_training_distributed import DATA, setting, toy
from tests.toy import ToyDataset, ToyVisual
from training.loop import fit
from training.objective import Contrastive

out, pause = Path(sys.argv[1]), float(sys.argv[2])

class Slow(Contrastive):
    def step(self, batch, encode):
        if pause:
            (out / "begun").touch()
            time.sleep(pause)
        return super().step(batch, encode)

distributed.init("cpu")
assert distributed.world() == 2
outcome = fit(toy(), ToyDataset(**DATA), setting(out / "run", 4, steps=7), ToyVisual(), objective=Slow())
distributed.close()
sys.exit(130 if outcome.stopped else 0)
"""

COMMANDS = {
    # One task per node, until all have ended; the worst status. What a node calls itself is the only thing added.
    "srun": """
        while [[ "$1" == --* ]]; do shift; done
        pids=()
        for node in 1 2; do
          "$1" "$2" "$3" --local_addr=127.0.0.1 "${@:4}" &
          pids+=($!); echo $! >>"$SLURM_HOME/tasks"
        done
        worst=0
        for pid in "${pids[@]}"; do wait "$pid" || worst=$?; done
        exit $worst""",
    "scancel": """
        echo "$*" >>"$SLURM_HOME/scancel"
        kill -TERM $(cat "$SLURM_HOME/tasks")""",
    "scontrol": """
        case "$1" in
          show) echo 127.0.0.1; echo other ;;
          requeue) echo "$2" >>"$SLURM_HOME/requeued" ;;
        esac""",
}


@pytest.fixture
def cluster(tmp_path):
    """A folder with a training script and the commands; gives a function that starts the job."""
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    (tmp_path / "train_retrieval.py").write_text(JOB)
    while not 20_000 <= (port := free_port()) < 40_000:
        pass
    env = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "SLURM_HOME": str(tmp_path), "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": str(port - 20_000), "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip
    started = []

    def submit(pause: float) -> subprocess.Popen:
        (tmp_path / "tasks").unlink(missing_ok=True)
        command = ["bash", str(ROOT / "scripts" / "slurm_train.sh"), str(tmp_path), str(pause)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=env, **options))
        return started[-1]

    yield submit
    for job in started:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def test_a_job_whose_time_is_up_saves_queues_itself_again_and_ends_as_if_nothing_had_been(cluster, tmp_path):
    job = cluster(pause=1.0)
    deadline = time.monotonic() + 200
    while not (tmp_path / "begun").exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)  # --signal=B: the batch script alone gets it
    said = job.communicate(timeout=200)[0]
    assert job.returncode == 0, said
    own = str(job_id(tmp_path))
    assert (tmp_path / "requeued").read_text().split() == [own], said
    assert (tmp_path / "scancel").read_text().split() == ["--signal=TERM", f"{own}.0"]
    (saved,) = checkpoint.steps(tmp_path / "run")
    assert 1 <= saved < 7, said

    job = cluster(pause=0.0)
    said = job.communicate(timeout=200)[0]
    assert job.returncode == 0, said
    assert (tmp_path / "requeued").read_text().split() == [own], "a job that is done is not queued again"
    one = toy()
    fit(one, ToyDataset(**DATA), setting(tmp_path / "one", 8, steps=7), ToyVisual())
    found = ToyRetriever.from_pretrained(checkpoint.folder(tmp_path / "run", 7)).state_dict()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(found[key], value, atol=2e-6, rtol=0, msg=key)


def test_a_job_that_fails_is_not_queued_again(cluster, tmp_path):
    (tmp_path / "train_retrieval.py").write_text("raise SystemExit(3)")
    job = cluster(pause=0.0)
    said = job.communicate(timeout=200)[0]
    assert job.returncode != 0 and not (tmp_path / "requeued").exists(), said


def job_id(folder: Path) -> int:
    return int((folder / "requeued").read_text().split()[0])
