"""Chunks on disk: packed arrays of consecutive documents, committed one by one, read through memory maps.

A chunk is ``chunk-00000.<array>.npy`` for every array (rows of all its documents one after another) and then
``chunk-00000.json`` with ids, lengths and digests; a chunk without that file does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from core.errors import UserError
from core.files import atomic_file, read_json, sha256, write_json

MANIFEST = "manifest.json"
SPEC = "spec.json"


def file_facts(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def save_array(path: Path, array: np.ndarray) -> None:
    with atomic_file(path) as handle:
        np.save(handle, array)


def load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mmap_mode)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"index file '{path}' is missing or damaged ({error}); build the index again.") from None


def commit(path: Path, number: int, ids: list[str], lengths: list[int], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one chunk, the file that makes it exist last."""
    files = {}
    for name, array in arrays.items():
        file = f"chunk-{number:05d}.{name}.npy"
        save_array(path / file, array)
        files[file] = file_facts(path / file)
    with atomic_file(path / f"chunk-{number:05d}.json", "w") as handle:
        json.dump({"ids": ids, "lengths": lengths, "files": files}, handle, ensure_ascii=False)


class Chunks:
    """Read side. ids: list of N strings; lengths [N] int64; offsets [N + 1] int64, the first row of each document."""

    def __init__(self, path: Path, count: int | None = None) -> None:
        """count: chunks that must be there; None takes those that are (an unfinished build)."""
        self.path = path
        self.ids: list[str] = []
        lengths: list[int] = []
        starts = [0]
        self.files: dict[str, dict] = {}
        number = 0
        while number < count if count is not None else (path / f"chunk-{number:05d}.json").is_file():
            meta = read_json(path / f"chunk-{number:05d}.json", "index chunk")
            self.ids += meta["ids"]
            lengths += meta["lengths"]
            self.files.update(meta["files"])
            starts.append(len(self.ids))
            number += 1
        self.count = number
        self.lengths = np.array(lengths, dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.starts = np.array(starts)  # first document of each chunk, and N
        self._maps: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def array(self, name: str, number: int) -> np.ndarray:
        """The memory-mapped array of one chunk."""
        if (name, number) not in self._maps:
            self._maps[name, number] = load_array(self.path / f"chunk-{number:05d}.{name}.npy", mmap_mode="r")
        return self._maps[name, number]

    def take(self, name: str, positions: np.ndarray) -> np.ndarray:
        """The rows of the documents at ascending ``positions``, packed, as a copy in memory."""
        bounds = np.searchsorted(positions, self.starts)
        pieces = []
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            here = positions[bounds[number] : bounds[number + 1]]
            array = self.array(name, number)
            before = self.offsets[self.starts[number]]
            if here[-1] - here[0] + 1 == len(here):
                pieces.append(array[self.offsets[here[0]] - before : self.offsets[here[-1] + 1] - before])
            else:
                pieces.append(array[row_numbers(self.offsets[here] - before, self.lengths[here])])
        if not pieces:
            return np.array(self.array(name, 0)[:0])
        return np.concatenate(pieces)


def row_numbers(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of arange(s, s + n) over all (s, n), without a loop."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


class ChunkWriter:
    """Takes the stream of (id, vectors [n, dim]) and commits it as chunks of ``chunk_docs`` documents.

    On an unfinished folder it goes on: the stream must begin with the same ids, which are skipped.
    """

    def __init__(self, path: Path, dim: int, dtype: str, chunk_docs: int) -> None:
        self.path, self.dim, self.dtype, self.chunk_docs = path, dim, np.dtype(dtype), chunk_docs
        path.mkdir(parents=True, exist_ok=True)

    def extend(self, stream: Iterable[tuple[str, np.ndarray | None]]) -> Chunks:
        """Read the whole stream. Vectors may be None for documents that are committed already."""
        done = Chunks(self.path)
        number, seen = done.count, set()
        ids: list[str] = []
        pending: list[np.ndarray] = []
        for position, (id_, vectors) in enumerate(stream):
            self._check_id(id_, position, seen)
            seen.add(id_)
            if position < len(done):
                if id_ != done.ids[position]:
                    raise UserError(
                        f"document {position} of the stream is '{id_}', but '{self.path}' was begun with "
                        f"'{done.ids[position]}' there; give the same documents in the same order, or delete it."
                    )
                continue
            ids.append(id_)
            pending.append(self._checked(id_, vectors))
            if len(ids) == self.chunk_docs:
                self._commit(number, ids, pending)
                number, ids, pending = number + 1, [], []
        if len(seen) < len(done):
            raise UserError(
                f"the stream ended after {len(seen)} documents, but '{self.path}' already holds {len(done)} of them; "
                "give the same documents in the same order, or delete it."
            )
        if ids:
            self._commit(number, ids, pending)
        if not seen:
            raise UserError(f"no documents were given for the index '{self.path}'; give at least one.")
        return Chunks(self.path)

    def _commit(self, number: int, ids: list[str], pending: list[np.ndarray]) -> None:
        commit(self.path, number, ids, [len(v) for v in pending], {"vectors": np.concatenate(pending)})

    def _check_id(self, id_: object, position: int, seen: set[str]) -> None:
        if not isinstance(id_, str):
            raise UserError(f"document {position} has the id {id_!r} of type {type(id_).__name__}; write str(id).")
        if not id_.strip():
            raise UserError(f"document {position} has an empty id ({id_!r}); give every document a non-empty id.")
        if id_ in seen:
            raise UserError(f"id '{id_}' stands twice (again at document {position}); drop or rename one of them.")

    def _checked(self, id_: str, vectors: np.ndarray | None) -> np.ndarray:
        if vectors is None:
            raise UserError(f"document '{id_}' came without vectors and is not in the index yet; give its vectors.")
        given = np.asarray(vectors)
        if given.ndim != 2 or given.shape[1] != self.dim:
            raise UserError(
                f"the vectors of document '{id_}' have shape {given.shape}, the index wants [n, {self.dim}]; "
                "check dim= and write a single vector as [1, d]."
            )
        with np.errstate(over="ignore"):
            rows = np.array(given, dtype=self.dtype)  # a copy: the caller may reuse its buffer
        if not np.isfinite(rows).all():
            raise UserError(
                f"the vectors of document '{id_}' hold NaN or infinity as {self.dtype}; check its text or the encoder."
            )
        return rows


def check_positive(**options: int) -> None:
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r} is not a positive integer; give 1 or more.")


def remove_temporary(path: Path) -> None:
    """Remove what a killed process left half-written."""
    for file in path.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def begin(path: Path, spec: dict) -> None:
    """Start or go on with a build: refuse a complete index and an unfinished one with other options."""
    path.mkdir(parents=True, exist_ok=True)
    if (path / MANIFEST).is_file():
        documents = read_json(path / MANIFEST, "index manifest").get("documents")
        raise UserError(
            f"'{path}' already holds a complete index of {documents} documents; "
            "open it, or delete the folder to build it anew."
        )
    remove_temporary(path)
    spec = json.loads(json.dumps(spec))
    if not (path / SPEC).is_file():
        if any(path.iterdir()):
            raise UserError(f"the folder '{path}' is not empty and holds no index; give a new folder.")
        write_json(path / SPEC, spec)
    found = read_json(path / SPEC, "index spec")
    differing = [key for key in sorted({*spec, *found}) if found.get(key) != spec.get(key)]
    if differing:
        lines = "; ".join(f"{key}: unfinished {found.get(key)!r}, now {spec.get(key)!r}" for key in differing)
        raise UserError(
            f"the unfinished index '{path}' was begun otherwise ({lines}); use the same options, or delete the folder."
        )


def read_manifest(path: Path, format_: str) -> dict:
    """The manifest of a complete index of this format, otherwise one sentence."""
    if not path.is_dir():
        raise UserError(f"there is no index at '{path}'; build it first.")
    if not (path / MANIFEST).is_file():
        raise UserError(
            f"the index '{path}' is incomplete (it has no {MANIFEST}); run the same command again, it goes on."
        )
    manifest = read_json(path / MANIFEST, "index manifest")
    if manifest.get("format") != format_:
        found = manifest.get("format")
        raise UserError(f"'{path}' holds an index of format {found!r}, not {format_!r}; open it as that.")
    return manifest


def check_files(path: Path, files: Mapping[str, dict]) -> list[str]:
    """Re-read every file; one sentence per missing, truncated or changed one."""
    problems = []
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != facts["bytes"]:
            problems.append(f"{name} has {file.stat().st_size} bytes, was written with {facts['bytes']}")
        elif sha256(file) != facts["sha256"]:
            problems.append(f"{name} has changed since it was written (sha256)")
    return problems


def chunk_files(chunks: Chunks) -> dict[str, dict]:
    """Names, sizes and digests of the spec and of all files of all chunks, for the manifest."""
    names = [SPEC, *(f"chunk-{n:05d}.json" for n in range(chunks.count))]
    return {**chunks.files, **{name: file_facts(chunks.path / name) for name in names}}
