"""Makes our compressed index of one that colbert-ai wrote, without encoding anything again.

Centroids, buckets, codes and residuals are the same numbers in both (``index.codec`` has colbert-ai's bit order), so
they are copied chunk by chunk; the inverted lists are written anew by our writer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.files import read_json, sha256, write_json
from core.progress import progress
from index import plaid, plaid_build
from index.colbert_ai import ColbertAIIndex, is_colbert_ai
from index.manifest import MANIFEST, SPEC, begin, exclusive, finished, read_manifest
from index.plaid_build import CENTROIDS, CODEBOOK, FIRST, FORMAT
from index.segment import Segment, SegmentWriter, hashes, save_array
from index.stream import BLOCK_DOCS, BLOCK_ROWS, Known, check_id

ENCODER = "colbert-ai"
"""Key of the converted manifest's encoder: what colbert-ai noted about its checkpoint."""


def convert(source: str | Path, dest: str | Path, ids: str | Path | None = None) -> plaid.Index:
    """Write colbert-ai's index ``source`` as a PLAID index to the new folder ``dest``; returns it opened.

    ids: a file with one id per line, or a collection ``.tsv`` (id, tab, text), in the order of the passages; without
    it the passage numbers "0", "1", ... are the ids. Holds one chunk of colbert-ai in memory. A killed conversion
    goes on when it is called again with the same source and ids. A damaged source is a UserError that names the file.
    """
    source, dest = Path(source), Path(dest)
    theirs = ColbertAIIndex(source)
    codec, documents = theirs.codec, len(theirs)
    if ids is not None:
        _check_ids(Path(ids), documents)
    options = {"nbits": codec.nbits, "query_maxlen": theirs.query_maxlen}
    kept = ("checkpoint", "query_maxlen", "doc_maxlen", "dim", "similarity", "attend_to_mask_tokens")
    encoder = {"written_by": ENCODER, **{key: theirs.config.get(key) for key in kept}}
    names = ["metadata.json", "centroids.pt", "buckets.pt", *(f"doclens.{i}.json" for i in theirs.chunks)]
    spec = {"format": FORMAT, "dim": codec.dim, "encoder": encoder, **options}
    spec |= {"source": {name: sha256(source / name) for name in names}, "ids": None if ids is None else sha256(ids)}
    with exclusive(dest):
        if not _complete(dest, spec):
            begin(dest, spec)
            segment = _write(theirs, dest, ids)
            plaid_build.finish(dest, codec.dim, encoder, options, segment)
    return plaid.Index.open(dest)


def _complete(dest: Path, spec: dict) -> bool:
    """Whether this very conversion has been done before."""
    if not ((dest / MANIFEST).is_file() and (dest / SPEC).is_file()):
        return False
    found = read_json(dest / SPEC, "index spec")
    return all(found.get(key) == value for key, value in spec.items())


def _write(theirs: ColbertAIIndex, dest: Path, ids: str | Path | None) -> Segment:
    """Codebook, then the one segment."""
    codec = theirs.codec
    if not (dest / CODEBOOK).is_file():
        save_array(dest / CENTROIDS, theirs.load("centroids.pt").numpy())
        buckets = {"cutoffs": codec.cutoffs.tolist(), "weights": codec.weights.tolist()}
        write_json(dest / CODEBOOK, {"unit": True, **_distance(theirs), **buckets})
    segment = finished(dest / FIRST)
    if segment is None:
        writer = SegmentWriter(dest / FIRST, plaid_build.arrays(codec), "convert")
        names = (str(pid) for pid in range(len(theirs))) if ids is None else _lines(Path(ids))
        names = islice(names, writer.documents, None)  # the others are on disk
        for number, first in progress(list(_chunks(theirs)), "convert", unit="chunk"):
            _copy(theirs, number, first, writer, names)
        segment = plaid_build.complete(writer, codec)
    said = theirs.metadata.get("num_embeddings", segment.vectors)
    if segment.vectors != said:
        raise UserError(
            f"'{theirs.path / 'metadata.json'}' says {said} vectors, the chunks hold {segment.vectors}; that index is "
            "damaged, copy or build it again."
        )
    return segment


def convert_in_place(source: str | Path, ids: str | Path | None = None) -> plaid.Index:
    """``convert`` beside the source, then put it in its place; the original stays as ``<source>.colbert-ai``.

    A kill at any moment leaves the original under one of the two names; the same call then goes on.
    """
    source = Path(source)
    new, old = beside(source)
    if not source.exists() and old.is_dir() and (new / MANIFEST).is_file():
        os.rename(new, source)  # killed between the two renames
        return plaid.Index.open(source)
    if source.is_dir() and (source / MANIFEST).is_file() and old.is_dir():
        return plaid.Index.open(source)  # converted before
    check_source(source)
    if old.exists():
        raise UserError(f"'{old}', where the original would go, exists already; move it, or give --out.")
    convert(source, new, ids)
    os.rename(source, old)
    os.rename(new, source)
    return plaid.Index.open(source)


def beside(source: Path) -> tuple[Path, Path]:
    """Where the new index is built, and where the original goes."""
    return source.with_name(source.name + ".new"), source.with_name(source.name + ".colbert-ai")


def check_source(source: Path) -> None:
    """UserError unless colbert-ai wrote this folder and finished it."""
    if not source.is_dir():
        raise UserError(f"there is no folder '{source}'; give the index folder that colbert-ai wrote.")
    if (source / MANIFEST).is_file():
        format_ = read_manifest(source, FORMAT)["format"]
        raise UserError(f"'{source}' is an index of format {format_!r} already; there is nothing to convert.")
    if not is_colbert_ai(source):
        unfinished = (source / "plan.json").is_file() and not (source / "metadata.json").is_file()
        why = "its build did not end (no metadata.json)" if unfinished else "no metadata.json and centroids.pt"
        raise UserError(f"'{source}' holds no complete colbert-ai index: {why}.")


def _chunks(theirs: ColbertAIIndex) -> Iterator[tuple[int, int]]:
    """(number of the chunk, number of its first passage)."""
    first = 0
    for number in theirs.chunks:
        yield number, first
        first += len(theirs.lengths(number))


def _copy(theirs: ColbertAIIndex, number: int, first: int, writer: SegmentWriter, ids: Iterator[str]) -> None:
    """Append what ``writer`` lacks of one chunk, in blocks that depend on the chunk alone. ids: of what it lacks."""
    if writer.documents >= first + len(theirs.lengths(number)):
        return
    codes, residuals, lengths = theirs.chunk(number)
    edges = np.concatenate([[0], np.cumsum(lengths.numpy())])
    start = 0
    while start < len(lengths):
        stop = max(start + 1, int(np.searchsorted(edges, edges[start] + BLOCK_ROWS, "right")) - 1)
        stop = min(stop, start + BLOCK_DOCS)
        if first + start >= writer.documents:
            low, high = int(edges[start]), int(edges[stop])
            arrays = {"codes": codes[low:high].numpy(), "residuals": residuals[low:high].numpy()}
            writer.append(list(islice(ids, stop - start)), lengths[start:stop].numpy(), arrays)
        start = stop


def _distance(theirs: ColbertAIIndex) -> dict:
    """Mean squared distance of some vectors from their centroid, which later additions are compared with."""
    for number in theirs.chunks:
        codes, residuals, _ = theirs.chunk(number)
        if len(codes):
            some: Tensor = torch.arange(len(codes))[:: max(1, len(codes) >> 14)]
            rebuilt = theirs.codec.decompress(codes[some], residuals[some], normalise=False)
            away = rebuilt - theirs.codec.centroids[codes[some].long()]
            return {"sample": len(some), "distance": float(away.square().sum(1).mean())}
    raise UserError(f"'{theirs.path}' holds no vectors; there is nothing to convert.")


def _lines(file: Path) -> Iterator[str]:
    """The ids of a file: whole lines, or what stands before the first tab of a .tsv."""
    with open(file, encoding="utf-8", newline="\n") as handle:
        for line in handle:
            line = line.rstrip("\r\n")
            yield line.split("\t", 1)[0] if file.suffix == ".tsv" else line


def _check_ids(file: Path, documents: int) -> None:
    """One different, non-empty id per passage; looked at before anything is written."""
    if not file.is_file():
        raise UserError(f"there is no ids file '{file}'; give a file with one id per line, or a collection .tsv.")
    known, count = Known(), 0
    try:
        lines = _lines(file)
        while block := list(islice(lines, BLOCK_DOCS)):
            for offset, id_ in enumerate(block):
                check_id(id_, count + offset)
            if (twice := np.flatnonzero(known.add(hashes(block)))).size:
                where = count + int(twice[0])
                raise UserError(f"'{file}' has the id '{block[twice[0]]}' twice (again in line {where + 1}).")
            count += len(block)
    except UnicodeDecodeError as error:
        raise UserError(f"'{file}' is not UTF-8 text ({error.reason}); save it as UTF-8.") from None
    if count != documents:
        raise UserError(f"'{file}' has {count} ids, the index holds {documents} passages; give one id per passage.")
