"""A segment: consecutive documents in a few flat files, appended block by block, read through memory maps.

  ids.bin  ids.offsets.npy      the ids as UTF-8, one after another
  ids.hash.npy  ids.order.npy   their 64-bit hashes, ascending, and whose they are: id -> document without a table
  offsets.npy                   [N + 1] int64, the first row of each document
  <array>.bin                   rows of all documents, one after another (vectors, or codes and residuals)
  segment.json                  counts, dtypes, sizes and digests; written last

While it is written, ``journal.jsonl`` has one line per block that is safely on disk. A killed writer cuts the files
back to the last such line and goes on, so that the finished bytes are those of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.errors import UserError
from core.files import atomic_file, sha256, write_json
from index.mapped import HeldFile, damaged, load_array, save_array

FACTS = "segment.json"
JOURNAL = "journal.jsonl"
GROWING = ("ids.bin", "ids.lengths.bin", "lengths.bin")
TABLES = ("ids.bin", "ids.offsets.npy", "ids.hash.npy", "ids.order.npy", "offsets.npy")
DTYPES = ("uint8", "uint16", "int32", "float16", "float32")
CHECKED = 1 << 20


def hashes(ids: Sequence[str]) -> np.ndarray:
    """[n] uint64 of ids (BLAKE2b)."""
    digests = b"".join(hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8")


class Segment:
    """Read side. Nothing but segment.json is read before it is asked for; large files are mapped, not loaded.

    sha256: what the manifest says of segment.json.
    """

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self.path = path
        self._files: dict[str, HeldFile] = {}
        self.expected: Mapping[str, tuple[str, list[int]]] = {}
        """The arrays as the index has them, when it is known: the loops trust dtypes and shapes."""
        self.facts, self.facts_bytes, self.facts_sha256 = read_facts(path / FACTS, sha256)
        self.documents, self.vectors = self.facts["documents"], self.facts["vectors"]

    def __len__(self) -> int:
        return self.documents

    def map(self) -> Segment:
        """Open every file now, so that a compaction that removes the folder does not disturb this reader."""
        for name in self.facts["files"]:
            self.file(name)
        return self

    def file(self, name: str) -> HeldFile:
        if name not in self._files:
            if name not in self.facts["files"]:
                raise damaged(self.path / FACTS, f"it does not name {name}")
            self._files[name] = HeldFile(self.path / name, self.facts["files"][name]["bytes"])
        return self._files[name]

    @cached_property
    def offsets(self) -> np.ndarray:
        """[N + 1] int64, checked: the loops trust them."""
        table = self.file("offsets.npy").table("int64", self.documents + 1)
        fits = table[0] == 0 and table[-1] == self.vectors
        for start in range(0, self.documents, CHECKED):
            fits = fits and bool((np.diff(table[start : start + CHECKED + 1]) >= 0).all())
        if not fits:
            raise damaged(self.path / "offsets.npy", "it does not fit the rows")
        return table

    @cached_property
    def lengths(self) -> np.ndarray:
        """[N] int64: vectors per document."""
        return np.diff(self.offsets)

    def array(self, name: str) -> np.ndarray:
        """All rows of an array, mapped for access in any order."""
        return self._rows(name, self.file(f"{name}.bin").bytes)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1 as a copy in memory, read without mapping: what passes through leaves no trace."""
        width = row_bytes(self._array(name))
        return self._rows(name, self.file(f"{name}.bin").read(start * width, stop * width))

    def _rows(self, name: str, content: np.ndarray) -> np.ndarray:
        facts = self._array(name)
        return content.view(facts["dtype"]).reshape(-1, *facts["shape"])

    def _array(self, name: str) -> dict[str, Any]:
        facts = self.facts["arrays"].get(name)
        if facts is None or (facts["dtype"], facts["shape"]) != self.expected.get(
            name, (facts["dtype"], facts["shape"])
        ):
            raise damaged(self.path / FACTS, f"its {name} are not those of the index")
        return facts

    def blocks(self, max_rows: int) -> Iterator[tuple[int, int]]:
        """Runs first .. last - 1 of documents of at most ``max_rows`` rows together (at least one document each)."""
        first = 0
        while first < self.documents:
            target = int(self.offsets[first]) + max_rows
            last = max(first + 1, int(np.searchsorted(self.offsets, target, "right")) - 1)
            yield first, last
            first = last

    def id(self, position: int) -> str:
        return self.some_ids(np.array([position]))[0]

    def some_ids(self, positions: np.ndarray) -> list[str]:
        try:
            starts, stops = self._id_offsets[positions].tolist(), self._id_offsets[positions + 1].tolist()
            return [str(self._id_blob[a:b], "utf-8") for a, b in zip(starts, stops)]
        except (IndexError, UnicodeDecodeError) as error:
            raise damaged(self.path / "ids.offsets.npy", error) from None

    def ids(self, start: int = 0, stop: int | None = None) -> list[str]:
        stop = self.documents if stop is None else stop
        offsets = np.asarray(self._id_offsets[start : stop + 1])
        blob = bytes(self._id_blob[offsets[0] : offsets[-1]])
        edges = (offsets - offsets[0]).tolist()
        try:
            return [blob[a:b].decode() for a, b in pairwise(edges)]
        except UnicodeDecodeError as error:
            raise damaged(self.path / "ids.bin", error) from None

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """[n] int64: the position of each id, -1 where it is not here. A few pages are touched per id."""
        found = np.full(len(ids), -1, dtype=np.int64)
        if not self.documents:
            return found
        wanted = hashes(ids)
        hashed = self.file("ids.hash.npy").table("uint64", self.documents)
        order = self.file("ids.order.npy").table("int64", self.documents)
        first = np.searchsorted(hashed, wanted, "left")
        last = np.searchsorted(hashed, wanted, "right")
        for i in np.flatnonzero(last > first).tolist():
            for at in range(first[i], last[i]):  # more than one only when two ids share a hash
                if not 0 <= order[at] < self.documents:
                    raise damaged(self.path / "ids.order.npy", f"it names document {order[at]}")
                if self.id(order[at]) == ids[i]:
                    found[i] = order[at]
        return found

    @cached_property
    def _id_offsets(self) -> np.ndarray:
        return self.file("ids.offsets.npy").table("int64", self.documents + 1)

    @cached_property
    def _id_blob(self) -> memoryview:
        return memoryview(self.file("ids.bin").bytes)  # slices of it are five times as fast as numpy's

    def verify(self) -> list[str]:
        """Re-read every file; one sentence per missing, truncated or changed one."""
        problems = check_file(self.path / FACTS, {"bytes": self.facts_bytes, "sha256": self.facts_sha256})
        for name, facts in self.facts["files"].items():
            problems += check_file(self.path / name, facts)
        return problems


def row_bytes(facts: Mapping[str, Any]) -> int:
    """facts: {"dtype", "shape"} of an array."""
    return math.prod(facts["shape"]) * np.dtype(facts["dtype"]).itemsize


def read_facts(path: Path, sha256: str | None) -> tuple[dict[str, Any], int, str]:
    """A segment.json that can be worked with, its size and its digest, which must be ``sha256`` if that is given."""
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if sha256 not in (None, digest):
            raise ValueError("it has changed since it was written")
        facts = json.loads(content)
        numbers = [facts["documents"], facts["vectors"], facts["documents_without_vectors"]]
        for one in facts["files"].values():
            blocks = one["blocks"] if "blocks" in one else [[one["bytes"], one["sha256"]]]
            numbers += [one["bytes"], *(n for n, _ in blocks)]
            if sum(n for n, _ in blocks) != one["bytes"] or not all(isinstance(text, str) for _, text in blocks):
                raise ValueError("the blocks of a file are not the file")
        for name, array in facts["arrays"].items():
            numbers += [1 / n and n for n in array["shape"]]
            size = facts["files"][f"{name}.bin"]["bytes"]
            fits = array["rows"] == facts["vectors"] and size == array["rows"] * row_bytes(array)
            if array["dtype"] not in DTYPES or not fits:
                raise ValueError(f"the size of {name} is not that of its rows")
        if facts["files"]["offsets.npy"]["bytes"] <= 8 * facts["documents"]:
            raise ValueError("the size of offsets.npy is not that of its documents")
        if not all(type(n) is int and n >= 0 for n in numbers) or not isinstance(facts["kind"], str):
            raise ValueError("a count is not one")
        if any(name not in facts["files"] or "/" in name for name in (*TABLES, *facts["files"])):
            raise ValueError("it does not name the files of a segment")
        return facts, len(content), digest
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise damaged(path, error) from None


def check_file(path: Path, facts: Mapping[str, Any]) -> list[str]:
    """facts: {"bytes", "sha256"}, or {"bytes", "blocks": [[bytes, sha256], ...]} of a file written in blocks."""
    if not path.is_file():
        return [f"{path.parent.name}/{path.name} is missing"]
    size = path.stat().st_size
    if size != facts["bytes"]:
        return [f"{path.parent.name}/{path.name} has {size} bytes, was written with {facts['bytes']}"]
    if "blocks" not in facts:
        same = sha256(path) == facts["sha256"]
        return [] if same else [f"{path.parent.name}/{path.name} has changed since it was written (sha256)"]
    with open(path, "rb") as handle:
        start = 0
        for length, digest in facts["blocks"]:
            if hashlib.sha256(handle.read(length)).hexdigest() != digest:
                end = start + length - 1
                return [f"{path.parent.name}/{path.name} has changed since it was written (bytes {start} to {end})"]
            start += length
    return []


def file_facts(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


class SegmentWriter:
    """Appends blocks of documents; every ``append`` is on disk when it returns.

    arrays: name -> (dtype, shape of one row), e.g. {"vectors": ("float16", [128])}. kind: what is
    done here. On an unfinished folder of the same arrays and kind it goes on after the last block (``documents``,
    ``ids``); otherwise it begins anew.
    """

    def __init__(self, path: Path, arrays: Mapping[str, tuple[str, Sequence[int]]], kind: str = "build") -> None:
        self.path = path
        self.arrays = {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in arrays.items()}
        path.mkdir(parents=True, exist_ok=True)
        for file in path.glob(".*.tmp"):
            file.unlink(missing_ok=True)
        self._names = [*GROWING, *(f"{name}.bin" for name in arrays)]
        self._header = {"arrays": self.arrays, "kind": kind}
        self._journal: list[dict] = self._begin()
        self.documents = sum(line["documents"] for line in self._journal)
        self.vectors = sum(line["rows"] for line in self._journal)
        self._cut()

    @staticmethod
    def committed(path: Path, kind: str = "build") -> int:
        """Documents that are safely in an unfinished folder of this kind."""
        header, *lines = _journal(path) or [None]
        ours = isinstance(header, dict) and header.get("kind") == kind
        return sum(line["documents"] for line in lines) if ours else 0

    def _begin(self) -> list[dict]:
        """The blocks of a folder that was begun in the same way; of another one, nothing is kept."""
        lines = _journal(self.path)
        if lines and lines[0] == self._header:
            here = {name: self._size(name) for name in self._names}
            whole = []
            for line in lines[1:]:
                here = {name: size - line["files"].get(name, [math.inf])[0] for name, size in here.items()}
                if min(here.values()) < 0:  # a file has lost what was in it
                    break
                whole.append(line)
            return whole
        with atomic_file(self.path / JOURNAL, "w") as handle:
            handle.write(json.dumps(self._header) + "\n")
        return []

    def _size(self, name: str) -> int:
        return (self.path / name).stat().st_size if (self.path / name).is_file() else 0

    def _cut(self) -> None:
        """Cut every file, the journal too, back to its last whole block."""
        for name in self._names:
            with open(self.path / name, "ab") as handle:
                handle.truncate(sum(line["files"][name][0] for line in self._journal))
        whole = "".join(json.dumps(line) + "\n" for line in [self._header, *self._journal])
        with open(self.path / JOURNAL, "rb+") as handle:
            handle.truncate(len(whole))

    def ids(self) -> Iterator[list[str]]:
        """The ids that are on disk, block by block."""
        with open(self.path / "ids.bin", "rb") as blob, open(self.path / "ids.lengths.bin", "rb") as sizes:
            for line in self._journal:
                lengths = np.frombuffer(sizes.read(4 * line["documents"]), np.uint32)
                edges = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).tolist()
                text = blob.read(edges[-1])
                yield [text[a:b].decode() for a, b in pairwise(edges)]

    def append(self, ids: Sequence[str], lengths: Sequence[int] | np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one block: ids of n documents, their rows per document, and the rows of every array."""
        encoded = [i.encode() for i in ids]
        sizes = np.array([len(e) for e in encoded], dtype=np.uint32)
        parts: dict[str, Any] = {
            "ids.bin": b"".join(encoded),
            "ids.lengths.bin": sizes.tobytes(),
            "lengths.bin": np.asarray(lengths, dtype=np.uint32).tobytes(),
        }
        for name, array in arrays.items():
            facts = self.arrays[name]
            parts[f"{name}.bin"] = np.ascontiguousarray(array, facts["dtype"]).reshape(-1).view(np.uint8)
        files = {}
        for name in self._names:
            with open(self.path / name, "ab") as handle:
                handle.write(parts[name])
                _sync(handle)
            files[name] = [len(parts[name]), hashlib.sha256(parts[name]).hexdigest()]
        line = {"documents": len(ids), "rows": int(np.sum(lengths, dtype=np.int64)), "files": files}
        with open(self.path / JOURNAL, "ab") as handle:
            handle.write((json.dumps(line) + "\n").encode())
            _sync(handle)
        self._journal.append(line)
        self.documents += line["documents"]
        if self.documents >= 2**31:
            raise UserError(f"'{self.path}' would hold more than 2^31 documents; build several indexes.")
        self.vectors += line["rows"]

    def finish(self, extra: Sequence[str] = ()) -> Segment:
        """Write the tables and segment.json. extra: further files of the folder, complete by now."""
        lengths = np.fromfile(self.path / "lengths.bin", np.uint32)
        save_array(self.path / "offsets.npy", _starts(lengths))
        save_array(self.path / "ids.offsets.npy", _starts(np.fromfile(self.path / "ids.lengths.bin", np.uint32)))
        hashed = np.empty(self.documents, np.uint64)
        start = 0
        for ids in self.ids():
            hashed[start : start + len(ids)] = hashes(ids)
            start += len(ids)
        order = np.argsort(hashed, kind="stable")
        save_array(self.path / "ids.hash.npy", hashed[order])
        save_array(self.path / "ids.order.npy", order)
        files: dict[str, Any] = {}
        for name in self._names:
            blocks = [line["files"][name] for line in self._journal]
            files[name] = {"bytes": sum(b[0] for b in blocks), "blocks": blocks}
        for name in ("offsets.npy", "ids.offsets.npy", "ids.hash.npy", "ids.order.npy", *extra):
            files[name] = file_facts(self.path / name)
        empty = int((lengths == 0).sum())
        for name in ("ids.lengths.bin", "lengths.bin"):  # the offsets say the same
            del files[name]
        write_json(
            self.path / FACTS,
            {
                "documents": self.documents,
                "documents_without_vectors": empty,
                "vectors": self.vectors,
                "arrays": {name: {**a, "rows": self.vectors} for name, a in self.arrays.items()},
                "kind": self._header["kind"],
                "files": files,
            },
        )
        for name in ("ids.lengths.bin", "lengths.bin", JOURNAL):
            (self.path / name).unlink(missing_ok=True)
        return Segment(self.path)


def _journal(path: Path) -> list[dict]:
    """The whole lines of a journal, header first; the last one may be torn."""
    lines: list[dict] = []
    if (path / JOURNAL).is_file():
        for text in (path / JOURNAL).read_bytes().split(b"\n")[:-1]:
            try:
                line = json.loads(text)
                if lines:
                    _ = line["documents"] + line["rows"] + sum(n for n, _ in line["files"].values())
            except (ValueError, TypeError, LookupError, AttributeError):
                break
            lines.append(line)
    return lines


def _starts(lengths: np.ndarray) -> np.ndarray:
    out = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, dtype=np.int64, out=out[1:])
    return out


def _sync(handle: IO[bytes]) -> None:
    handle.flush()
    os.fsync(handle.fileno())


__all__ = ["FACTS", "JOURNAL", "Segment", "SegmentWriter", "damaged", "load_array", "save_array"]
