"""Store: keyed [n, d] arrays in memory-mapped shards. Visual features and frozen-text states live here.

Layout of a folder: ``spec.json`` (what made the values, written first), ``shard-00000.npy`` with the packed rows of
many items and ``shard-00000.json`` with their keys, digests, lengths and stamps (written after its rows: a shard
without it does not exist), ``manifest.json`` (written last: the store is complete).

Opening a store looks at every shard's list and at the header and size of its rows, not at the values. A reader refuses
a store with a damaged shard; a writer drops the shard, so that what it held is made again.

A stamp says when the content was last looked at (a file's size and time), so that it need not be read to know that it
is the same. Several processes write one store together: each takes every world-th shard number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import atomic_file, read_json, write_json

MANIFEST = "manifest.json"

OPEN = 512
"""Shards mapped at once: each holds a file open, and many systems allow 1,024 per process."""

Item = tuple[str, str, int | None, str | None]  # key, digest, rows (None: the content stands elsewhere), stamp


class Store:
    """Read side. ``get(keys)`` gives one [n_i, d] array per key; rows come from memory-mapped shards."""

    def __init__(self, path: str | Path, expect: dict | None = None, whole: bool = True) -> None:
        """Open ``path``. ``expect`` is the spec the caller would have written; a difference is an error.

        whole: a damaged shard is an error; otherwise it is left out and named in ``damaged``.
        """
        self.path = Path(path)
        if not (self.path / "spec.json").is_file():
            raise UserError(f"no store at '{path}'; build it first (images: python -m runs.run_visual_embedder).")
        self.spec = read_spec(self.path)
        if expect is not None:
            check_spec(self.path, self.spec, expect)
        self.where: dict[str, tuple[int, int, int]] = {}  # key -> (shard, first row, rows)
        self.digests: dict[str, str] = {}
        self.stamps: dict[str, str | None] = {}
        self.by_digest: dict[str, tuple[int, int, int]] = {}
        self.damaged: dict[int, str] = {}  # shard -> what is wrong with it
        self._rows: dict[int, np.ndarray] = {}
        dtype = np.dtype(self.spec.get("dtype", "float16"))
        for number in shard_numbers(self.path):
            try:
                self._take(number, dtype)
            except DamagedError as error:
                self.damaged[number] = str(error)
        if self.damaged and whole:
            raise UserError(
                f"the store '{path}' is damaged ({'; '.join(list(self.damaged.values())[:3])}); run the command that "
                "builds it again, it makes anew what is lost (images: python -m runs.run_visual_embedder)."
            )

    def _take(self, number: int, dtype: np.dtype) -> None:
        """Learn one shard's items, all or none."""
        items = shard_items(shard_path(self.path, number, "json"))
        own: dict[str, tuple[int, int, int]] = {}
        places, first = [], 0
        for key, digest, length, _ in items:
            if length is not None:
                own[digest] = (number, first, length)
                first += length
            place = own.get(digest) or self.by_digest.get(digest)
            if place is None:  # the same content under another name
                raise DamagedError(
                    f"'{shard_path(self.path, number, 'json')}' names content of '{key}' that no shard has"
                )
            places.append(place)
        check_rows(shard_path(self.path, number, "npy"), first, dtype)
        self.by_digest.update(own)
        for (key, digest, _, stamp), place in zip(items, places):
            self.where[key], self.digests[key], self.stamps[key] = place, digest, stamp

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
            if len(self._rows) >= OPEN:
                del self._rows[next(iter(self._rows))]
            self._rows[number] = np.load(shard_path(self.path, number, "npy"), mmap_mode="r")
        return self._rows[number]


class StoreWriter:
    """Write side. Shards are committed one by one; opening an existing folder goes on where it stopped."""

    def __init__(self, path: str | Path, spec: dict, shard_rows: int = 200_000, part: tuple[int, int] = (0, 1)) -> None:
        """spec: JSON-able description of what makes the values; must equal that of an existing folder.

        part: (rank, world) of this process among those that write together. The first must open the folder before the
        others do, and none may commit before all have opened it.
        """
        self.path = Path(path)
        check_place(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        spec = json.loads(json.dumps(spec))
        if (self.path / "spec.json").is_file():
            check_spec(self.path, read_spec(self.path), spec)
        else:
            write_json(self.path / "spec.json", spec)
        self.dtype = np.dtype(spec.get("dtype", "float16"))
        self.shard_rows = shard_rows
        done = Store(self.path, whole=False)
        for number, reason in done.damaged.items():
            self._drop(number)
            print(f"note: {reason}; it is dropped, and what is needed of it is made again")
        self.digests, self.stamps = dict(done.digests), dict(done.stamps)
        self._known = set(done.by_digest)
        rank, self._step = part
        self._next = max(shard_numbers(self.path), default=-1) + 1 + rank
        self._items: list[Item] = []
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
        with atomic_file(shard_path(self.path, self._next, "npy")) as handle:
            np.save(handle, rows)
        with atomic_file(shard_path(self.path, self._next, "json"), "w") as handle:
            json.dump({"items": self._items}, handle)
        self._next += self._step
        self._items, self._blocks, self._pending = [], [], 0

    def finish(self, **facts: Any) -> Store:
        """Commit and write the manifest: the store is complete. Of several processes the first calls it, last."""
        self.commit()
        store = Store(self.path)
        write_json(self.path / MANIFEST, {"items": len(store), **facts})
        return store

    def _drop(self, number: int) -> None:
        """Remove a shard: the store is no longer complete, then the list goes, then the rows."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        for kind in ("json", "npy"):
            shard_path(self.path, number, kind).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a killed writer left: unfinished files, and rows whose list was never written."""
        for path in [*self.path.glob(".*.tmp"), *self.path.glob("shard-*.npy")]:
            if path.suffix == ".tmp" or not path.with_suffix(".json").is_file():
                path.unlink()


class DamagedError(Exception):
    """What is wrong with a shard."""


def shard_path(folder: Path, number: int, kind: str) -> Path:
    return folder / f"shard-{number:05d}.{kind}"


def shard_numbers(folder: Path) -> list[int]:
    return sorted(int(p.stem[6:]) for p in folder.glob("shard-*.json") if p.stem[6:].isdecimal())


def shard_items(path: Path) -> list[Item]:
    """The list of one shard. Only what cannot become right by itself is damage: a disk that fails is no such thing."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))["items"]
        items = [(key, digest, length, *(stamp or [None])) for key, digest, length, *stamp in items]
    except FileNotFoundError:
        raise DamagedError(f"'{path}' is missing") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); look at the disk and its permissions.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"'{path}' is no list of items ({type(error).__name__}: {error})") from None
    for item in items:
        if not _is_item(*item):
            raise DamagedError(f"'{path}' lists {item!r:.60}, which is no item")
    return items


def _is_item(key: Any, digest: Any, length: Any, stamp: Any, *more: Any) -> bool:
    named = isinstance(key, str) and isinstance(digest, str) and (stamp is None or isinstance(stamp, str))
    return named and not more and (length is None or (type(length) is int and length >= 0))


def check_rows(path: Path, rows: int, dtype: np.dtype) -> None:
    """Raise DamagedError unless a whole array [rows, d] of ``dtype`` stands in ``path``; the values are not read."""
    try:
        found = np.lib.format.open_memmap(path, mode="r")  # an error when the file is shorter than its header says
    except FileNotFoundError:
        raise DamagedError(f"'{path}' is missing") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); look at the disk and its permissions.") from None
    except (ValueError, TypeError, OverflowError, SyntaxError) as error:
        raise DamagedError(f"'{path}' is cut off or no array ({error})") from None
    if found.ndim != 2 or len(found) != rows or found.dtype != dtype:
        raise DamagedError(f"'{path}' holds {found.dtype} {list(found.shape)}, its list says {dtype} [{rows}, d]")


def check_place(path: str | Path) -> None:
    """Raise when no store can be written in ``path``: a file, or a folder with something else in it."""
    path = Path(path)
    there = next((part for part in (path, *path.parents) if part.exists()), None)
    if there is not None and not there.is_dir():
        raise UserError(f"'{there}' is a file, so no store can be written in '{path}'; give a folder.")
    names = sorted(n for n in os.listdir(path) if not n.startswith(".")) if there == path else []
    if names and "spec.json" not in names:
        raise UserError(
            f"the folder '{path}' is no store and holds other things ('{names[0]}'); give a new or an empty folder."
        )


def read_spec(path: Path) -> dict:
    """The spec of the store in ``path``. A damaged one is an error for all: nothing says then what the values are."""
    remedy = f"delete the folder '{path}' and build the store again."
    try:
        spec = read_json(path / "spec.json", "store spec")
    except UserError as error:
        raise UserError(f"{str(error).rsplit(';', 1)[0]}; {remedy}") from None
    if not isinstance(spec, dict):
        raise UserError(f"store spec '{path / 'spec.json'}' holds a {type(spec).__name__}, not an object; {remedy}")
    try:
        np.dtype(spec.get("dtype", "float16"))
    except TypeError:
        raise UserError(f"store spec '{path / 'spec.json'}' has the dtype {spec['dtype']!r}; {remedy}") from None
    return spec


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
