"""What an index takes: bytes per part of one that is there, and of one that is still to be built, with its build time.

The bytes of a future index are formulas of its file formats (``index.segment``, ``index.ivf``, ``index.plaid_build``);
its time is measured on a small sample here and now.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import UserError
from index.codec import NBITS, Codec, fit_buckets
from index.colbert_ai import is_colbert_ai
from index.kmeans import assign, centroids_for, kmeans
from index.plaid_build import ENCODE_ROWS, Coder, arrays, complete
from index.segment import SegmentWriter
from index.stream import BLOCK_DOCS, BLOCK_ROWS, blocks

NPY_HEADER = 128
ID_BYTES = 8
"""UTF-8 bytes of an id when nothing is known about the ids."""

PROBE_VECTORS = 20_000
LINE_BYTES = 86
"""A block of a file in segment.json: its size and its digest, as JSON."""


@dataclass
class Plan:
    """What is to be built. vectors_per_document may be a mean."""

    documents: int
    vectors_per_document: float
    dim: int
    format: str = "plaid"
    options: dict[str, Any] = field(default_factory=dict)
    id_bytes: float = ID_BYTES

    def __post_init__(self) -> None:
        for name in ("documents", "vectors_per_document", "dim"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)} is nothing to plan for; give 1 or more.")
        if self.format not in ("plaid", "exact"):
            raise UserError(f"an index of format '{self.format}' is written by another library; plan plaid or exact.")
        if self.nbits not in NBITS:
            raise UserError(f"nbits={self.nbits!r} is not offered; use one of {', '.join(map(str, NBITS))}.")

    @property
    def vectors(self) -> int:
        return round(self.documents * self.vectors_per_document)

    @property
    def nbits(self) -> int:
        return self.options.get("nbits", 2)

    @property
    def sample(self) -> int:
        return min(self.vectors, self.options.get("sample_vectors", 1 << 17))

    @property
    def centroids(self) -> int:
        held = min(1 << 14, self.sample // 20)
        return centroids_for(self.vectors, self.sample - held, self.options.get("max_centroids", 1 << 14))


def planned_bytes(plan: Plan) -> dict[str, int]:
    """Bytes on disk per part, named as ``parts`` names them."""
    n, v, k = plan.documents, plan.vectors, plan.centroids
    ids = n * (plan.id_bytes + 24) + 3 * NPY_HEADER + 8
    common = {"ids": round(ids), "offsets": 8 * (n + 1) + NPY_HEADER}
    steps = [v / BLOCK_ROWS, n / BLOCK_DOCS]
    if plan.format == "exact":
        size = 4 if plan.options.get("dtype") == "float32" else 2
        lines = 2 * int(np.ceil(max(steps)))
        return {"vectors": v * plan.dim * size, **common, "manifest": 1800 + LINE_BYTES * lines}
    # A document stands once in a list however many of its vectors are there; different vectors rarely share one.
    per_document = k * -np.expm1(plan.vectors_per_document * np.log1p(-1 / k)) if k > 1 else 1
    lines = 3 * int(np.ceil(v / ENCODE_ROWS))
    return {
        "codes": v * (2 if k <= 1 << 16 else 4),
        "residuals": v * -(-plan.dim * plan.nbits // 8),
        "lists": round(4 * n * per_document) + 8 * (k + 1) + NPY_HEADER,
        **common,
        "codebook": 2 * k * plan.dim + NPY_HEADER + 48 * 2**plan.nbits + 100,
        "manifest": 2800 + LINE_BYTES * lines,
    }


def building_bytes(plan: Plan) -> int:
    """Disk that is needed while it is built: the index, and for plaid the float16 vectors of its first stage."""
    spool = 0 if plan.format == "exact" else plan.vectors * plan.dim * 2 + plan.documents * (plan.id_bytes + 32)
    return round(sum(planned_bytes(plan).values()) + spool)


def peak_memory(plan: Plan, base: int) -> int:
    """Bytes of memory at the worst moment of the build, above what the process (``base``) takes anyway."""
    block = BLOCK_ROWS * plan.dim * (2 + 2 + 4)
    tables = 40 * plan.documents  # ids' hashes twice, their order, two offsets
    if plan.format == "exact":
        return base + block + tables
    # The sample as float16, float32 and in its order; the similarities of k-means; one stretch of the lists.
    fit = plan.sample * plan.dim * (2 + 4 + 4) + 3 * plan.centroids * plan.dim * 4 + (16 << 20)
    return base + max(block, fit, 32 << 20) + tables


def measure(plan: Plan, folder: str | Path | None = None, device: str = "cpu") -> dict[str, float]:
    """Seconds of each stage of the build, from a few seconds of the same work on PROBE_VECTORS random vectors.

    folder: on the disk that the index will be on (default: the temporary folder).
    """
    per = max(1, round(plan.vectors_per_document))
    documents = max(1, PROBE_VECTORS // per)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((documents * per, plan.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    half, share = rows.astype(np.float16), plan.vectors / len(rows)
    stream = [(f"{i:08d}", part) for i, part in enumerate(half.reshape(documents, per, plan.dim))]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".plan-") as place, torch.inference_mode():
        start = time.perf_counter()
        writer = SegmentWriter(Path(place) / "spool", {"vectors": ("float16", [plan.dim])})
        for block in blocks(stream, writer, plan.dim, "float16"):
            writer.append(block.ids, block.lengths, {"vectors": block.vectors})
        spool = writer.finish()
        found = {"write vectors": (time.perf_counter() - start) * share}
        if plan.format == "exact":
            return found
        codec = _codec(rows, plan)
        found["k-means"] = _kmeans_seconds(rows, plan, codec, device)
        coder = Coder(codec, device)
        coder.encode(half[:256])  # what is compiled at the first call is no part of the rate
        start = time.perf_counter()
        writer = SegmentWriter(Path(place) / "seg", arrays(codec))
        vectors = spool.read("vectors", 0, spool.vectors)
        writer.append(spool.ids(), spool.lengths, coder.encode(vectors))
        coded = time.perf_counter()
        complete(writer, codec)
        found["compress"] = (coded - start) * share
        found["lists and ids"] = (time.perf_counter() - coded) * share
    return found


def _codec(rows: np.ndarray, plan: Plan) -> Codec:
    """Centroids as many as the real index will have: random vectors, since only their number costs time."""
    generator = torch.Generator().manual_seed(0)
    centroids = torch.nn.functional.normalize(torch.randn(plan.centroids, plan.dim, generator=generator), dim=-1)
    some = torch.from_numpy(rows[:1024])
    return Codec(centroids, *fit_buckets(some - centroids[assign(some, centroids)], plan.nbits), unit=True)


def _kmeans_seconds(rows: np.ndarray, plan: Plan, codec: Codec, device: str) -> float:
    """One iteration on what the probe has, or on as many centroids as it can feed, scaled by points and centroids."""
    k = min(plan.centroids, len(rows) // 2)
    kmeans(rows[: 4 * 64], 64, seed=0, iterations=1, unit=True, device=device)  # warms up
    start = time.perf_counter()
    kmeans(rows, k, seed=0, iterations=1, unit=True, device=device)
    once = time.perf_counter() - start
    iterations = plan.options.get("iterations", 4)
    return once * iterations * (plan.sample / len(rows)) * (plan.centroids / k)


# -- of an index that is there -----------------------------------------------------------------------------------------

PARTS = {
    "vectors.bin": "vectors",
    "codes.bin": "codes",
    "residuals.bin": "residuals",
    "offsets.npy": "offsets",
    "ids.*": "ids",
    "ivf.*": "lists",
    "centroids.npy": "codebook",
    "codebook.json": "codebook",
    "deleted-*.npy": "deleted",
    "manifest.json": "manifest",
    "spec.json": "manifest",
    "segment.json": "manifest",
}
COLBERT_AI_PARTS = {
    "*.codes.pt": "codes",
    "*.residuals.pt": "residuals",
    "doclens.*.json": "offsets",
    "ivf.pid.pt": "lists",
    "*.pt": "codebook",
    "*.json": "manifest",
}


def parts(path: str | Path) -> dict[str, int]:
    """Bytes per part of an index on disk, by file names; what they do not tell (another library's files) is "other"."""
    names = COLBERT_AI_PARTS if is_colbert_ai(path) else PARTS
    out: dict[str, int] = {}
    for file in sorted(f for f in Path(path).rglob("*") if f.is_file()):
        part = next((part for pattern, part in names.items() if fnmatch(file.name, pattern)), "other")
        out[part] = out.get(part, 0) + file.stat().st_size
    return out


MANY_SEGMENTS = 8
"""Every segment has lists of its own, which a search opens one after another."""


def advice(stats: dict) -> list[str]:
    """What could be done about an index with these ``stats``, one sentence each."""
    out = []
    deleted, documents, segments = stats.get("deleted", 0), stats["documents"], stats.get("segments", 1)
    if deleted and deleted >= 0.1 * (documents + deleted):
        share = deleted / (documents + deleted)
        out.append(
            f"{deleted} deleted documents ({share:.0%}) still take space; open_index(path).compact() gives it back."
        )
    if segments > MANY_SEGMENTS:
        out.append(
            f"{segments} segments make every search open as many lists; open_index(path).compact() makes one of them."
        )
    if stats["format"] == "colbert_ai":
        out.append("it is read whole into memory; python -m runs.convert_index makes a memory-mapped index of it.")
    return out
