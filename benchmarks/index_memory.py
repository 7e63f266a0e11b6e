"""Peak memory of building and searching an index, which must not grow with the corpus.

  python benchmarks/index_memory.py --docs 20000 200000
  python benchmarks/index_memory.py --docs 20000 200000 --kind exact --json memory.json

Every size is built in a process of its own from a stream of seeded random documents. Reported: the peak of resident
memory above what was resident after the imports (MB), the same less 64 bytes a document, and their growth from the
first size to the last; for the search, what 50 queries made resident of the index' files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from core import cli

PER_DOCUMENT = 64


def stream(docs: int, rows: int, dim: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Documents of ``rows`` unit vectors around 4,096 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((4096, dim), dtype=np.float32)
    for i in range(docs):
        vectors = centres[rng.integers(0, 4096, rows)] + 0.5 * rng.standard_normal((rows, dim), dtype=np.float32)
        yield f"document-{i}", vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory (Linux)."""
    key = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as handle:
        return next(int(line.split()[1]) * 1024 for line in handle if line.startswith(key))


def resident_files(folder: Path) -> int:
    """Bytes of the files below ``folder`` that are mapped and in memory of this process (Linux)."""
    total, inside = 0, False
    with open("/proc/self/smaps") as handle:
        for line in handle:
            fields = line.split()
            if "-" in fields[0] and len(fields) >= 5 and ":" not in fields[0]:
                inside = str(folder) in line
            elif inside and fields[0] == "Rss:":
                total += int(fields[1]) * 1024
    return total


def measure(kind: str, docs: int, rows: int, dim: int, folder: Path) -> dict:
    """Build and search in this process."""
    import importlib

    import torch

    from core.tokens import TokenBatch

    index = importlib.import_module(f"index.{kind}").Index
    warm = {"nbits": 4, "max_centroids": 64} if kind == "plaid" else {}
    index.build(folder / "warm", stream(200, rows, dim), dim=dim, encoder={}, **warm)  # imports and compiles
    before, start = resident(), time.perf_counter()
    options = {"nbits": 4} if kind == "plaid" else {}
    path = folder / "index"
    index.build(path, stream(docs, rows, dim), dim=dim, encoder={}, total=docs, **options)
    seconds, peak = time.perf_counter() - start, resident(peak=True)
    opened = index.open(path)
    after_open = resident_files(path)
    rng = np.random.default_rng(1)
    queries = torch.from_numpy(rng.standard_normal((50, 32, dim), dtype=np.float32))
    batch = TokenBatch(torch.nn.functional.normalize(queries, dim=-1), torch.ones(50, 32, dtype=torch.bool))
    opened.search(batch, 10, effort="fast")
    return {
        "docs": docs,
        "vectors": docs * rows,
        "build_s": round(seconds, 1),
        "index_mb": round(opened.stats()["bytes"] / 1e6, 1),
        "peak_mb": round((peak - before) / 1e6, 1),
        "peak_less_64_bytes_a_document_mb": round((peak - before - PER_DOCUMENT * docs) / 1e6, 1),
        "mapped_after_open_mb": round(after_open / 1e6, 3),
        "mapped_after_search_mb": round(resident_files(path) / 1e6, 1),
    }


def run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--rows", type=int, default=32, help="vectors per document")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--kind", default="plaid", help="plaid or exact")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here:
        print(json.dumps(measure(args.kind, args.docs[0], args.rows, args.dim, args.here)))
        return
    results = []
    for docs in args.docs:
        folder = Path(tempfile.mkdtemp())
        try:
            shape = ["--docs", str(docs), "--rows", str(args.rows), "--dim", str(args.dim), "--kind", args.kind]
            command = [sys.executable, __file__, *shape, "--here", str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ}, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
        finally:
            shutil.rmtree(folder)
        print("  ".join(f"{k} {v}" for k, v in results[-1].items()), flush=True)
    key = "peak_less_64_bytes_a_document_mb"
    growth = results[-1][key] / results[0][key]
    print(f"peak grew {growth:.2f} times from {args.docs[0]} to {args.docs[-1]} documents")
    if args.json:
        args.json.write_text(json.dumps({"kind": args.kind, "results": results, "growth": growth}, indent=1))


if __name__ == "__main__":
    cli.main(run)
