"""Passages by the million: a file of JSON lines, CSV or TSV read through an index of its lines, never loaded whole."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from core.errors import UserError
from core.files import atomic_file, fingerprint
from core.progress import progress
from core.records import Document

T = TypeVar("T")

KEPT_FROM = 1 << 24
"""Bytes of a file whose index is worth keeping: smaller ones are read in a moment."""

COLLECTION = ["id", "text", "title"]
"""Columns of a .tsv, which has no line that names them: ColBERT's collections."""


WRONG = (ValueError, csv.Error, RecursionError)
"""What a row that cannot be read raises: no JSON, no UTF-8, a quotation without end, or what ``make`` says."""


class Lines(Sequence[T]):
    """``make(id, row)`` for every row of a file, when it is asked for; rows are found by place and by id.

    .csv: its first line names the columns. .tsv: see ``COLLECTION``. Every other file: JSON lines. The index is a
    matrix [3, rows] of 64-bit numbers, 24 bytes a row: where each row begins; a hash of each id, sorted; and the place
    of each of these ids. Of a large file it is kept in ``.<name>.<key>.lines.npy`` beside it, mapped and not loaded.
    Slices are views; ``id in lines`` and ``get(id)`` read the one row.
    """

    what, remedy = "data file", "correct or remove that line"
    first_counts = False  # of rows with one id and different contents, instead of an error

    def __init__(self, path: str | Path, make: Callable[[str, dict[str, Any]], T], id_fields: Sequence[str]) -> None:
        """id_fields: the first of them that a row has is its id, a string or a whole number; with none, rows have no
        ids and ``make`` is given their places. make: a ValueError of it says what is wrong with the row."""
        self.path, self.id_fields, self._make = Path(path), tuple(id_fields), make
        try:
            with open(self.path, "rb") as handle:
                if handle.read(2) == b"\x1f\x8b":
                    raise UserError(
                        f"{self.what} '{path}' is packed, and single lines are read from it; unpack it first: "
                        f"gunzip -k '{path}'"
                    )
                handle.seek(0)
                self._header, self._begin = self._columns(handle)
                self._index = self._known() if (index := self._kept()) is None else index
        except OSError as error:
            raise UserError(unreadable(self.what, path, error)) from None
        self._chosen = range(self._index.shape[1])

    # ---- by place

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, position):
        if isinstance(position, slice):
            view = copy.copy(self)
            view._chosen = self._chosen[position]
            return view
        place = self._chosen[position]
        with open(self.path, "rb") as handle:
            return self._at(handle, place)

    def __iter__(self) -> Iterator[T]:
        with open(self.path, "rb") as handle:
            for place in self._chosen:
                yield self._at(handle, place)

    # ---- by id

    def get(self, id_: str) -> T | None:
        """What has this id; None when nothing here has it."""
        if not self.id_fields:
            raise UserError(f"the rows of '{self.path}' have no ids; ask for places.")
        starts, hashes, places = self._index
        wanted = np.uint64(_hash(id_))
        first, end = (int(np.searchsorted(hashes, wanted, side)) for side in ("left", "right"))
        if first == end:
            return None
        with open(self.path, "rb") as handle:
            for place in map(int, places[first:end]):
                found, row = self._row(handle, int(starts[place]))
                if found == id_ and place in self._chosen:
                    return self._make(found, row)
        return None

    def __contains__(self, item: object) -> bool:
        """Whether a row has this id, or, of anything but a string, whether it is one of the items."""
        return self.get(item) is not None if isinstance(item, str) else super().__contains__(item)

    def where(self, position: int) -> str:
        """A row's line, for messages."""
        return f"line {self._line(int(self._index[0, self._chosen[position]]))} of '{self.path}'"

    # ---- reading one row

    def _at(self, handle: IO[bytes], place: int) -> T:
        start = int(self._index[0, place])
        try:
            id_, row = self._row(handle, start)
            return self._make(id_ if self.id_fields else str(place), row)
        except WRONG as error:
            raise self._wrong(start, error) from None

    def _row(self, handle: IO[bytes], start: int) -> tuple[str, dict[str, Any]]:
        handle.seek(start)
        if self._header is None:
            return self._parsed(handle.readline())
        return self._named(next(self._reader(handle), []))

    def _parsed(self, line: bytes) -> tuple[str, dict[str, Any]]:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"it is {row!r:.40}, not an object")
        return self._id(row), row

    def _named(self, values: list[str]) -> tuple[str, dict[str, Any]]:
        row = dict(zip(self._header, values, strict=False))  # a short row lacks its last columns
        return self._id(row), row

    def _id(self, row: dict[str, Any]) -> str:
        if not self.id_fields:
            return ""
        found = next((row[f] for f in self.id_fields if row.get(f) is not None), None)
        if found is None:
            raise ValueError(f"it has no {' or '.join(self.id_fields)}")
        if isinstance(found, bool) or not isinstance(found, (str, int)):
            raise ValueError(f"it has the id {found!r:.40}, which is no string and no whole number")
        return str(found)

    def _reader(self, lines) -> Any:
        decoded = (line.decode("utf-8") for line in lines)
        if self.path.suffix == ".csv":
            return csv.reader(decoded)
        return csv.reader(decoded, delimiter="\t", quoting=csv.QUOTE_NONE)

    def _columns(self, handle: IO[bytes]) -> tuple[list[str] | None, int]:
        """Names of the columns, and where the first row begins; None of JSON lines."""
        if self.path.suffix == ".tsv":
            return COLLECTION, 0
        if self.path.suffix != ".csv":
            return None, 0
        try:
            first = next(iter(handle), b"")
            return next(csv.reader([first.decode("utf-8-sig")]), []), len(first)
        except WRONG as error:
            raise self._wrong(0, error) from None

    # ---- the index

    def _known(self) -> np.ndarray:
        starts, hashes = array("Q"), array("Q")
        size = self.path.stat().st_size
        bar = progress(None, f"lines of {self.path.name}", total=size >> 20, unit="MB") if size >= KEPT_FROM else None
        for start, id_ in self._scan():
            starts.append(start)
            if self.id_fields:
                hashes.append(_hash(id_))
            if bar is not None and len(starts) % 10_000 == 0:
                bar.update((start >> 20) - bar.n)
        if bar is not None:
            bar.close()
        index = np.zeros((3, len(starts)), dtype=np.uint64)
        index[0] = np.frombuffer(starts, dtype=np.uint64) if starts else 0
        if self.id_fields and starts:
            index = self._sorted(index, np.frombuffer(hashes, dtype=np.uint64))
        self._keep(index)
        return index

    def _scan(self) -> Iterator[tuple[int, str]]:
        """Where every row begins, and its id; each row is made once, so that a wrong one is known before long work."""
        place = start = self._begin

        def lines(handle: IO[bytes]) -> Iterator[bytes]:
            nonlocal place, start
            for line in handle:
                start, place = place, place + len(line)
                yield line

        with open(self.path, "rb") as handle:
            handle.seek(self._begin)
            rows = self._reader(lines(handle)) if self._header else lines(handle)
            while True:
                begin = place  # a quoted text may go over several lines: the reader takes those it needs
                try:
                    values = next(rows, None)
                    if values is None:
                        return
                    if not (values if self._header else values.strip()):
                        continue  # a blank line
                    id_, row = self._named(values) if self._header else self._parsed(values)
                    self._make(id_ if self.id_fields else "0", row)
                except WRONG as error:
                    raise self._wrong(begin, error) from None
                yield begin, id_

    def _sorted(self, index: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """With the sorted hashes and their places; rows that repeat an earlier one word for word are left out."""
        order = np.argsort(hashes, kind="stable")
        met = hashes[order]
        repeated = set()
        with open(self.path, "rb") as handle:
            for i in np.flatnonzero(met[1:] == met[:-1]):  # the same id, or once in a great while the same hash
                first, second = (int(index[0, order[j]]) for j in (i, i + 1))
                (id_, row), (other, again) = self._row(handle, first), self._row(handle, second)
                if id_ != other:
                    continue
                if row != again and not self.first_counts:
                    raise UserError(
                        f"id '{id_}' stands twice in '{self.path}' (lines {self._line(first)} and "
                        f"{self._line(second)}), with different contents; drop or rename one of them."
                    )
                repeated.add(int(order[i + 1]))
        if repeated:
            print(
                f"note: '{self.path}' repeats {len(repeated)} rows"
                + ("; of each id the first counts." if self.first_counts else " word for word; each counts once."),
                file=sys.stderr,
            )
            kept = np.ones(len(hashes), dtype=bool)
            kept[list(repeated)] = False
            return self._sorted(index[:, kept], hashes[kept])
        index[1], index[2] = met, order
        return index

    def _file(self) -> Path:
        facts = self.path.stat()
        key = fingerprint({"size": facts.st_size, "mtime": facts.st_mtime_ns, "ids": self.id_fields, "format": 1})
        return self.path.with_name(f".{self.path.name}.{key}.lines.npy")

    def _kept(self) -> np.ndarray | None:
        if self.path.stat().st_size < KEPT_FROM or not self._file().is_file():
            return None
        try:
            index = np.load(self._file(), mmap_mode="r")
        except (ValueError, EOFError):
            return None  # damaged: made anew
        return index if index.ndim == 2 and len(index) == 3 and index.dtype == np.uint64 else None

    def _keep(self, index: np.ndarray) -> None:
        if self.path.stat().st_size < KEPT_FROM:
            return
        file = self._file()
        try:
            for old in self.path.parent.glob(f".{self.path.name}.*.lines.npy"):
                if old.stat().st_mtime < self.path.stat().st_mtime:  # of the file as it was before
                    old.unlink()
            with atomic_file(file) as handle:
                np.save(handle, index)
        except OSError as error:
            print(
                f"note: the lines of '{self.path}' are found anew every time, since '{file.parent}' cannot be written "
                f"({error.strerror}).",
                file=sys.stderr,
            )

    # ---- messages

    def _line(self, start: int) -> int:
        """1 for the first. Counted when it is asked for: only messages want it."""
        with open(self.path, "rb") as handle:
            before, count = start, 1
            while before > 0 and (block := handle.read(min(before, 1 << 20))):
                count, before = count + block.count(b"\n"), before - len(block)
        return count

    def _wrong(self, start: int, error: Exception) -> UserError:
        reason = f"it is not UTF-8, byte {error.start}" if isinstance(error, UnicodeDecodeError) else error
        return UserError(f"line {self._line(start)} of '{self.path}' is wrong ({reason}); {self.remedy}.")


class LineCorpus(Lines[Document]):
    """A passages file as documents."""

    what = "passages file"
    remedy = 'write {"id": ..., "text": ...} on its line, or the columns id and text'

    def __init__(
        self,
        path: str | Path,
        make: Callable[[str, dict[str, Any]], Document] | None = None,
        id_fields: Sequence[str] = ("id", "kid"),
    ) -> None:
        """make: another document than ``id``, ``text`` and ``title``, the row's other fields in ``meta``."""
        super().__init__(path, make or (lambda id_, row: passage(id_, row, id_fields)), id_fields)


def passage(id_: str, row: dict[str, Any], id_fields: Sequence[str] = ("id", "kid")) -> Document:
    meta = {k: v for k, v in row.items() if k not in ("text", "title", *id_fields)}
    return Document(id_, string(row, "text"), title=string(row, "title", ""), meta=meta)


def string(row: dict[str, Any], field: str, otherwise: str | None = None) -> str:
    """A field that must be a string where it stands; ``otherwise`` stands for it where it does not."""
    found = row.get(field, otherwise)
    if not isinstance(found, str):
        raise ValueError(f"it has the {field} {found!r:.40}, which is no string")
    return found


def unreadable(what: str, path: str | Path, error: Exception) -> str:
    """One sentence for a file that is absent, a folder, forbidden or not text."""
    if isinstance(error, FileNotFoundError):
        return f"{what} '{path}' does not exist; check the path."
    if isinstance(error, UnicodeDecodeError):
        return f"{what} '{path}' is not UTF-8 (byte {error.start}); save it as UTF-8."
    return f"{what} '{path}' cannot be read ({getattr(error, 'strerror', error)}); give a file."


def _hash(id_: str) -> int:
    return int.from_bytes(hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
