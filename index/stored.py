"""What every index on disk shares: manifest, segments, deleted documents, one writer at a time, many readers.

  manifest.json        what is in force: written last, replaced in one rename by every change
  seg-00000, ...       documents (see ``index.segment``); a segment never changes once a manifest names it
  deleted-00002.npy    positions of deleted documents, of the manifest of that generation

A document's position is its place among all documents of all segments in order, deleted ones included.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from core.errors import UserError
from core.files import read_json, write_json
from core.progress import progress
from core.protocols import Ranking
from index.common import Allowed, allowed_positions, check_encoder, key_positions, key_scores
from index.segment import FACTS, JOURNAL, Segment, SegmentWriter, check_file, file_facts, load_array, save_array
from index.stream import Block, DifferentStream, blocks

MANIFEST = "manifest.json"
SPEC = "spec.json"
VERSION = 2
COPY_ROWS = 1 << 16


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One writer at a time: UserError when another process (or object) is writing the index."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    path.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process is writing the index '{path}'; wait until it has ended, or stop it."
            ) from None
        yield
    except OSError as error:
        if error.errno in (28, 122):  # no space left, quota exceeded
            raise UserError(
                f"the disk of '{path}' is full ({error.strerror}); free space and run the same command, it goes on."
            ) from None
        raise
    finally:
        os.close(handle)


def begin(path: Path, spec: dict) -> None:
    """Start or go on with a build: refuse a complete index and an unfinished one with other options."""
    if (path / MANIFEST).is_file():
        documents = read_json(path / MANIFEST, "index manifest").get("documents")
        raise UserError(
            f"'{path}' already holds a complete index of {documents} documents; "
            "open it, or delete the folder to build it anew."
        )
    for file in path.glob(".*.tmp"):
        file.unlink(missing_ok=True)
    spec = json.loads(json.dumps({"version": VERSION, **spec}))
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
    if manifest.get("version") != VERSION:
        raise UserError(f"'{path}' was written by an earlier version of this project; build the index again.")
    return manifest


def finished(path: Path) -> Segment | None:
    """The segment, when its last file is there; what a kill between that and the tidying left is removed."""
    if not (path / FACTS).is_file():
        return None
    for name in ("ids.lengths.bin", "lengths.bin", JOURNAL):
        (path / name).unlink(missing_ok=True)
    return Segment(path)


def check_positive(**options: int) -> None:
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r} is not a positive integer; give 1 or more.")


class StoredIndex:
    """An opened index: a snapshot of one manifest. Changes made through this object are seen by it at once; other
    readers keep what they opened until they open again."""

    FORMAT: ClassVar[str]

    def __init__(self, path: Path, manifest: dict, device: str) -> None:
        self.path, self.device = path, torch.device(device)
        self._take(manifest)

    def _take(self, manifest: dict) -> None:
        """Make ``manifest`` the one this object shows."""
        segments = [Segment(self.path / s["name"]) for s in manifest["segments"]]
        deleted = manifest["deleted"]
        self.manifest, self.segments = manifest, segments
        self.dim: int = manifest["dim"]
        self.bases = np.cumsum([0, *(len(s) for s in segments)])
        self._deleted = load_array(self.path / deleted) if deleted else np.empty(0, np.int64)

    @classmethod
    def open(cls, path: str | Path, encoder: dict | None = None, device: str = "cpu") -> Any:
        """Open a complete index. encoder: what encodes the queries now; UserError when it is not what built it."""
        path = Path(path)
        manifest = read_manifest(path, cls.FORMAT)
        if encoder is not None:
            check_encoder(path, manifest["encoder"], encoder)
        for _ in range(10):
            try:
                index = cls(path, manifest, device)
                for segment in index.segments:
                    segment.map()
                return index
            except UserError:  # a compaction may have removed what this manifest names
                newer = read_manifest(path, cls.FORMAT)
                if newer["generation"] == manifest["generation"]:
                    return cls(path, manifest, device)  # damaged: ``verify`` and ``search`` say what
                manifest = newer
        raise UserError(f"the index '{path}' is changing faster than it can be opened; try again.")

    def __len__(self) -> int:
        """Documents that can be found (deleted ones do not count)."""
        return self.manifest["documents"]

    def alive(self) -> np.ndarray:
        """[positions] bool: which documents are not deleted."""
        mask = np.ones(int(self.bases[-1]), dtype=bool)
        mask[self._deleted] = False
        return mask

    def some_ids(self, positions: np.ndarray) -> list[str]:
        """The ids of these positions, in their order."""
        if len(self.segments) == 1:
            return self.segments[0].some_ids(positions)
        numbers = np.searchsorted(self.bases, positions, "right") - 1
        return [self.segments[n].id(int(p - self.bases[n])) for n, p in zip(numbers.tolist(), positions)]

    def _ranking(self, keys: np.ndarray) -> Ranking:
        return Ranking(tuple(self.some_ids(key_positions(keys))), tuple(key_scores(keys).tolist()))

    def _allowed(self, allowed: Allowed, batch: int) -> list[np.ndarray | None]:
        """Ascending positions per query, None for all documents."""
        return allowed_positions(allowed, batch, self.find, len(self))

    def ids(self) -> Sequence[str]:
        """All ids, in the order they were given (a list of the whole; large indexes take a while)."""
        out = [id_ for segment in self.segments for id_ in segment.ids()]
        return out if not len(self._deleted) else [out[p] for p in np.flatnonzero(self.alive()).tolist()]

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """[n] int64: the position of each id, -1 where it is not in the index or deleted."""
        found = np.full(len(ids), -1, dtype=np.int64)
        for base, segment in zip(self.bases.tolist(), self.segments):
            here = segment.find(ids)
            here = np.where(here >= 0, here + base, -1)
            if len(self._deleted):
                here[np.isin(here, self._deleted)] = -1
            found = np.where(here >= 0, here, found)
        return found

    # -- what a kind of index adds ---------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, tuple[str, list[int]]]:
        """The arrays of a segment (see SegmentWriter)."""
        raise NotImplementedError

    def _encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """[n, dim] -> the rows of every array."""
        raise NotImplementedError

    def _complete(self, writer: SegmentWriter) -> Segment:
        """Finish a segment, with whatever stands beside the arrays."""
        return writer.finish()

    # -- change ----------------------------------------------------------------------------------------------------

    def add(self, stream: Iterable[tuple[str, np.ndarray | None]], total: int | None = None) -> dict:
        """Add documents behind those that are there; they can be found when this returns -> what was added.

        An id that is in the index is an error (delete it first). A killed add leaves the index as it was; the same
        add goes on where it was killed (``adding`` documents of the stream are done and may come without vectors),
        another one begins anew.
        """
        with exclusive(self.path):
            self._take(read_manifest(self.path, self.FORMAT))
            place = self._next()
            segment = finished(place)
            if segment is not None and segment.facts["kind"] != "add":
                shutil.rmtree(place)
                segment = None
            if segment is None:
                segment = self._write_added(place, progress(stream, "add", total, unit="doc"))
            elif [id_ for id_, _ in stream] != segment.ids():
                raise UserError(self._begun_otherwise(len(segment)))
            self._commit([*self.manifest["segments"], entry(segment)], self._deleted)
        return {"documents": len(segment), "vectors": segment.vectors}

    def _write_added(self, place: Path, stream: Iterable[tuple[str, np.ndarray | None]]) -> Segment:
        writer = SegmentWriter(place, self._arrays(), "add")

        def taken(ids: Sequence[str]) -> np.ndarray:
            return self.find(ids) >= 0

        try:
            for block in blocks(stream, writer, self.dim, self._dtype(), taken):
                writer.append(block.ids, block.lengths, self._encode(block.vectors))
        except DifferentStream:
            raise UserError(self._begun_otherwise(writer.documents)) from None
        return self._complete(writer)

    def _begun_otherwise(self, documents: int) -> str:
        return (
            f"another add to '{self.path}' was killed after {documents} documents; "
            "run that add again, or forget it with discard_add()."
        )

    def discard_add(self) -> None:
        """Forget what a killed add left; the index does not change."""
        with exclusive(self.path):
            shutil.rmtree(self._place(), ignore_errors=True)

    def _dtype(self) -> str:
        """What the vectors of a stream are rounded to before they are encoded."""
        return "float16"

    def adding(self) -> int:
        """Documents of a killed add that need not be encoded again."""
        segment = finished(self._place())
        return SegmentWriter.committed(self._place()) if segment is None else len(segment)

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents: they are not found any more; ``compact`` gives their space back -> how many."""
        wanted = list(dict.fromkeys(ids))
        if isinstance(ids, str):
            raise UserError(f"delete wants several ids, got the string {ids!r}; write [{ids!r}].")
        with exclusive(self.path):
            self._take(read_manifest(self.path, self.FORMAT))
            positions = self.find(wanted)
            if (positions < 0).any():
                missing = wanted[int(np.argmin(positions))]
                raise UserError(
                    f"id {missing!r} is not in the index ({len(self)} documents); nothing was deleted, take it out."
                )
            self._commit(self.manifest["segments"], np.union1d(self._deleted, positions).astype(np.int64))
        return len(wanted)

    def compact(self) -> None:
        """Write one segment of the documents that are not deleted, and remove the old ones; ids and order stay.

        Costs a copy of the index on disk while it lasts. A killed compaction leaves the index as it was.
        """
        with exclusive(self.path):
            self._take(read_manifest(self.path, self.FORMAT))
            if len(self.segments) == 1 and not len(self._deleted):
                return
            place = self._next()
            shutil.rmtree(place, ignore_errors=True)  # half a copy, or a killed add
            entries = []
            if len(self):
                writer = SegmentWriter(place, self._arrays(), "compact")
                for ids, lengths, rows in progress(self._live_blocks(), "compact", None, unit="block"):
                    writer.append(ids, lengths, rows)
                entries = [entry(self._complete(writer))]
            old = [s.path for s in self.segments]
            self._commit(entries, np.empty(0, np.int64))
            for folder in old:
                shutil.rmtree(folder)

    def _live_blocks(self) -> Iterator[tuple[list[str], np.ndarray, dict[str, np.ndarray]]]:
        """Ids, lengths and rows of the documents that are not deleted, as stored."""
        alive = self.alive()
        for base, segment in zip(self.bases.tolist(), self.segments):
            for first, last in segment.blocks(COPY_ROWS):
                keep = alive[base + first : base + last]
                if not keep.any():
                    continue
                lengths = segment.lengths[first:last]
                rows = np.repeat(keep, lengths)
                start, stop = int(segment.offsets[first]), int(segment.offsets[last])
                arrays = {name: segment.read(name, start, stop)[rows] for name in segment.facts["arrays"]}
                ids = segment.ids(first, last)
                yield [i for i, k in zip(ids, keep.tolist()) if k], lengths[keep], arrays

    def _place(self) -> Path:
        used = [int(s["name"].split("-")[1]) for s in self.manifest["segments"]]
        return self.path / f"seg-{max([*used, self.manifest['last_segment']]) + 1:05d}"

    def _next(self) -> Path:
        """The folder of the next segment; what no manifest names, save that folder, is removed."""
        named, place = {s["name"] for s in self.manifest["segments"]}, self._place()
        for folder in self.path.glob("seg-*"):
            if folder.name not in named and folder != place:
                shutil.rmtree(folder)
        for file in self.path.glob("deleted-*.npy"):
            if file.name != self.manifest["deleted"]:
                file.unlink()
        return place

    def _commit(self, segments: Sequence[dict], deleted: np.ndarray) -> None:
        """Put a new manifest in force."""
        generation, old = self.manifest["generation"] + 1, self.manifest["deleted"]
        name = f"deleted-{generation:05d}.npy" if len(deleted) else None
        if name:
            save_array(self.path / name, deleted)
        manifest = {**self.manifest, "generation": generation, "segments": list(segments), "deleted": name}
        manifest["last_segment"] = max(
            [self.manifest["last_segment"], *(int(s["name"].split("-")[1]) for s in segments)]
        )
        whole = [Segment(self.path / s["name"]) for s in segments]
        bases = np.cumsum([0, *(len(s) for s in whole)])
        gone = empty = vectors = 0
        for base, stop, segment in zip(bases.tolist(), bases[1:].tolist(), whole):
            here = deleted[(deleted >= base) & (deleted < stop)] - base
            gone += len(here)
            lengths = np.diff(segment.offsets)[here] if len(here) else np.empty(0, np.int64)
            vectors += segment.vectors - int(lengths.sum())
            empty += segment.facts["documents_without_vectors"] - int((lengths == 0).sum())
        manifest["documents"], manifest["vectors"] = int(bases[-1]) - gone, vectors
        manifest["documents_without_vectors"] = empty
        if name:
            manifest["files"] = {**self._own_files(), name: file_facts(self.path / name)}
        else:
            manifest["files"] = self._own_files()
        write_json(self.path / MANIFEST, manifest)
        if old and old != name:
            (self.path / old).unlink(missing_ok=True)
        self._take(manifest)

    def _own_files(self) -> dict[str, dict]:
        """Files of the manifest that are of the whole index, without those of one generation."""
        return {n: f for n, f in self.manifest["files"].items() if not n.startswith("deleted-")}

    # -- judging ---------------------------------------------------------------------------------------------------

    def verify(self) -> list[str]:
        """Re-read every file and compare sizes, digests and counts; one sentence per problem, none when all is well."""
        problems = [p for n, facts in self.manifest["files"].items() for p in check_file(self.path / n, facts)]
        for named, segment in zip(self.manifest["segments"], self.segments):
            found = file_facts(segment.path / FACTS)
            if found["sha256"] != named["sha256"]:
                problems.append(f"{named['name']}/{FACTS} has changed since it was written (sha256)")
            problems += segment.verify()
        if problems:
            return problems
        alive = self.alive()
        vectors = sum(int(s.lengths[alive[b : b + len(s)]].sum()) for b, s in zip(self.bases.tolist(), self.segments))
        counts: Mapping[str, int] = {"documents": int(alive.sum()), "vectors": vectors}
        return [
            f"{what}: the segments hold {n}, the manifest says {self.manifest[what]}"
            for what, n in counts.items()
            if n != self.manifest[what]
        ]

    def stats(self) -> dict:
        """documents, vectors, dim, bytes on disk, bytes per vector, documents without any vector, deleted, encoder."""
        size = sum(facts["bytes"] for facts in self.manifest["files"].values())
        size += sum(facts["bytes"] for s in self.segments for facts in s.facts["files"].values())
        size += sum((s.path / FACTS).stat().st_size for s in self.segments)
        vectors = sum(s.vectors for s in self.segments)
        return {
            "format": self.FORMAT,
            "documents": len(self),
            "vectors": self.manifest["vectors"],
            "dim": self.dim,
            "documents_without_vectors": self.manifest["documents_without_vectors"],
            "deleted": len(self._deleted),
            "segments": len(self.segments),
            "bytes": size,
            "bytes_per_vector": round(size / max(1, vectors), 2),
            "encoder": self.manifest["encoder"],
        }


def entry(segment: Segment) -> dict:
    return {"name": segment.path.name, "sha256": file_facts(segment.path / FACTS)["sha256"]}


__all__ = ["Block", "DifferentStream", "StoredIndex", "begin", "check_positive", "exclusive", "read_manifest"]
