"""Questions as rows of line files, one file a split, over passages that are read line by line: nothing is held whole.

What the data sets with large files have in common; ``dataset/<name>.py`` says what a row means.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from core.errors import UserError
from core.progress import progress
from core.records import Document, Example, ImageRef, Query
from dataset.draw import Draws, restrict
from dataset.lines import LineCorpus, Lines
from dataset.m2kr_rows import joined

T = TypeVar("T")
Row = tuple[str, dict[str, Any]]
"""A question's id and its fields."""

KEYS = {"train": "path", "valid": "valid_path", "test": "test_path"}


MANY = 100_000
"""Rows from which on reading all of them shows its progress."""

SPARSE = 20
"""Where fewer than one row in so many is wanted, rows are sought one by one instead of reading all."""


class Chosen(Sequence[T], Generic[T]):
    """``make(row)`` for some rows of one or more files, in ascending ``places``; made when it is asked for."""

    def __init__(self, files: Sequence[Lines[Row]], places: Sequence[int], make: Callable[[Row], T]) -> None:
        self._files, self._rows, self._places, self._make = files, joined(files), places, make

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position):
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        return self._make(self._rows[int(self._places[position])])

    def __iter__(self) -> Iterator[T]:
        """Reads through the files: that is many times faster than opening one for each row."""
        if len(self) * SPARSE < len(self._rows):
            yield from (self[i] for i in range(len(self)))
            return
        wanted = iter(self._places)
        following = next(wanted, None)
        for place, row in enumerate(chain.from_iterable(self._files)):
            if following is None:
                return
            if place == following:
                yield self._make(row)
                following = next(wanted, None)

    def through(self, make: Callable[[Row], T]) -> Chosen[T]:
        """The same rows, made otherwise."""
        return Chosen(self._files, self._places, make)


class LineData:
    """A data set of ``path``, ``valid_path``, ``test_path`` and ``passages``.

    Without valid_path, ``valid_samples`` of the training rows are held out, the same in every process and every run.
    Without test_path, validation rows are judged; without path there is no training.
    """

    train_split = "train"
    id_fields: tuple[str, ...] = ("id",)

    def __init__(self, config) -> None:
        self.config = config
        named = {"train": config.path, "valid": config.valid_path, "test": config.test_path}
        files = {split for split, path in named.items() if path is not None}
        if not files:
            raise UserError("none of data.path, data.valid_path and data.test_path is given; give at least one.")
        self.valid_split = "valid" if files & {"train", "valid"} else "test"
        self.test_splits = ("test",) if "test" in files else ("valid",)
        self._named = named
        self._files: dict[str, Lines[Row]] = {}
        self._chosen: dict[str, Chosen[Row]] = {}
        self._judged: dict[str, dict[str, dict[str, int]]] = {}
        self._usable: dict[str, Sequence[int]] = {}

    # ---- what a data set says of its rows

    def query(self, row: Row, split: str, rng: random.Random | None = None) -> Query:
        """rng: of a training example, for what is redrawn in every epoch."""
        raise NotImplementedError

    def positives(self, row: Row, split: str) -> dict[str, int]:
        """Passage id -> relevance."""
        raise NotImplementedError

    def negatives(self, row: Row) -> list[str]:
        """Ids of the passages that hard negatives are drawn from."""
        return []

    def shown(self, row: Row, split: str) -> tuple[ImageRef, ...]:
        """Every image that the row's query can show."""
        return self.query(row, split).images

    def keeps(self, row: Row) -> bool:
        """Whether the row is used. Where this is not overridden, rows are not read to know."""
        return True

    def read(self, path: str) -> Lines[Row]:
        return Lines(path, lambda id_, row: (id_, row), self.id_fields)

    def passages(self) -> LineCorpus:
        raise NotImplementedError

    # ---- the protocol

    def corpus(self) -> Sequence[Document]:
        if self.config.limit is None:
            return self._passages
        splits = [split for split in KEYS if self.has(split)]
        needed = dict.fromkeys(id_ for s in splits for judged in self.qrels(s).values() for id_ in judged)
        needed |= dict.fromkeys(d.id for d in self._passages[: len(needed) + self.config.limit])
        return [d for d in map(self._passages.get, needed) if d is not None]

    def queries(self, split: str) -> Sequence[Query]:
        return self.rows(split).through(lambda row: restrict(self.query(row, split), self.config.modality))

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        if split not in self._judged:
            self._judged[split] = {row[0]: self.positives(row, split) for row in self.rows(split)}
        return self._judged[split]

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        """The positive and the negatives are drawn anew in every epoch."""
        if split not in self._usable:
            self._usable[split] = self._with_passage(split)
        rows, usable = self.rows(split), self._usable[split]
        return Draws(len(usable), epoch, seed, lambda i, rng: self._example(rows[int(usable[i])], split, rng))

    def images(self) -> Sequence[ImageRef]:
        """Every image of the splits whose files are here, each once."""
        refs: dict[str, ImageRef] = {}
        for split in KEYS:
            if self.has(split):
                refs.update((ref.key, ref) for row in self.rows(split) for ref in self.shown(row, split))
        return [refs[key] for key in sorted(refs)]

    # ---- reading

    @cached_property
    def _passages(self) -> LineCorpus:
        return self.passages()

    def has(self, split: str) -> bool:
        """Whether the split can be read: its files are here."""
        paths = self._paths(split)
        return bool(paths) and all(Path(path).is_file() for path in paths)

    def rows(self, split: str) -> Chosen[Row]:
        if split not in KEYS:
            raise UserError(f"this data set has no split '{split}'; it has {', '.join(KEYS)}.")
        if split not in self._chosen:
            paths = self._paths(split)
            if not paths:
                raise UserError(f"data.{KEYS[split]} is not given, so there is no split '{split}'; give its file.")
            files = self._opened(paths)
            places: Sequence[int] = range(sum(map(len, files)))
            if type(self).keeps is not LineData.keeps:
                places = [i for i, row in enumerate(chain.from_iterable(files)) if self.keeps(row)]
            if split != "test" and self.config.valid_path is None:
                places = self._held(places, split, paths)
            self._chosen[split] = Chosen(files, places[: self.config.limit], lambda row: row)
        return self._chosen[split]

    def _paths(self, split: str) -> list[str]:
        held = split == "valid" and self._named["valid"] is None
        found = self._named["train" if held else split]
        return [found] if isinstance(found, str) else list(found or [])

    def _opened(self, paths: list[str]) -> list[Lines[Row]]:
        for path in paths:
            if path not in self._files:
                self._files[path] = self.read(path)
        return [self._files[path] for path in paths]

    def _held(self, places: Sequence[int], split: str, paths: list[str]) -> Sequence[int]:
        count, wanted = len(places), self.config.valid_samples
        if wanted >= count:
            raise UserError(
                f"data.valid_samples is {wanted} but '{paths[0]}' has {count} questions; ask for fewer, or give "
                "data.valid_path."
            )
        is_held = np.zeros(count, dtype=bool)
        is_held[random.Random(0).sample(range(count), wanted)] = True
        return np.asarray(places)[is_held == (split == "valid")]

    def _with_passage(self, split: str) -> Sequence[int]:
        """Places of the rows that can train: a passage that answers is among the passages."""
        known: dict[str, bool] = {}
        usable, first = [], None
        rows = self.rows(split)
        shown = progress(rows, f"answers of {split}") if len(rows) >= MANY else rows
        for place, row in enumerate(shown):
            for id_ in (found := self.positives(row, split)):
                if id_ not in known:
                    known[id_] = id_ in self._passages
            if any(known[id_] for id_ in found):
                usable.append(place)
            else:
                first = first or (row[0], next(iter(found), None))
        if first is not None:
            what = "names no passage that answers it" if first[1] is None else f"names '{first[1]}'"
            lacking = len(self.rows(split)) - len(usable)
            message = (
                f"{lacking} of {len(self.rows(split))} questions of '{split}' have no answer in "
                f"'{self._passages.path}': question '{first[0]}' {what}"
            )
            if not usable:
                raise UserError(f"{message}; give the passages file that belongs to these questions.")
            print(f"note: {message}; they do not train.", file=sys.stderr)
        return np.asarray(usable, dtype=np.int64)

    def _example(self, row: Row, split: str, rng: random.Random) -> Example:
        found = [id_ for id_ in self.positives(row, split) if id_ in self._passages]
        positive = self._passages.get(rng.choice(found))
        query = restrict(self.query(row, split, rng), self.config.modality)
        return Example(query, positive, self._negatives(row, set(found), rng))

    def _negatives(self, row: Row, positives: set[str], rng: random.Random) -> tuple[Document, ...]:
        wanted = getattr(self.config, "hard_negatives", 0)
        if not wanted:
            return ()
        offered = [id_ for id_ in dict.fromkeys(self.negatives(row)) if id_ not in positives]
        if len(offered) < wanted:
            raise UserError(
                f"question '{row[0]}' has {len(offered)} hard negatives, data.hard_negatives asks for {wanted}."
            )
        return tuple(self._passage(id_, row[0]) for id_ in rng.sample(offered, wanted))

    def _passage(self, id_: str, question: str) -> Document:
        found = self._passages.get(id_)
        if found is None:
            raise UserError(f"question '{question}' names passage '{id_}', which '{self._passages.path}' lacks.")
        return found


def strings(row: Row, field: str) -> tuple[str, ...]:
    """A string, a list of strings or numbers, or nothing."""
    found = row[1].get(field)
    found = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(x, (str, int, float)) and not isinstance(x, bool) for x in found):
        raise UserError(f"question '{row[0]}' has the {field} {found!r:.60}; write a string or a list of strings.")
    return tuple(map(str, found))


def text(row: Row, *fields: str) -> str:
    """The first of the fields that the row has; "" where it has none."""
    found = next((row[1][f] for f in fields if row[1].get(f) is not None), "")
    if not isinstance(found, str):
        raise UserError(f"question '{row[0]}' has the {fields[0]} {found!r:.60}; write a string.")
    return found
