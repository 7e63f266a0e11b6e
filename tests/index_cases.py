"""Small corpora and helpers for the tests of the index room."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import index
from core.maxsim import maxsim
from core.tokens import TokenBatch
from index.stored import StoredIndex

ENCODER = {"family": "test", "weights": "abc", "config": {"rows": ["text"]}}
ROOT = Path(index.__file__).resolve().parents[1]


def modules() -> list[str]:
    """Every module of the room that exposes a class ``Index``."""
    names = sorted(p.stem for p in Path(index.__file__).parent.glob("*.py") if p.stem != "__init__")
    modules = {n: importlib.import_module(f"index.{n}") for n in names}
    # Adapters of other libraries are tested where those are installed (tests/interop).
    return [n for n, m in modules.items() if hasattr(m, "Index") and issubclass(m.Index, StoredIndex)]


def cls(name: str):
    return importlib.import_module(f"index.{name}").Index


def corpus(n: int, dim: int = 32, rows: tuple[int, int] = (3, 12), topics: int = 60, seed: int = 0, noise: float = 0.5):
    """n documents (id, [r, dim] float32 of length 1) whose vectors gather around topics."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((topics, dim))
    out = []
    for i in range(n):
        r = int(rng.integers(*rows))
        v = centres[rng.choice(rng.integers(0, topics, size=4), r)] + noise * rng.standard_normal((r, dim))
        out.append((f"doc-{i}", (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)))
    return out


def questions(docs, n: int, rows: int, seed: int = 1) -> TokenBatch:
    """n queries [n, rows, dim]: disturbed rows of random documents; the last rows of every second one are masked."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        pool = np.concatenate([docs[j][1] for j in rng.integers(0, len(docs), size=2)])
        v = pool[rng.integers(0, len(pool), size=rows)] + 0.1 * rng.standard_normal((rows, pool.shape[1]))
        out.append(v / np.linalg.norm(v, axis=1, keepdims=True))
    mask = torch.ones(n, rows, dtype=torch.bool)
    mask[::2, rows - rows // 3 :] = False
    return TokenBatch(torch.from_numpy(np.stack(out)).float(), mask)


def oracle(docs, queries: TokenBatch, dtype: str = "float16") -> torch.Tensor:
    """[B, N] float32 by core.maxsim, of the vectors as an index with this dtype stores them."""
    vectors = [torch.from_numpy(v.astype(dtype)).float() for _, v in docs]
    return maxsim(queries, TokenBatch.pad(vectors))


def overlap(a, b, k: int) -> float:
    return float(np.mean([len(set(x.ids[:k]) & set(y.ids[:k])) / k for x, y in zip(a, b)]))


def snapshot(path: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def run_killed(code: str, *args: object) -> None:
    """Run Python code in a process of its own that kills itself with SIGKILL; anything else is a failure."""
    prelude = f"import os, signal, sys, torch\ntorch.set_num_threads({torch.get_num_threads()})\n"
    prelude += "def die(*a, **k):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -9, done.stderr
