"""Dividing a long walk over an input among processes that may be killed. Not a command of its own.

A stage walks over its input in blocks of records; shard i of n does the blocks whose number leaves i when divided by n.
What a shard has done lies in a journal whose state says how many bytes of it count, so a killed stage goes on behind
its last commit and nothing is done or written twice. The merge takes the lines of all shards in the order of the input.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import only_writer, read_json, write_json
from dataset.conversations import items, size

COMMIT_SECONDS = 1.0
"""A journal is committed when so much time has passed since the last commit, and at the end."""


@dataclass(frozen=True)
class Shard:
    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        number, slash, of = text.partition("/")
        if not (slash and number.isdigit() and of.isdigit() and int(number) < int(of)):
            raise UserError(f"--shard {text}: write i/n with i from 0 to n - 1, such as 0/4 for the first of four.")
        return cls(int(number), int(of))

    def owns(self, block: int) -> bool:
        return block % self.of == self.number


def shard_of(text: str | None) -> Shard:
    """What --shard says; without it, this process's share among those that torchrun started."""
    from core import distributed

    if text is None:
        return Shard(distributed.rank(), distributed.world())
    if distributed.world() > 1:
        raise UserError(f"--shard {text} and torchrun both divide the work; use one of them.")
    return Shard.parse(text)


class Journal:
    """Lines of one shard and stage, and the state behind the last of them that counts."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.lines, self.file = self.folder / "lines.jsonl", self.folder / "state.json"
        self.state: dict[str, Any] = {"bytes": 0, "complete": False}
        if self.file.is_file():
            self.state = read_json(self.file, "journal state")
            if not self.lines.is_file() or self.lines.stat().st_size < self.state["bytes"]:
                raise UserError(f"the journal '{self.lines}' is shorter than its state says; delete '{self.folder}'.")

    @property
    def complete(self) -> bool:
        return self.state["complete"]

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[Iterable[dict], dict], None]]:
        """A function that appends rows and the state behind them; what is behind the last state is cut off first."""
        with only_writer(self.folder, "share of this recipe"), open(self.lines, "ab") as handle:
            handle.truncate(self.state["bytes"])

            def commit(rows: Iterable[dict], state: dict[str, Any]) -> None:
                for row in rows:
                    handle.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
                self.state = {"complete": False, **state, "bytes": handle.tell()}
                write_json(self.file, self.state)

            yield commit

    def rows(self) -> Iterator[dict]:
        with open(self.lines, "rb") as handle:
            for line in handle:
                yield json.loads(line)


@dataclass(frozen=True)
class Source:
    """Files that are one input, read in order. A place in it is (file, byte, number of the next item)."""

    paths: Sequence[str]
    limit: int | None = None
    unit = "kB"

    def read(self, place: Sequence[int] = (0, 0, 0)) -> Iterator[tuple[int, Any, tuple[int, int, int]]]:
        """(number, item, the place behind it); numbers go on from file to file."""
        at, start, number = place
        before = number
        for file in range(at, len(self.paths)):
            # The reader's own numbers are for messages; 0 is special, the first line of a file.
            for item in items(self.paths[file], start, max(1, number) if start else 0):
                if self.limit is not None and number >= self.limit:
                    return
                number += 1
                yield number - 1, item, (file, item.end, number)
            start = 0
        if number == 0 == before:
            raise UserError(f"there is nothing in {', '.join(map(str, self.paths))}; give files with records.")

    def facts(self) -> list:
        """What tells these files from others."""
        sizes = [size(path) for path in self.paths]
        return [[str(p), s, Path(p).stat().st_mtime_ns] for p, s in zip(self.paths, sizes)] + [self.limit]

    def passed(self, place: Sequence[int]) -> int:
        """kB before a place."""
        sizes = [size(path) for path in self.paths]
        return sum(sizes[: place[0]]) + min(place[1], sizes[place[0]]) >> 10

    def total(self) -> int:
        return sum(size(path) for path in self.paths) >> 10


@dataclass(frozen=True)
class Listed:
    """A sequence as an input."""

    records: Sequence
    unit = "query"

    def read(self, place: Sequence[int] = (0, 0, 0)) -> Iterator[tuple[int, Any, tuple[int, int, int]]]:
        for number in range(place[2], len(self.records)):
            yield number, self.records[number], (0, 0, number + 1)

    def passed(self, place: Sequence[int]) -> int:
        return place[2]

    def total(self) -> int:
        return len(self.records)


def run_share(journal: Journal, source: Source | Listed, shard: Shard, block: int, worker: Any, what: str) -> None:
    """Do this shard's blocks of ``source`` and journal what ``worker`` makes of them.

    worker(items, own): rows, each with "n", the number of its item; called with every block in order, ``own`` false for
    those of other shards (whose rows must be none). worker.state(): what it needs to go on; worker.go_on(state).
    """
    from core.progress import progress

    if journal.complete:
        return
    place = tuple(journal.state.get("place", (0, 0, 0)))
    if "worker" in journal.state:
        worker.go_on(journal.state["worker"])
    rows: list[dict] = []
    last = time.monotonic()
    with journal.writing() as commit, progress(None, what, total=source.total(), unit=source.unit) as bar:
        bar.update(source.passed(place) - bar.n)
        for number, part, behind in blocks(source, place, block):
            rows += worker(part, shard.owns(number))
            place = behind
            bar.update(source.passed(place) - bar.n)
            if time.monotonic() - last >= COMMIT_SECONDS:
                commit(rows, {"place": place, "worker": worker.state()})
                rows, last = [], time.monotonic()
        commit(rows, {"place": place, "worker": worker.state(), "complete": True})


def blocks(
    source: Source | Listed, place: Sequence[int], block: int
) -> Iterator[tuple[int, list, tuple[int, int, int]]]:
    """(number of the block, its (number, item) pairs, the place behind it)."""
    part: list = []
    for number, item, behind in source.read(place):
        part.append((number, item))
        if (number + 1) % block == 0:
            yield number // block, part, behind
            part = []
    if part:
        yield part[0][0] // block, part, behind


def merged(journals: Sequence[Journal]) -> Iterator[dict]:
    """The rows of all shards in the order of the input."""
    return heapq.merge(*(journal.rows() for journal in journals), key=lambda row: row["n"])
