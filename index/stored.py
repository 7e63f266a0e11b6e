"""What every index on disk shares: manifest, segments, deleted documents, one writer at a time, many readers.

  manifest.json        what is in force: written last, replaced in one rename by every change
  seg-00000, ...       documents (see ``index.segment``); a segment never changes once a manifest names it
  deleted-00002.npy    positions of deleted documents, of the manifest of that generation

A document's position is its place among all documents of all segments in order, deleted ones included.
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from core.errors import UserError
from core.files import read_json, replace_folder, write_json
from core.progress import progress
from core.protocols import Ranking
from index.common import Allowed, allowed_positions, check_encoder, key_positions, key_scores
from index.manifest import (
    MANIFEST,
    SPEC,
    entry,
    exclusive,
    finished,
    own_files,
    read_manifest,
    remove_halves,
    write_manifest,
)
from index.segment import FACTS, Segment, SegmentWriter, check_file, damaged, file_facts, load_array, save_array
from index.stream import DifferentStream, blocks

COPY_ROWS = 1 << 16
REBUILDING = "rebuilding.json"
"""In the folder beside that ``rebuild`` fills: which manifest it is of."""

DRIFT = 2.0
"""Added vectors may lie this many times as far from their centroids (squared) as held-out vectors of the build did.
Measured on Wikipedia leads of the quickstart tower: unseen documents 1.2 (index of 5,500 documents), 1.4 (1,000) and
1.8 (300), since held-out vectors have neighbours of their own document among the centroids; questions in place of
passages 3.1; random corpora of other topics 4 to 7."""

DRIFT_VECTORS = 256
"""Fewer vectors say nothing: those of one document lie 0.9 to 1.9 times as far, whatever it is."""


class StoredIndex:
    """An opened index: a snapshot of one manifest. Changes made through this object are seen by it at once; other
    readers keep what they opened until they open again."""

    FORMAT: ClassVar[str]

    def __init__(self, path: Path, manifest: dict, device: str) -> None:
        self.path, self.device = path, torch.device(device)
        self._take(manifest)

    def _take(self, manifest: dict) -> None:
        """Make ``manifest`` the one this object shows."""
        before = self.__dict__.get("manifest")
        held = {(s.path.name, s.facts_sha256): s for s in self.segments} if before else {}
        self.segments = [
            held.get((s["name"], s["sha256"])) or Segment(self.path / s["name"], s["sha256"])
            for s in manifest["segments"]
        ]
        self.manifest = manifest
        self.dim: int = manifest["dim"]
        self.bases = np.cumsum([0, *(len(s) for s in self.segments)])
        self.__dict__.pop("_deleted", None)
        if before and own_files(before) != own_files(manifest):  # rebuilt: nothing that was read is of this one
            for kind in type(self).__mro__:
                for name in [n for n, v in vars(kind).items() if isinstance(v, cached_property)]:
                    self.__dict__.pop(name, None)

    def _hold(self) -> None:
        """Open every file that a search reads, so that a compaction that removes it does not disturb this object."""
        for segment in self.segments:
            segment.expected = self._arrays()
        _ = self._deleted
        for segment in self.segments:
            segment.map()

    @cached_property
    def _deleted(self) -> np.ndarray:
        """Positions of deleted documents, ascending."""
        name = self.manifest["deleted"]
        if not name:
            return np.empty(0, np.int64)
        self._intact(name)
        found = load_array(self.path / name)
        if found.dtype != np.int64 or found.ndim != 1 or (np.diff(found, prepend=-1, append=self.bases[-1]) <= 0).any():
            raise damaged(self.path / name, "it does not hold ascending positions")
        return found

    def _intact(self, *names: str) -> None:
        """UserError when a file of the whole index is not the one that the manifest names."""
        for name in names:
            if problems := check_file(self.path / name, self.manifest["files"][name]):
                raise damaged(self.path / name, problems[0])

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
                index._hold()
                return index
            except UserError:  # a compaction may have removed what this manifest names
                newer = read_manifest(path, cls.FORMAT)
                if newer == manifest:  # damaged: ``verify`` and ``search`` say what
                    index = cls(path, manifest, device)
                    with contextlib.suppress(UserError):
                        index._hold()
                    return index
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

    def _built_distance(self) -> float | None:
        """Mean squared distance of vectors of the build to what stands for them; None where nothing can drift."""
        return None

    def _distance(self, vectors: np.ndarray, rows: dict[str, np.ndarray]) -> float:
        """Sum of the same distances for ``vectors`` and what ``_encode`` made of them."""
        raise NotImplementedError

    # -- change ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone with the newest manifest, and without what a killed change left, save the segment of an add."""
        if not self.path.is_dir():
            read_manifest(self.path, self.FORMAT)  # back from aside, or an error
        with exclusive(self.path):
            self._take(read_manifest(self.path, self.FORMAT))
            remove_halves(self.path)
            (self.path / REBUILDING).unlink(missing_ok=True)
            named, place = {s["name"] for s in self.manifest["segments"]}, self._place()
            for folder in self.path.glob("seg-*"):
                if folder.name not in named and folder != place:
                    shutil.rmtree(folder)
            for file in self.path.glob("deleted-*.npy"):
                if file.name != self.manifest["deleted"]:
                    file.unlink()
            try:
                yield
            finally:
                with contextlib.suppress(UserError):  # a damaged index says so when it is searched
                    self._hold()

    def add(self, stream: Iterable[tuple[str, np.ndarray | None]], total: int | None = None) -> dict:
        """Add documents behind those that are there; they can be found when this returns -> what was added.

        An id that is in the index is an error (delete it first). A killed add leaves the index as it was; the same
        add goes on where it was killed (``adding`` documents of the stream are done and may come without vectors),
        another one is an error until ``discard_add``.

        The report has documents and vectors, and of a compressed index ``distance``: how far the vectors that this
        call encoded lie from their centroids (mean square), ``built_distance``: how far those of the build did,
        ``drift``: the ratio, and ``advice``: a sentence, given as a warning too, when many vectors exceed DRIFT.
        """
        seen = [0, 0.0]
        with self._changing():
            place = self._place()
            segment = finished(place)
            if segment is not None and segment.facts["kind"] != "add":
                shutil.rmtree(place)
                segment = None
            if segment is None:
                segment = self._write_added(place, progress(stream, "add", total, unit="doc", memory=True), seen)
            elif [id_ for id_, _ in stream] != segment.ids():
                raise UserError(self._begun_otherwise(len(segment)))
            self._commit([*self.manifest["segments"], entry(segment)], self._deleted)
        report = {"documents": len(segment), "vectors": segment.vectors, **self._drift(*seen)}
        if report["advice"]:
            warnings.warn(report["advice"], stacklevel=2)
        return report

    def _write_added(self, place: Path, stream: Iterable[tuple[str, np.ndarray | None]], seen: list) -> Segment:
        writer, measured = SegmentWriter(place, self._arrays(), "add"), self._built_distance() is not None

        def taken(ids: Sequence[str]) -> np.ndarray:
            return self.find(ids) >= 0

        try:
            for block in blocks(stream, writer, self.dim, self._dtype(), taken):
                rows = self._encode(block.vectors)
                writer.append(block.ids, block.lengths, rows)
                if measured:
                    seen[:] = seen[0] + len(block.vectors), seen[1] + self._distance(block.vectors, rows)
        except DifferentStream:
            raise UserError(self._begun_otherwise(writer.documents)) from None
        except Exception:
            if not writer.documents:  # nothing to go on with
                shutil.rmtree(place)
            raise
        return self._complete(writer)

    def _drift(self, count: int, distance: float) -> dict[str, Any]:
        built = self._built_distance()
        mean = distance / count if count and built is not None else None
        drift = mean / built if mean is not None and built else None
        advice = None
        if drift is not None and drift > DRIFT and count >= DRIFT_VECTORS:
            advice = (
                f"the {count} vectors added to '{self.path}' lie {drift:.2f} times as far from their centroids as "
                "those of the build, so they are stored less exactly; rebuild(keep_codec=False) fits new centroids."
            )
        return {"distance": mean, "built_distance": built, "drift": drift, "advice": advice}

    def _begun_otherwise(self, documents: int) -> str:
        return (
            f"another add to '{self.path}' was killed after {documents} documents; "
            "run that add again, or forget it with discard_add()."
        )

    def discard_add(self) -> None:
        """Forget what a killed add left; the index does not change."""
        with self._changing():
            shutil.rmtree(self._place(), ignore_errors=True)

    def _dtype(self) -> str:
        """What the vectors of a stream are rounded to before they are encoded."""
        return "float16"

    def adding(self) -> int:
        """Documents of a killed add that need not be encoded again."""
        place = self._place(read_manifest(self.path, self.FORMAT))
        if not (place / FACTS).is_file():
            return SegmentWriter.committed(place, "add")
        segment = Segment(place)
        return len(segment) if segment.facts["kind"] == "add" else 0

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents: they are not found any more; ``compact`` gives their space back -> how many."""
        if isinstance(ids, str):
            raise UserError(f"delete wants several ids, got the string {ids!r}; write [{ids!r}].")
        wanted = list(dict.fromkeys(ids))
        for id_ in wanted:
            if not isinstance(id_, str):
                raise UserError(f"delete got the id {id_!r} of type {type(id_).__name__}; write str(id).")
        with self._changing():
            positions = self.find(wanted)
            if (positions < 0).any():
                missing = wanted[int(np.argmin(positions))]
                raise UserError(
                    f"id {missing!r} is not in the index ({len(self)} documents); nothing was deleted, take it out."
                )
            if wanted:
                self._commit(self.manifest["segments"], np.union1d(self._deleted, positions).astype(np.int64))
        return len(wanted)

    def compact(self) -> None:
        """Write one segment of the documents that are not deleted, and remove the old ones; ids and order stay.

        Costs a copy of the index on disk while it lasts. A killed compaction leaves the index as it was; what a
        killed add left is forgotten.
        """
        with self._changing():
            if len(self.segments) <= 1 and not len(self._deleted):
                return
            self._whole()
            place = self._place()
            shutil.rmtree(place, ignore_errors=True)  # half a copy, or a killed add
            entries = []
            if len(self):
                try:
                    writer = SegmentWriter(place, self._arrays(), "compact")
                    for ids, lengths, rows in progress(self._live_blocks(), "compact", None, unit="block", memory=True):
                        writer.append(ids, lengths, rows)
                    entries = [entry(self._complete(writer))]
                except Exception:  # a full disk, say: give the space back
                    shutil.rmtree(place, ignore_errors=True)
                    raise
            old = [s.path for s in self.segments]
            self._commit(entries, np.empty(0, np.int64))
            for folder in old:
                shutil.rmtree(folder)

    def rebuild(self, keep_codec: bool = True) -> None:
        """``compact``; with keep_codec=False a compressed index also gets centroids and buckets that fit what it holds.

        The new codec is fitted to the vectors as they are stored (the originals are not kept), in ``<path>.new``,
        which then takes the place of the index; the options are those of its build. A killed rebuild leaves the index
        as it was and goes on when it is called again.
        """
        options = self.manifest.get("options")
        if keep_codec or options is None:
            return self.compact()
        known = inspect.signature(type(self).build).parameters  # type: ignore[attr-defined]
        with self._changing():
            self._whole()
            place = self.path.with_name(self.path.name + ".new")
            self._claim(place)
            if not (place / MANIFEST).is_file():
                type(self).build(  # type: ignore[attr-defined]
                    place,
                    self._signed(place),
                    dim=self.dim,
                    encoder=self.manifest["encoder"],
                    total=len(self),
                    device=str(self.device),
                    **{key: value for key, value in options.items() if key in known},
                )
            manifest = {**read_manifest(place, self.FORMAT), "generation": self.manifest["generation"] + 1}
            manifest["options"] = {**options, **manifest["options"]}  # a converted index has one that no build takes
            write_manifest(place, manifest)
            for file in self.path.iterdir():  # what others keep here, such as runs/indexing
                if file.is_file() and not (place / file.name).exists() and file.name not in self.manifest["files"]:
                    shutil.copyfile(file, place / file.name)
            replace_folder(place, self.path)
            (self.path / REBUILDING).unlink(missing_ok=True)
            self._take(read_manifest(self.path, self.FORMAT))

    def _claim(self, place: Path) -> None:
        """Keep ``place`` when it is an unfinished rebuild of this very manifest; remove an older one."""
        sign, kind = place / REBUILDING, type(self)
        if sign.is_file() and read_json(sign, "note") == self.manifest:
            return
        if not sign.is_file() and ((place / MANIFEST).is_file() or kind.committed(place)):  # type: ignore[attr-defined]
            raise UserError(f"'{place}' holds another index; finish its build, or delete the folder.")
        if place.is_dir() and any(place.iterdir()) and not sign.is_file() and not (place / SPEC).is_file():
            raise UserError(f"'{place}' is in the way and holds no index; move it away.")
        shutil.rmtree(place, ignore_errors=True)

    def _signed(self, place: Path) -> Iterator[tuple[str, np.ndarray]]:
        """The vectors; the note is written when they are first read, since a build begins in an empty folder only."""
        write_json(place / REBUILDING, self.manifest)
        yield from self.vectors()  # type: ignore[attr-defined]

    def _whole(self) -> None:
        """UserError when a file is damaged: a copy of it would look whole."""
        if problems := self.verify():
            raise UserError(f"the index '{self.path}' is damaged ({problems[0]}); build it again.")

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
                arrays = {name: segment.read(name, start, stop)[rows] for name in self._arrays()}
                ids = segment.ids(first, last)
                yield [i for i, k in zip(ids, keep.tolist()) if k], lengths[keep], arrays

    def _place(self, manifest: dict | None = None) -> Path:
        """The folder of the next segment."""
        manifest = manifest or self.manifest
        used = [int(s["name"].split("-")[1]) for s in manifest["segments"]]
        return self.path / f"seg-{max([*used, manifest['last_segment']]) + 1:05d}"

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
        manifest["files"] = own_files(manifest) | ({name: file_facts(self.path / name)} if name else {})
        write_manifest(self.path, manifest)
        if old and old != name:
            (self.path / old).unlink(missing_ok=True)
        self._take(manifest)

    # -- judging ---------------------------------------------------------------------------------------------------

    def verify(self) -> list[str]:
        """Re-read every file and compare sizes, digests and counts; one sentence per problem, none when all is well."""
        problems = [p for n, facts in self.manifest["files"].items() for p in check_file(self.path / n, facts)]
        for segment in self.segments:
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
        size += sum(s.facts_bytes for s in self.segments)
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
