"""Records: what is asked and what can answer. Frozen, without tokens and without decoded pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from core.errors import UserError


@dataclass(frozen=True)
class ImageRef:
    """Where an image is. Exactly one of ``path``, ``data`` or ``tsv`` says so.

    id: stable name, the key of every cache. path: file on disk. data: encoded bytes (JPEG, PNG, ...).
    tsv: (file, byte offset of the line) of a base64 TSV such as WebQA's ``imgs.tsv``.
    box: (left, top, right, bottom) in pixels; a region of interest is an ImageRef with a box.
    """

    id: str
    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    tsv: tuple[str, int] | None = None
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        _check_id(self.id, "image")
        if sum(x is not None for x in (self.path, self.data, self.tsv)) != 1:
            raise UserError(f"image '{self.id}' needs exactly one of path, data or tsv; give one of them.")

    @property
    def key(self) -> str:
        """Cache key: the id, with the box when there is one."""
        return self.id if self.box is None else f"{self.id}#{','.join(f'{v:g}' for v in self.box)}"


@dataclass(frozen=True)
class Query:
    """A question, an image, or both. Which fields are present is the modality."""

    id: str
    text: str = ""
    images: tuple[ImageRef, ...] = ()
    instruction: str = ""
    task: str = ""
    meta: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        _check_id(self.id, "query")


@dataclass(frozen=True)
class Document:
    """What can answer: a passage, an image, or both."""

    id: str
    text: str = ""
    images: tuple[ImageRef, ...] = ()
    title: str = ""
    meta: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        _check_id(self.id, "document")


@dataclass(frozen=True)
class Example:
    """One training item: a query, its positive and ``nways - 1`` hard negatives."""

    query: Query
    positive: Document
    negatives: tuple[Document, ...] = ()


def _check_id(value: object, kind: str) -> None:
    if not isinstance(value, str):
        raise UserError(f"{kind} id {value!r} is {type(value).__name__}, not a string; write str(id).")
    if not value.strip():
        raise UserError(f"a {kind} has an empty id ({value!r}); give every {kind} a non-empty string id.")


Record = TypeVar("Record", Query, Document)


def unique(records: Iterable[Record]) -> Iterator[Record]:
    """Pass records through; a repeated id is an error that names it (a second answer to one name is never silent)."""
    seen: dict[str, int] = {}
    for position, record in enumerate(records):
        if record.id in seen:
            raise UserError(
                f"id '{record.id}' stands twice (records {seen[record.id]} and {position}); ids must be unique: "
                "drop or rename one of them."
            )
        seen[record.id] = position
        yield record
