"""Building a PLAID index (Santhanam et al. 2022b) in stages, each of which is complete on disk before the next.

1. spool/            the stream as float16 chunks, so that it is read only once
2. codebook.json     centroids (k-means on a sample) and buckets (quantiles of held-out residuals)
3. chunk-*           centroid numbers and packed residuals, one chunk per spooled chunk
4. ivf.*.npy         centroid -> documents
5. manifest.json     complete; then the spool is removed
A killed build goes on at the first thing that is missing and ends with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from core.errors import UserError
from core.files import read_json, write_json
from core.progress import progress
from index.chunks import (
    MANIFEST,
    Chunks,
    ChunkWriter,
    begin,
    check_positive,
    chunk_files,
    commit,
    file_facts,
    load_array,
    save_array,
)
from index.codec import NBITS, Codec, fit_buckets
from index.ivf import invert
from index.kmeans import assign, centroids_for, kmeans

CODEBOOK = "codebook.json"
SPOOL = "spool"
UNIT_TOLERANCE = 2e-3  # float16 rounding moves a norm of 1 by at most 5e-4
HELDOUT = 50_000
FORMAT = "plaid"


def build(
    path: Path,
    stream: Iterable[tuple[str, np.ndarray | None]],
    *,
    dim: int,
    encoder: dict,
    total: int | None,
    nbits: int,
    seed: int,
    max_centroids: int,
    sample_vectors: int,
    iterations: int,
    chunk_docs: int,
    device: str,
) -> None:
    """See ``index.plaid.Index.build``."""
    if nbits not in NBITS:
        raise UserError(f"nbits={nbits!r} is not offered; use one of {', '.join(map(str, NBITS))}.")
    numbers = {"dim": dim, "sample_vectors": sample_vectors, "iterations": iterations, "chunk_docs": chunk_docs}
    check_positive(**numbers, max_centroids=max_centroids)
    if (path / MANIFEST).is_file():
        shutil.rmtree(path / SPOOL, ignore_errors=True)  # the process died between the manifest and this
    options = {
        "nbits": nbits,
        "seed": seed,
        "max_centroids": max_centroids,
        "sample_vectors": sample_vectors,
        "iterations": iterations,
        "chunk_docs": chunk_docs,
    }
    begin(path, {"format": FORMAT, "dim": dim, "encoder": encoder, **options})
    watched = progress(stream, "vectors", total, unit="doc")
    spool = ChunkWriter(path / SPOOL, dim, "float16", chunk_docs).extend(watched)
    with torch.inference_mode():
        if not (path / CODEBOOK).is_file():
            _fit(path, spool, options, device)
        codec = read_codec(path).to(device)
        for number in progress(range(Chunks(path).count, spool.count), "residuals", unit="chunk"):
            _encode(path, spool, number, codec)
    _invert(path, len(codec.centroids))
    _finish(path, dim, encoder, options)
    shutil.rmtree(path / SPOOL)


def _fit(path: Path, spool: Chunks, options: dict, device: str) -> None:
    sample, unit = _sample(spool, options["sample_vectors"], options["seed"])
    if not len(sample):
        raise UserError(f"none of the {len(spool)} documents for '{path}' has a vector; check the encoder.")
    sample = torch.from_numpy(sample).to(device).float()
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(options["seed"]))
    held = min(HELDOUT, len(sample) // 20)
    # A handful of vectors leaves nothing to hold out; the buckets then see the vectors of k-means.
    heldout, train = (sample[order[:held]], sample[order[held:]]) if held else (sample, sample)
    k = centroids_for(int(spool.offsets[-1]), len(train), options["max_centroids"])
    centroids = kmeans(train, k, seed=options["seed"], iterations=options["iterations"], unit=unit)
    centroids = centroids.half().float()  # what is stored is what every later stage uses
    residuals = heldout - centroids[assign(heldout, centroids)]
    cutoffs, weights = fit_buckets(residuals, options["nbits"])
    save_array(path / "centroids.npy", centroids.half().cpu().numpy())
    write_json(
        path / CODEBOOK,
        {
            "unit": unit,
            "sample": len(sample),
            "avg_residual": float(residuals.abs().mean()),
            "cutoffs": cutoffs.tolist(),
            "weights": weights.tolist(),
        },
    )


def _sample(spool: Chunks, size: int, seed: int) -> tuple[np.ndarray, bool]:
    """At most ``size`` vectors, one at random from each of as many equal stretches, and whether all have length 1."""
    rows = int(spool.offsets[-1])
    size = min(size, rows)
    shift = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    # Stretches make the rows different and ascending without a permutation of all rows.
    edges = np.arange(size + 1) * rows // max(1, size)
    picked = edges[:-1] + (shift * np.diff(edges)).astype(np.int64)
    unit, parts = True, []
    for number in range(spool.count):
        first, last = spool.offsets[spool.starts[number]], spool.offsets[spool.starts[number + 1]]
        vectors = spool.array("vectors", number)
        here = picked[np.searchsorted(picked, first) : np.searchsorted(picked, last)] - first
        parts.append(vectors[here])
        norms = torch.from_numpy(np.array(vectors)).float().norm(dim=-1)
        unit = unit and bool(((norms - 1).abs() < UNIT_TOLERANCE).all())
    return np.concatenate(parts), unit


def _encode(path: Path, spool: Chunks, number: int, codec: Codec) -> None:
    documents = slice(spool.starts[number], spool.starts[number + 1])
    vectors = np.array(spool.array("vectors", number))
    codes, residuals = [], []
    for block in torch.from_numpy(vectors).split(65_536):
        rows = block.to(codec.centroids.device).float()
        codes.append(assign(rows, codec.centroids))
        residuals.append(codec.compress(rows, codes[-1]))
    kind = np.uint16 if len(codec.centroids) <= 1 << 16 else np.int32
    arrays = {"codes": torch.cat(codes).cpu().numpy().astype(kind), "residuals": torch.cat(residuals).numpy()}
    commit(path, number, spool.ids[documents], spool.lengths[documents].tolist(), arrays)


def _invert(path: Path, n_centroids: int) -> None:
    chunks = Chunks(path)

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(chunks.count):
            documents = np.arange(chunks.starts[number], chunks.starts[number + 1])
            yield chunks.array("codes", number), np.repeat(documents, chunks.lengths[documents])

    lists = invert(pairs, n_centroids)
    save_array(path / "ivf.positions.npy", lists.positions)
    save_array(path / "ivf.counts.npy", lists.counts)


def _finish(path: Path, dim: int, encoder: dict, options: dict) -> None:
    chunks = Chunks(path)
    single = ("centroids.npy", CODEBOOK, "ivf.positions.npy", "ivf.counts.npy")
    codec = read_codec(path)
    write_json(
        path / MANIFEST,
        {
            "format": FORMAT,
            "dim": dim,
            "documents": len(chunks),
            "vectors": int(chunks.offsets[-1]),
            "documents_without_vectors": int((chunks.lengths == 0).sum()),
            "chunks": chunks.count,
            "unit": codec.unit,
            "options": options,
            "centroids": len(codec.centroids),
            "encoder": encoder,
            "files": {**{name: file_facts(path / name) for name in single}, **chunk_files(chunks)},
        },
    )


def read_codec(path: Path) -> Codec:
    """The codec of an index folder, float32 on CPU."""
    facts = read_json(path / CODEBOOK, "index codebook")
    centroids = torch.from_numpy(load_array(path / "centroids.npy")).float()
    return Codec(centroids, torch.tensor(facts["cutoffs"]), torch.tensor(facts["weights"]), facts["unit"])
