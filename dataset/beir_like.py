"""A folder in the layout of BEIR (Thakur et al. 2021): corpus.jsonl, queries.jsonl and qrels/<split>.tsv.

Text alone, or with an ``image`` field, a path, in either file. Where to get one: ``docs/DATA.md``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from core.config import Strict
from core.errors import UserError
from core.records import Document, Example, ImageRef, Query
from dataset.draw import Draws, Modality, restrict
from dataset.jsonl import document, picture
from dataset.lines import LineCorpus, Lines
from dataset.m2kr_rows import Lazy
from dataset.qrels import read_qrels
from dataset.splits import Row, strings, text


class Config(Strict):
    """``data`` section for ``name: beir_like``.

    path: the folder. image_dir: pictures are relative to it; null: to the folder. valid_samples: where there is a
    qrels/train.tsv and no qrels/dev.tsv, so many of its queries validate and do not train. limit: use only the first N
    queries of every split, and the passages they need plus N others.
    """

    name: Literal["beir_like"] = "beir_like"
    path: str
    image_dir: str | None = None
    valid_samples: int = Field(512, ge=1)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class BeirLike:
    """A split is the queries that its qrels file names, in its order."""

    train_split = "train"

    def __init__(self, config: Config) -> None:
        self.config, self.folder = config, Path(config.path)
        self._judged: dict[str, dict[str, dict[str, int]]] = {}

    @property
    def files(self) -> dict[str, Path]:
        return {file.stem: file for file in sorted((self.folder / "qrels").glob("*.tsv"))}

    @cached_property
    def valid_split(self) -> str:
        return next((s for s in ("dev", "valid", "validation") if s in self.files), "valid" if self._holds else "test")

    @cached_property
    def test_splits(self) -> tuple[str, ...]:
        return ("test",) if "test" in self.files or not self.files else (self.valid_split,)

    @property
    def _holds(self) -> bool:
        """Whether validation queries are held out of the training ones."""
        return "train" in self.files and not {"dev", "valid", "validation"} & self.files.keys()

    # ---- the protocol

    def corpus(self) -> Sequence[Document]:
        if self.config.limit is None:
            return self._passages
        splits = {s for s in (*self.files, self.valid_split) if s in self.files or s == "valid"}
        needed = dict.fromkeys(id_ for s in sorted(splits) for judged in self.qrels(s).values() for id_ in judged)
        needed |= dict.fromkeys(d.id for d in self._passages[: len(needed) + self.config.limit])
        return [d for d in map(self._passages.get, needed) if d is not None]

    def queries(self, split: str) -> Sequence[Query]:
        ids = list(self.qrels(split))
        return Lazy(len(ids), lambda i: self._query(ids[i]))

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        if split not in self._judged:
            holds = self._holds and split in ("train", "valid")
            file = self.files.get("train" if holds else split)
            if file is None:
                have = ", ".join(self.files) or "none"
                raise UserError(f"'{self.folder}' has no qrels/{split}.tsv, so no split '{split}'; it has {have}.")
            judged = read_qrels(file)
            if holds:
                judged = self._part(judged, split, file)
            self._judged[split] = dict(list(judged.items())[: self.config.limit])
        return self._judged[split]

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        """A positive is drawn anew in every epoch; of graded ones all count."""
        judged = self.qrels(split)
        ids = [id_ for id_, found in judged.items() if found]

        def make(position: int, rng: random.Random) -> Example:
            id_ = ids[position]
            positive = self._passages.get(rng.choice(list(judged[id_])))
            if positive is None:
                raise UserError(f"query '{id_}' has an answer that '{self._passages.path}' lacks; correct its qrels.")
            return Example(self._query(id_), positive)

        return Draws(len(ids), epoch, seed, make)

    def images(self) -> Sequence[ImageRef]:
        """Every image of the queries and the passages, each once."""
        refs = {ref.key: ref for row in self._rows for ref in self._pictures(row)}
        refs.update((ref.key, ref) for document in self._passages for ref in document.images)
        return [refs[key] for key in sorted(refs)]

    # ---- reading

    def _part(self, judged: dict, split: str, file: Path) -> dict:
        wanted = self.config.valid_samples
        if wanted >= len(judged):
            raise UserError(
                f"data.valid_samples is {wanted} but '{file}' has {len(judged)} queries and there is no "
                f"'{file.with_name('dev.tsv')}'; ask for fewer."
            )
        held = set(random.Random(0).sample(sorted(judged), wanted))
        return {id_: found for id_, found in judged.items() if (id_ in held) == (split == "valid")}

    def _query(self, id_: str) -> Query:
        row = self._rows.get(id_)
        if row is None:
            raise UserError(f"the qrels name query '{id_}', which '{self._rows.path}' lacks; correct one of them.")
        found = Query(id_, text(row, "text"), self._pictures(row), text(row, "instruction"))
        return restrict(found, self.config.modality)

    def _pictures(self, row: Row) -> tuple[ImageRef, ...]:
        return tuple(picture(path, self._images) for path in strings(row, "image") if path)

    @cached_property
    def _rows(self) -> Lines[Row]:
        return Lines(self.folder / "queries.jsonl", lambda id_, row: (id_, row), ("_id", "id"))

    @cached_property
    def _passages(self) -> LineCorpus:
        return LineCorpus(self.folder / "corpus.jsonl", self._document, ("_id", "id"))

    @property
    def _images(self) -> str:
        return self.config.path if self.config.image_dir is None else self.config.image_dir

    def _document(self, id_: str, row: dict[str, Any]) -> Document:
        return document(id_, row, self._images)


def build(config: Config) -> BeirLike:
    """The data set of a validated ``data`` section."""
    return BeirLike(config)
