"""Two processes of one group, started once per test module, because starting costs more than all their jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from core import distributed


def two_processes(jobs: Callable[[int, Path], None], folder: Path) -> Path:
    """Run ``jobs(rank, folder)``, a function of a module, in both; what they leave in ``folder`` is the result."""
    mp.spawn(_join, args=(jobs, folder), nprocs=2)
    return folder


def _join(rank: int, jobs: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        jobs(rank, folder)
    finally:
        distributed.close()
