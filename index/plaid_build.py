"""Building a PLAID index (Santhanam et al. 2022b) in stages, each of which is complete on disk before the next.

1. spool/                        the stream as float16, so that it is read only once
2. centroids.npy, codebook.json  k-means on a sample; buckets are quantiles of held-out residuals
3. seg-00000/                    centroid numbers and packed residuals, block by block; then the inverted lists
4. manifest.json                 complete; then the spool is removed
A killed build goes on at the first thing that is missing and ends with the same bytes. With a codebook from elsewhere
there is no spool: the stream is compressed as it comes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from core.errors import UserError
from core.files import read_json, write_json
from core.progress import progress
from index import ivf, threads
from index.codec import NBITS, Codec, fit_buckets
from index.common import compiled
from index.kmeans import Assigner, centroids_for, kmeans
from index.manifest import (
    MANIFEST,
    SPEC,
    VERSION,
    begin,
    check_positive,
    entry,
    exclusive,
    finished,
    read_manifest,
    write_manifest,
)
from index.segment import FACTS, JOURNAL, Segment, SegmentWriter, damaged, file_facts, load_array, save_array
from index.stream import blocks

CODEBOOK, CENTROIDS, SPOOL, FIRST = "codebook.json", "centroids.npy", "spool", "seg-00000"
UNIT_TOLERANCE = 2e-3  # float16 rounding moves a norm of 1 by at most 5e-4
HELDOUT = 1 << 14
FORMAT = "plaid"
ENCODE_ROWS = 1 << 16

Stream = Iterable[tuple[str, np.ndarray | None]]


def build(
    path: Path,
    stream: Stream,
    dim: int,
    encoder: dict,
    total: int | None,
    options: dict,
    codec_from: str | Path | None,
    device: str,
) -> None:
    """See ``index.plaid.Index.build``."""
    if options["nbits"] not in NBITS:
        raise UserError(f"nbits={options['nbits']!r} is not offered; use one of {', '.join(map(str, NBITS))}.")
    check_positive(dim=dim, **{k: v for k, v in options.items() if k not in ("nbits", "seed")})
    with exclusive(path):
        if (path / MANIFEST).is_file():
            shutil.rmtree(path / SPOOL, ignore_errors=True)  # the process died between the manifest and this
        source = None if codec_from is None else Path(codec_from)
        if source is not None:
            options = {**read_manifest(source, FORMAT)["options"]}
        digest = None if source is None else {n: file_facts(source / n)["sha256"] for n in (CENTROIDS, CODEBOOK)}
        begin(path, {"format": FORMAT, "dim": dim, "encoder": encoder, **options, "codec_from": digest})
        with torch.inference_mode():
            if source is not None:
                segment = _direct(path, stream, dim, total, source, device)
            else:
                segment = _staged(path, stream, dim, total, options, device)
        finish(path, dim, encoder, options, segment)
        shutil.rmtree(path / SPOOL, ignore_errors=True)


def committed(path: str | Path) -> int:
    """Documents of an unfinished build that need not be encoded again (0 when there is none)."""
    for place in (Path(path) / SPOOL, Path(path) / FIRST):
        if (segment := finished(place)) is not None:
            return len(segment)
        if (place / JOURNAL).is_file():
            return SegmentWriter.committed(place)
    return 0


def _staged(path: Path, stream: Stream, dim: int, total: int | None, options: dict, device: str) -> Segment:
    spool = finished(path / SPOOL)
    if spool is None:
        writer = SegmentWriter(path / SPOOL, {"vectors": ("float16", [dim])})
        for block in blocks(progress(stream, "vectors", total, unit="doc", memory=True), writer, dim, "float16"):
            writer.append(block.ids, block.lengths, {"vectors": block.vectors})
        spool = writer.finish()
    if not (path / CODEBOOK).is_file():
        _fit(path, spool, options, device)
    codec = read_codec(path)
    if (segment := finished(path / FIRST)) is not None:
        return segment
    writer = SegmentWriter(path / FIRST, arrays(codec))
    runs = [r for r in spool.blocks(ENCODE_ROWS) if r[1] > writer.documents]
    coder = Coder(codec, device)
    for first, last in progress(runs, "residuals", unit="block", memory=True):
        rows = spool.read("vectors", int(spool.offsets[first]), int(spool.offsets[last]))
        writer.append(spool.ids(first, last), spool.lengths[first:last], coder.encode(rows))
    return complete(writer, codec)


def _direct(path: Path, stream: Stream, dim: int, total: int | None, source: Path, device: str) -> Segment:
    for name in (CENTROIDS, CODEBOOK):
        shutil.copyfile(source / name, path / name)
    codec = read_codec(path)
    if codec.dim != dim:
        raise UserError(f"the codec of '{source}' has {codec.dim} dimensions, not {dim}; take another, or none.")
    if (segment := finished(path / FIRST)) is not None:
        return segment
    writer, coder = SegmentWriter(path / FIRST, arrays(codec)), Coder(codec, device)
    for block in blocks(progress(stream, "vectors", total, unit="doc", memory=True), writer, dim, "float16"):
        writer.append(block.ids, block.lengths, coder.encode(block.vectors))
    return complete(writer, codec)


def arrays(codec: Codec) -> dict[str, tuple[str, list[int]]]:
    """The arrays of a compressed segment."""
    kind = "uint16" if len(codec.centroids) <= 1 << 16 else "int32"
    return {"codes": (kind, []), "residuals": ("uint8", [-(-codec.dim * codec.nbits // 8)])}


class Coder:
    """Vectors to centroid numbers and packed residuals."""

    def __init__(self, codec: Codec, device: str | torch.device) -> None:
        self.codec, self.assigner = codec, Assigner(codec.centroids, device)
        self.device = torch.device(device)

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """vectors [n, D] -> {"codes": [n], "residuals": [n, bytes]}; what one vector gives depends on it alone."""
        rows = np.ascontiguousarray(vectors, np.float32)
        codes = self.assigner(rows)
        return {"codes": codes, "residuals": compress(self.codec, rows, codes)}


def compress(codec: Codec, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """rows [n, D] float32 with their centroid numbers -> packed residuals [n, bytes] uint8."""
    if not compiled():
        return codec.compress(torch.from_numpy(rows), torch.from_numpy(codes.astype(np.int64))).numpy()
    from index import kernels

    out = np.empty((len(rows), -(-codec.dim * codec.nbits // 8)), np.uint8)
    centroids, cutoffs = codec.centroids.numpy(), codec.cutoffs.numpy()
    threads.run(
        lambda part: kernels.compress(rows, centroids, codes, cutoffs, codec.nbits, part.start, part.stop, out),
        threads.pieces(len(rows), 1024),
    )
    return out


def complete(writer: SegmentWriter, codec: Codec) -> Segment:
    """Finish a segment with its inverted lists."""
    return writer.finish(ivf.write(writer, len(codec.centroids)))


def _fit(path: Path, spool: Segment, options: dict, device: str) -> None:
    sample, unit = _sample(spool, options["sample_vectors"], options["seed"])
    if not len(sample):
        raise UserError(f"none of the {len(spool)} documents for '{path}' has a vector; check the encoder.")
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(options["seed"])).numpy()
    held = min(HELDOUT, len(sample) // 20)
    sample = sample[order].astype(np.float32)
    # A handful of vectors leaves nothing to hold out; the buckets then see the vectors of k-means.
    heldout, train = (sample[:held], sample[held:]) if held else (sample, sample)
    k = centroids_for(spool.vectors, len(train), options["max_centroids"])
    found = kmeans(train, k, seed=options["seed"], iterations=options["iterations"], unit=unit, device=device)
    centroids = found.half().float()  # what is stored is what every later stage uses
    residuals = (
        torch.from_numpy(heldout) - centroids[torch.from_numpy(Assigner(centroids, device)(heldout).astype(np.int64))]
    )
    cutoffs, weights = fit_buckets(residuals, options["nbits"])
    save_array(path / CENTROIDS, centroids.half().numpy())
    write_json(
        path / CODEBOOK,
        {
            "unit": unit,
            "sample": len(sample),
            "distance": float(residuals.square().sum(1).mean()),
            "cutoffs": cutoffs.tolist(),
            "weights": weights.tolist(),
        },
    )


def _sample(spool: Segment, size: int, seed: int) -> tuple[np.ndarray, bool]:
    """At most ``size`` vectors, one at random from each of as many equal stretches, and whether all have length 1."""
    rows = spool.vectors
    size = min(size, rows)
    shift = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    # Stretches make the rows different and ascending without a permutation of all rows.
    edges = np.arange(size + 1) * rows // max(1, size)
    picked = edges[:-1] + (shift * np.diff(edges)).astype(np.int64)
    unit, parts = True, [np.empty((0, spool.facts["arrays"]["vectors"]["shape"][0]), np.float16)]
    for start in range(0, rows, ENCODE_ROWS):
        stop = min(start + ENCODE_ROWS, rows)
        vectors = spool.read("vectors", start, stop)
        parts.append(vectors[picked[np.searchsorted(picked, start) : np.searchsorted(picked, stop)] - start])
        norms = torch.from_numpy(vectors).float().norm(dim=-1)
        unit = unit and bool(((norms - 1).abs() < UNIT_TOLERANCE).all())
    return np.concatenate(parts), unit


def finish(path: Path, dim: int, encoder: dict, options: dict, segment: Segment) -> None:
    codec = read_codec(path)
    write_manifest(
        path,
        {
            "format": FORMAT,
            "version": VERSION,
            "generation": 0,
            "dim": dim,
            "documents": len(segment),
            "vectors": segment.vectors,
            "documents_without_vectors": segment.facts["documents_without_vectors"],
            "segments": [entry(segment)],
            "last_segment": 0,
            "deleted": None,
            "unit": codec.unit,
            "options": options,
            "centroids": len(codec.centroids),
            "encoder": encoder,
            "files": {name: file_facts(path / name) for name in (SPEC, CENTROIDS, CODEBOOK)},
        },
    )


def read_codec(path: Path) -> Codec:
    """The codec of an index folder, float32 on CPU."""
    facts = read_json(path / CODEBOOK, "index codebook")
    centroids = load_array(path / CENTROIDS)
    if centroids.ndim != 2 or not centroids.size or not np.isfinite(centroids).all():
        raise damaged(path / CENTROIDS, "it holds no centroids")
    try:
        cutoffs, weights = (torch.tensor(facts[name], dtype=torch.float32) for name in ("cutoffs", "weights"))
        if (
            weights.ndim != 1
            or cutoffs.shape != (len(weights) - 1,)
            or not torch.cat([cutoffs, weights]).isfinite().all()
        ):
            raise ValueError("cutoffs and weights do not fit")
        return Codec(torch.from_numpy(centroids).float(), cutoffs, weights, bool(facts["unit"]))
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path / CODEBOOK, error) from None


__all__ = ["FACTS", "Coder", "arrays", "build", "committed", "complete", "read_codec"]
