"""Hands the vectors of any index to other systems: LanceDB, Qdrant, or plain JSON lines.

What a compressed index hands over are its decompressed vectors, so MaxSim there ranks as its exhaustive search does.
Documents without vectors are left out, since no such system can store them; they can never be found anyway.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from core.errors import UserError
from core.progress import progress
from index.manifest import exclusive

TABLE = "documents"
"""Name of the LanceDB table and of the Qdrant collection; LanceDB's columns are ``id`` and ``vectors``."""

BATCH_ROWS = 1 << 15
"""Vectors handed over at once: 17 MB at 128 dimensions."""

Documents = list[tuple[str, np.ndarray]]


class Source(Protocol):
    dim: int

    def __len__(self) -> int: ...
    def vectors(self) -> Iterator[tuple[str, np.ndarray]]: ...


def export(index: Source, to: str, out: str | Path) -> int:
    """Write every document of ``index`` to the new folder ``out`` -> how many.

    to: "jsonl" (documents.jsonl, one {"id", "vectors": [[...]]} a line), "lancedb" (a database with the table
    "documents") or "qdrant" (the folder of Qdrant's local mode with the collection "documents"). It is filled as
    ``<out>.new`` and renamed when complete, so a killed export leaves no ``out``; the next one begins anew.
    """
    writers = {"jsonl": _jsonl, "lancedb": _lancedb, "qdrant": _qdrant}
    if to not in writers:
        raise UserError(f"cannot export to {to!r}; use {', '.join(map(repr, writers))}.")
    for package, name in {"lancedb": [("lancedb", "lancedb"), ("pyarrow", "pyarrow")],
                          "qdrant": [("qdrant_client", "qdrant-client")]}.get(to, []):  # fmt: skip
        _library(package, name)
    out = Path(out)
    if out.exists():
        raise UserError(f"'{out}' exists already; give a new folder, or delete it.")
    new = out.with_name(out.name + ".new")
    with exclusive(new):
        mark = new / ".export"
        if any(new.iterdir()) and not mark.is_file():
            raise UserError(f"'{new}' is in the way and holds no unfinished export; move it away.")
        mark.touch()
        for left in new.iterdir():
            if left == mark:
                continue
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        written = writers[to](index, new)
        if not written:
            raise UserError("the index holds no document with vectors; there is nothing to export.")
        for file in new.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        os.rename(new, out)
    return written


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this export needs {package} ({error}); install it with: pip install {package}") from None


def _batches(index: Source) -> Iterator[Documents]:
    """Documents with vectors, of BATCH_ROWS vectors together, float32."""
    batch: Documents = []
    rows = 0
    for id_, vectors in progress(index.vectors(), "export", len(index), unit="doc"):
        if not len(vectors):
            continue
        if batch and rows + len(vectors) > BATCH_ROWS:
            yield batch
            batch, rows = [], 0
        batch.append((id_, np.ascontiguousarray(vectors, np.float32)))
        rows += len(vectors)
    if batch:
        yield batch


def _jsonl(index: Source, folder: Path) -> int:
    written = 0
    with open(folder / "documents.jsonl", "w", encoding="utf-8") as handle:
        for batch in _batches(index):
            for id_, vectors in batch:
                # str of float32 is the shortest text that reads back as the same float32.
                rows = ", ".join("[" + ", ".join(map(str, row)) + "]" for row in vectors)
                handle.write(f'{{"id": {json.dumps(id_, ensure_ascii=False)}, "vectors": [{rows}]}}\n')
            written += len(batch)
    return written


def _lancedb(index: Source, folder: Path) -> int:
    """LanceDB compares multivectors by cosine only, which is the dot product when the vectors have length 1."""
    lancedb, pyarrow = _library("lancedb", "lancedb"), _library("pyarrow", "pyarrow")
    row = pyarrow.list_(pyarrow.float32(), index.dim)
    schema = pyarrow.schema([("id", pyarrow.string()), ("vectors", pyarrow.list_(row))])
    written = 0

    def record_batches() -> Iterator[Any]:
        nonlocal written
        for batch in _batches(index):
            flat = pyarrow.array(np.concatenate([v for _, v in batch]).reshape(-1))
            edges = np.cumsum([0, *(len(v) for _, v in batch)], dtype=np.int32)
            rows = pyarrow.FixedSizeListArray.from_arrays(flat, index.dim)
            columns = [pyarrow.array([i for i, _ in batch]), pyarrow.ListArray.from_arrays(pyarrow.array(edges), rows)]
            yield pyarrow.RecordBatch.from_arrays(columns, schema=schema)
            written += len(batch)

    reader = pyarrow.RecordBatchReader.from_batches(schema, record_batches())
    lancedb.connect(str(folder)).create_table(TABLE, data=reader)
    return written


def _qdrant(index: Source, folder: Path) -> int:
    """Qdrant's ids are numbers, so a document's own id goes into the payload field "id"."""
    client_, models = _library("qdrant_client", "qdrant-client"), _library("qdrant_client.models", "qdrant-client")
    client = client_.QdrantClient(path=str(folder))
    try:
        multi = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        config = models.VectorParams(size=index.dim, distance=models.Distance.DOT, multivector_config=multi)
        client.create_collection(TABLE, vectors_config=config)
        written = 0
        for batch in _batches(index):
            points = models.Batch(
                ids=list(range(written, written + len(batch))),
                vectors=[v.tolist() for _, v in batch],
                payloads=[{"id": i} for i, _ in batch],
            )
            client.upsert(TABLE, points=points)
            written += len(batch)
    finally:
        client.close()
    return written
