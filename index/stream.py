"""Reading the stream of (id, vectors): every document checked, grouped into blocks, never held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import UserError
from index.segment import SegmentWriter, hashes

BLOCK_ROWS = 1 << 17
"""Rows of one block: what is in memory at once, and what a kill can cost. 32 MB at 128 float16 dimensions."""

BLOCK_DOCS = 1 << 14
"""Documents of one block, reached first when documents are single vectors."""


@dataclass
class Block:
    ids: list[str]
    lengths: np.ndarray
    """[n] int64: vectors per document."""
    vectors: np.ndarray
    """[sum(lengths), dim]."""


class DifferentStream(UserError):
    """The stream is not the one that was begun."""


class Known:
    """A set of ids as sorted 64-bit hashes: 8 bytes each where a set of strings takes above 100."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, hashed: np.ndarray) -> np.ndarray:
        """hashed [n] uint64 -> [n] bool: which of them were known, or stand twice here."""
        order = np.argsort(hashed, kind="stable")
        ordered = hashed[order]
        twice = np.zeros(len(hashed), dtype=bool)
        twice[order[1:]] = ordered[1:] == ordered[:-1]
        for run in self._runs:
            at = np.searchsorted(run, hashed)
            twice |= run[np.minimum(at, len(run) - 1)] == hashed
        self._runs.append(ordered)
        # Merging runs of like size keeps their number at the logarithm of the count.
        while len(self._runs) > 1 and len(self._runs[-1]) * 2 >= len(self._runs[-2]):
            self._runs.append(np.sort(np.concatenate([self._runs.pop(), self._runs.pop()]), kind="stable"))
        return twice


def check_id(id_: object, position: int) -> str:
    if not isinstance(id_, str):
        raise UserError(f"document {position} has the id {id_!r} of type {type(id_).__name__}; write str(id).")
    if not id_.strip():
        raise UserError(f"document {position} has an empty id ({id_!r}); give every document a non-empty id.")
    try:
        id_.encode()
    except UnicodeEncodeError:
        raise UserError(f"document {position} has the id {id_!r}, which UTF-8 cannot write; give another.") from None
    return id_


def check_vectors(id_: str, vectors: np.ndarray | None, dim: int, dtype: str) -> np.ndarray:
    """[n, dim] of ``dtype``, a copy: the caller may reuse its buffer."""
    if vectors is None:
        raise UserError(f"document '{id_}' came without vectors and is not in the index yet; give its vectors.")
    given = np.asarray(vectors)
    if given.ndim != 2 or given.shape[1] != dim:
        raise UserError(
            f"the vectors of document '{id_}' have shape {given.shape}, the index wants [n, {dim}]; "
            "check dim= and write a single vector as [1, d]."
        )
    with np.errstate(over="ignore"):
        rows = np.array(given, dtype=dtype)
    if not np.isfinite(rows).all():
        raise UserError(
            f"the vectors of document '{id_}' hold NaN or infinity as {np.dtype(dtype)}; check its text or the encoder."
        )
    return rows


def blocks(
    stream: Iterable[tuple[str, np.ndarray | None]],
    done: SegmentWriter,
    dim: int,
    dtype: str,
    taken: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Iterator[Block]:
    """Blocks of what ``done`` does not hold yet; the documents it holds must come first in the stream, in order.

    Vectors of documents that are ``done`` may be None. taken: ids -> [n] bool, which of them the index holds already.
    Raises DifferentStream when the stream begins otherwise or ends too early.
    """
    known, position = Known(), 0
    iterator = iter(stream)
    for expected in done.ids():
        for wanted in expected:
            id_, _ = next(iterator, (None, None))
            if id_ != wanted:
                raise DifferentStream(_different(done, position, wanted, id_))
            position += 1
        known.add(hashes(expected))
    ids: list[str] = []
    pending: list[np.ndarray] = []
    rows = 0

    def block() -> Block:
        twice = known.add(hashes(ids))
        for i in np.flatnonzero(twice).tolist():
            if ids[i] in ids[:i] or any(ids[i] in earlier for earlier in done.ids()):  # not two ids of one hash
                where = position - len(ids) + i
                raise UserError(f"id '{ids[i]}' stands twice (again at document {where}); drop or rename one of them.")
        if taken is not None and (there := np.flatnonzero(taken(ids))).size:
            raise UserError(
                f"id '{ids[there[0]]}' is in the index already; delete it first, or give the document another id."
            )
        return Block(ids, np.array([len(v) for v in pending], dtype=np.int64), np.concatenate(pending))

    for id_, vectors in iterator:
        id_ = check_id(id_, position)
        row = check_vectors(id_, vectors, dim, dtype)
        if ids and (rows + len(row) > BLOCK_ROWS or len(ids) == BLOCK_DOCS):
            yield block()
            ids, pending, rows = [], [], 0
        ids.append(id_)
        pending.append(row)
        rows += len(row)
        position += 1
    if ids:
        yield block()
    if not position:
        raise UserError(f"no documents were given for the index '{done.path.parent}'; give at least one.")


def _different(done: SegmentWriter, position: int, wanted: str, found: str | None) -> str:
    place, remedy = f"'{done.path}'", "give the same documents in the same order, or delete it."
    if found is None:
        return (
            f"the stream ended after {position} documents, but {place} already holds {done.documents} of them; {remedy}"
        )
    return f"document {position} of the stream is '{found}', but {place} was begun with '{wanted}' there; {remedy}"
