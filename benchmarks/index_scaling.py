"""Cost curves of the compressed index: bytes, build time and search time as the corpus grows.

  python benchmarks/index_scaling.py --docs 10000 50000 300000 --json scaling.json

Documents are those of benchmarks/index_vectors.py; beyond their number they come again with noise, so that no two are
equal (the table says how many are real). docs/scaling.md extrapolates from this table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import index_vectors

from core import cli
from core.tokens import TokenBatch
from index.plaid import Index


def stream(vectors: np.ndarray, lengths: np.ndarray, docs: int, noise: float) -> Iterator[tuple[str, np.ndarray]]:
    rng, starts = np.random.default_rng(0), np.concatenate([[0], np.cumsum(lengths)])
    for i in range(docs):
        d = i % len(lengths)
        rows = vectors[starts[d] : starts[d + 1]]
        if i >= len(lengths):
            rows = rows + noise / rows.shape[1] ** 0.5 * rng.standard_normal(rows.shape, dtype=np.float32)
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        yield f"d{i}", rows


def median_ms(index: Index, queries: torch.Tensor, batch: int, **effort) -> float:
    """Per query, over calls of ``batch`` queries."""
    times = []
    for first in range(0, len(queries) - batch + 1, batch):
        part = queries[first : first + batch]
        start = time.perf_counter()
        index.search(TokenBatch(part, torch.ones(part.shape[:2], dtype=torch.bool)), 100, **effort)
        times.append((time.perf_counter() - start) / batch * 1e3)
    return round(float(np.median(times)), 2)


def measure(docs: int, vectors: np.ndarray, lengths: np.ndarray, queries: torch.Tensor, args) -> dict:
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        start = time.perf_counter()
        made = stream(vectors, lengths, docs, args.noise)
        shape = {"dim": vectors.shape[1], "nbits": args.nbits, "device": args.device}
        index = Index.build(folder / "i", made, encoder={}, total=docs, **shape)
        seconds, stats = time.perf_counter() - start, index.stats()
        result = {
            "docs": docs,
            "real": min(docs, len(lengths)),
            "vectors": stats["vectors"],
            "centroids": stats["centroids"],
            "build_s": round(seconds, 1),
            "us_per_vector": round(seconds / stats["vectors"] * 1e6, 2),
            "bytes_per_vector": stats["bytes_per_vector"],
        }
        for effort in ("fast", "balanced"):
            median_ms(index, queries, 64, effort=effort)  # compiles, and brings the files into memory
            result |= {f"{effort}_ms_{batch}": median_ms(index, queries, batch, effort=effort) for batch in (1, 64)}
        return result
    finally:
        shutil.rmtree(folder)


def run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, nargs="+", default=[10_000, 50_000, 300_000])
    parser.add_argument("--queries", type=int, default=192)
    parser.add_argument("--vectors", type=Path, default=index_vectors.OUT)
    parser.add_argument("--synthetic", action="store_true", help="seeded vectors, for a machine without network")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nbits", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.3, help="length of what is added to a vector that comes again")
    parser.add_argument("--folder", type=Path, help="where the indexes are built (default: the temporary folder)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.synthetic:
        vectors, lengths, queries = index_vectors.synthetic(min(args.docs[0], 20_000), args.queries)
    else:
        real = int(index_vectors.read_json(args.vectors / "vectors.json")["documents"])
        vectors, lengths, queries = index_vectors.load(min(real, max(args.docs)), args.queries, args.vectors)
    results = []
    for docs in args.docs:
        results.append(measure(docs, vectors, lengths, torch.from_numpy(np.asarray(queries)).float(), args))
        print("  ".join(f"{k} {v}" for k, v in results[-1].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    cli.main(run)
