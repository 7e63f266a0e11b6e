"""Store: keyed [n, d] arrays in memory-mapped shards. Visual features and frozen-text states live here.

Layout of a folder: ``spec.json`` (what made the values, written first), ``shard-00000.npy`` with the packed rows of
many items and ``shard-00000.json`` with their keys, digests, lengths and stamps (written after its rows: a shard
without it does not exist), ``manifest.json`` (written last: the store is complete).

A stamp says when the content was last looked at (a file's size and time), so that it need not be read to know that it
is the same. Several processes write one store together: each takes every world-th shard number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import atomic_file, read_json, write_json

MANIFEST = "manifest.json"


class Store:
    """Read side. ``get(keys)`` gives one [n_i, d] array per key; rows come from memory-mapped shards."""

    def __init__(self, path: str | Path, expect: dict | None = None) -> None:
        """Open ``path``. ``expect`` is the spec the caller would have written; a difference is an error."""
        self.path = Path(path)
        if not (self.path / "spec.json").is_file():
            raise UserError(f"no store at '{path}'; build it first (images: python -m runs.run_visual_embedder).")
        self.spec = read_json(self.path / "spec.json", "store spec")
        if expect is not None:
            check_spec(self.path, self.spec, expect)
        self.where: dict[str, tuple[int, int, int]] = {}  # key -> (shard, first row, rows)
        self.digests: dict[str, str] = {}
        self.stamps: dict[str, str | None] = {}
        self._rows: dict[int, np.ndarray] = {}
        self._read_shards()

    def _read_shards(self) -> None:
        by_digest: dict[str, tuple[int, int, int]] = {}
        for meta_path in sorted(self.path.glob("shard-*.json")):
            number = int(meta_path.stem.split("-")[1])
            first = 0
            for key, digest, length, *stamp in json.loads(meta_path.read_text(encoding="utf-8"))["items"]:
                if length is None:  # the same content under another name
                    place = by_digest[digest]
                else:
                    place = (number, first, length)
                    by_digest[digest] = place
                    first += length
                self.where[key] = place
                self.digests[key] = digest
                self.stamps[key] = stamp[0] if stamp else None
        self.by_digest = by_digest

    def __len__(self) -> int:
        return len(self.where)

    def __contains__(self, key: str) -> bool:
        return key in self.where

    @property
    def complete(self) -> bool:
        return (self.path / MANIFEST).is_file()

    def get(self, keys: Sequence[str]) -> list[np.ndarray]:
        """One array [n_i, d] per key (a copy, so that writing to it cannot reach the file)."""
        out = []
        for key in keys:
            if key not in self.where:
                raise UserError(
                    f"'{key}' is not in the store '{self.path}' ({len(self)} items); "
                    "run the command that builds it again, it adds what is missing."
                )
            shard, first, length = self.where[key]
            out.append(np.array(self._shard(shard)[first : first + length]))
        return out

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._rows:
            self._rows[number] = np.load(self.path / f"shard-{number:05d}.npy", mmap_mode="r")
        return self._rows[number]


class StoreWriter:
    """Write side. Shards are committed one by one; opening an existing folder goes on where it stopped."""

    def __init__(self, path: str | Path, spec: dict, shard_rows: int = 200_000, part: tuple[int, int] = (0, 1)) -> None:
        """spec: JSON-able description of what makes the values; must equal that of an existing folder.

        part: (rank, world) of this process among those that write together. The first must open the folder before the
        others do, and none may commit before all have opened it.
        """
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        spec = json.loads(json.dumps(spec))
        if (self.path / "spec.json").is_file():
            check_spec(self.path, read_json(self.path / "spec.json", "store spec"), spec)
        else:
            write_json(self.path / "spec.json", spec)
        self.dtype = np.dtype(spec.get("dtype", "float16"))
        self.shard_rows = shard_rows
        done = Store(self.path)
        self.digests, self.stamps = dict(done.digests), dict(done.stamps)
        self._known = set(done.by_digest)
        numbers = [int(p.stem.split("-")[1]) for p in self.path.glob("shard-*.json")]
        rank, self._step = part
        self._next = max(numbers, default=-1) + 1 + rank
        self._items: list[tuple[str, str, int | None, str | None]] = []
        self._blocks: list[np.ndarray] = []
        self._pending = 0

    def has(self, key: str, digest: str) -> bool:
        """True when exactly this content is stored under this key."""
        return self.digests.get(key) == digest

    def knows(self, digest: str) -> bool:
        """True when this content is stored, under whatever key."""
        return digest in self._known

    def link(self, key: str, digest: str, stamp: str | None = None) -> bool:
        """Give known content another name, or a new stamp; False when the content is not stored yet."""
        if digest not in self._known:
            return False
        self._item(key, digest, None, stamp)
        return True

    def add(self, key: str, digest: str, rows: np.ndarray, stamp: str | None = None) -> None:
        """rows [n, d]. NaN or infinite values are an error that names the key."""
        rows = np.ascontiguousarray(rows, dtype=self.dtype)
        if not np.isfinite(rows).all():
            raise UserError(
                f"the values of '{key}' hold NaN or infinity in {self.dtype}; check the input or the tower."
            )
        self._item(key, digest, len(rows), stamp)
        self._known.add(digest)
        self._blocks.append(rows)
        self._pending += len(rows)
        if self._pending >= self.shard_rows:
            self.commit()

    def _item(self, key: str, digest: str, length: int | None, stamp: str | None) -> None:
        (self.path / MANIFEST).unlink(missing_ok=True)
        self._items.append((key, digest, length, stamp))
        self.digests[key], self.stamps[key] = digest, stamp

    def commit(self) -> None:
        """Write what is pending as one shard: rows first, then the list that makes it exist."""
        if not self._items:
            return
        width = self._blocks[0].shape[1] if self._blocks else 0
        rows = np.concatenate(self._blocks) if self._blocks else np.zeros((0, width), self.dtype)
        with atomic_file(self.path / f"shard-{self._next:05d}.npy") as handle:
            np.save(handle, rows)
        with atomic_file(self.path / f"shard-{self._next:05d}.json", "w") as handle:
            json.dump({"items": self._items}, handle)
        self._next += self._step
        self._items, self._blocks, self._pending = [], [], 0

    def finish(self, **facts: Any) -> Store:
        """Commit and write the manifest: the store is complete. Of several processes the first calls it, last."""
        self.commit()
        store = Store(self.path)
        write_json(self.path / MANIFEST, {"items": len(store), **facts})
        return store

    def tidy(self) -> None:
        """Remove what a killed writer left: unfinished files, and rows whose list was never written."""
        for path in [*self.path.glob(".*.tmp"), *self.path.glob("shard-*.npy")]:
            if path.suffix == ".tmp" or not path.with_suffix(".json").is_file():
                path.unlink()


def check_spec(path: Path, found: dict, wanted: dict) -> None:
    """Raise when a stored spec differs from the wanted one, naming every field that does."""
    wanted = json.loads(json.dumps(wanted))
    differing = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
    if differing:
        lines = "; ".join(f"{k}: stored {found.get(k)!r}, wanted {wanted.get(k)!r}" for k in differing)
        raise UserError(f"the store '{path}' was made by something else ({lines}); give another folder or delete it.")


def write_store(path: str | Path, spec: dict, items: Iterable[tuple[str, str, np.ndarray]]) -> Store:
    """Build a small store in one go from (key, digest, rows)."""
    writer = StoreWriter(path, spec)
    for key, digest, rows in items:
        if not writer.has(key, digest):
            writer.add(key, digest, rows)
    return writer.finish()
