"""Rows of a data set in the Hugging Face hub's layouts, read one at a time: parquet, Arrow as save_to_disk leaves it,
or JSON lines. Needs pyarrow for the first two, and never the ``datasets`` library."""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from core.errors import UserError
from core.records import Document
from dataset.lines import Lines

T = TypeVar("T")


class Lazy(Sequence[T]):
    """``make(position)`` for every position, when it is asked for."""

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position):
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(self._length))]
        if not -self._length <= position < self._length:
            raise IndexError(position)
        return self._make(position % self._length)


def joined(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """Several sequences one after another."""
    if len(parts) == 1:
        return parts[0]
    ends = list(accumulate(map(len, parts)))

    def make(position: int) -> T:
        part = bisect_right(ends, position)
        return parts[part][position - (ends[part - 1] if part else 0)]

    return Lazy(ends[-1] if ends else 0, make)


class Rows(Sequence[dict[str, Any]]):
    """Rows as dicts of the wanted ``fields``; a field that the files lack, and a null, is None."""

    def __init__(self, files: Sequence[Path], fields: Sequence[str]) -> None:
        self.files, self.fields = list(files), tuple(fields)
        self._length, self._row, self._column = (_json if files[0].suffix == ".jsonl" else _arrow)(self.files, fields)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> dict[str, Any]:
        if not 0 <= position < self._length:
            raise IndexError(position)
        return self._row(position)

    def column(self, field: str) -> Iterator[Any]:
        """One field of every row, in order, without reading the others where the format allows it."""
        return self._column(field)

    def where(self, position: int) -> str:
        """A row's place, for messages."""
        return f"row {position} of '{self.files[0].parent / self.files[0].name}'" + (
            f" and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        )


class Passages(Sequence[Document]):
    """A passages file as documents, made when asked for. One id twice with the same text is one document."""

    def __init__(self, files: Sequence[Path], make: Callable[[str, str], Document], prefix: str = "") -> None:
        """make: (id, text) -> document. prefix: of every id."""
        self.rows, self.make = Rows(files, ("passage_id", "passage_content")), make
        self.places: dict[str, int] = {}
        repeated = 0
        for place, id_ in enumerate(self.rows.column("passage_id")):
            name = prefix + id_of(id_, self.rows, place)
            if name in self.places:
                self._same(name, place)
                repeated += 1
            else:
                self.places[name] = place
        self._order = list(self.places)
        if repeated:
            print(
                f"note: '{files[0].parent}' repeats {repeated} passages word for word; each counts once.",
                file=sys.stderr,
            )

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position):
        if isinstance(position, slice):
            return [self.of(id_) for id_ in self._order[position]]
        return self.of(self._order[position])

    def of(self, id_: str) -> Document:
        if id_ not in self.places:
            raise UserError(f"passage '{id_}' is not in '{self.rows.files[0].parent}'; correct pos_item_ids.")
        content = self.rows[self.places[id_]]["passage_content"]
        if not isinstance(content, str):
            raise UserError(f"passage '{id_}' has the passage_content {content!r:.40}; write a string.")
        return self.make(id_, content)

    def _same(self, name: str, place: int) -> None:
        first = self.places[name]
        if self.rows[first]["passage_content"] != self.rows[place]["passage_content"]:
            raise UserError(
                f"passage id '{name}' stands twice with different texts ({self.rows.where(first)}, and row {place}); "
                "drop or rename one of them."
            )


def id_of(value: Any, rows: Rows, place: int) -> str:
    """Ids may be numbers; they become strings."""
    if value is None or isinstance(value, (bool, float)) or not str(value).strip():
        raise UserError(f"{rows.where(place)} has the id {value!r}; give every row a string or a whole number.")
    return str(value)


def find(folder: Path, split: str) -> list[Path]:
    """The files of a split in ``folder``; empty when there are none.

    <split>-00000-of-00003.parquet ... or <split>.parquet (the hub), <split>/data-00000-of-00002.arrow ...
    (save_to_disk), or <split>.jsonl here or as <folder>.<split>.jsonl beside the folder.
    """
    kinds = [
        [*sorted(folder.glob(f"{split}-[0-9]*.parquet")), *folder.glob(f"{split}.parquet")],
        sorted((folder / split).glob("data-[0-9]*.arrow")),
        [f for f in (folder / f"{split}.jsonl", folder.with_name(f"{folder.name}.{split}.jsonl")) if f.is_file()],
    ]
    found = [files for files in kinds if files]
    if len(found) > 1 or (found and found[0][0].suffix == ".jsonl" and len(found[0]) > 1):
        names = " and ".join(f"'{files[0]}'" for files in (found if len(found) > 1 else [[f] for f in found[0]]))
        raise UserError(f"split '{split}' is here twice: {names}; keep one.")
    files = found[0] if found else []
    numbered = [re.search(r"-(\d+)-of-(\d+)\.", f.name) for f in files]
    total = int(numbered[0][2]) if numbered and numbered[0] else len(files)
    if total != len(files):
        raise UserError(f"{len(files)} of the {total} files of split '{split}' are in '{folder}'; finish the download.")
    return files


def fetch(repo: str, patterns: Sequence[str], folder: Path) -> None:
    """Download the files of a hub data set that match into ``folder``, in the hub's layout."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(repo, repo_type="dataset", allow_patterns=list(patterns), local_dir=folder)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"data.repo '{repo}' cannot be downloaded ({reason}); put its files into '{folder}' on a machine with a "
            "connection, or correct the name."
        ) from None


def _arrow(files: Sequence[Path], fields: Sequence[str]) -> tuple:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise UserError(
            f"'{files[0]}' needs pyarrow; install it with: pip install pyarrow (JSON lines need nothing)"
        ) from None
    tables = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                present = parquet.read_schema(file).names
                table = parquet.read_table(file, columns=[f for f in fields if f in present], memory_map=True)
            else:  # stays on disk
                table = ipc.open_stream(pyarrow.memory_map(str(file))).read_all()
                table = table.select([f for f in fields if f in table.column_names])
        except (pyarrow.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise UserError(f"data file '{file}' cannot be read ({reason}); download it again.") from None
        tables.append(table)
    try:
        table = pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"the files beside '{files[0]}' do not fit together ({reason}); download them again.") from None
    columns = {name: table.column(name) for name in table.column_names}

    def row(position: int) -> dict[str, Any]:
        return {f: columns[f][position].as_py() if f in columns else None for f in fields}

    def column(field: str) -> Iterator[Any]:
        if field not in columns:
            return iter([None] * len(table))
        return (value for chunk in columns[field].chunks for value in chunk.to_pylist())

    return len(table), row, column


def _json(files: Sequence[Path], fields: Sequence[str]) -> tuple:
    (file,) = files
    rows = Lines(file, lambda _, row: {field: row.get(field) for field in fields}, ())
    return len(rows), rows.__getitem__, lambda field: (row[field] for row in rows)
