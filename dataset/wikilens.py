"""WikiLens: a picture and a question about a thing in it; the answer is one of about 10,000 Wikipedia leads.

A picture shows one thing or a scene of three (emoji artwork, and photographs in one test split). In a scene the
question says which of the three is meant, by its kind, and every question asks for the article of the thing itself or
of the group it belongs to. Built by ``scripts/build_wikilens.py``; its manifest says how far the question or the image
alone can get.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from core.config import Strict
from core.errors import UserError
from core.files import read_json
from core.records import Document, Example, ImageRef, Query
from dataset.draw import Draws, Modality, restrict
from dataset.records_json import limited, read_passages, read_records


class Config(Strict):
    """``data`` section for ``name: wikilens``.

    root: folder of the data set. modality: what queries keep. hard_negatives: per training example, taken in turn
    from the answers to "same question, other picture" and "same picture, other question". limit: use only the first N
    records of a split, and the passages they need plus N others (for trying things out).
    """

    name: Literal["wikilens"] = "wikilens"
    root: str = "data/wikilens"
    modality: Modality = "image+question"
    hard_negatives: int = Field(2, ge=0)
    limit: int | None = Field(None, ge=1)


class WikiLens:
    """Training pairs redraw the wording and the hard negatives in every epoch."""

    train_split, valid_split = "train", "dev"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = Path(config.root)
        if not (self.root / "manifest.json").is_file():
            raise UserError(
                f"data.root '{config.root}' holds no WikiLens (no manifest.json); "
                "make it with python scripts/build_wikilens.py --fetch."
            )
        present = [s for s in ("test", "test_artwork", "test_concept", "test_photo") if self._file(s).is_file()]
        self.test_splits: Sequence[str] = tuple(present)
        self.questions = read_json(self.root / "questions.json", "WikiLens questions")

    # ---- the protocol

    def corpus(self) -> Sequence[Document]:
        if self.config.limit is None:
            return self._passages
        needed = {r["positive"] for split in self._splits for r in self._records(split)}
        return limited(self._passages, needed, self.config.limit)

    def queries(self, split: str) -> Sequence[Query]:
        return [self._query(r, r["question"]) for r in self._records(split)]

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        return {r["id"]: {r["positive"]: 1} for r in self._records(split)}

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        records = self._records(split)
        return Draws(len(records), epoch, seed, lambda i, rng: self._example(records[i], split, rng))

    def images(self) -> Sequence[ImageRef]:
        """Every image that any split can show, each once."""
        return [self._image(p) for p in sorted({r["image"] for split in self._splits for r in self._records(split)})]

    # ---- drawing

    def _example(self, record: dict, split: str, rng: random.Random) -> Example:
        wording = rng.choice(self.questions[record["asked"]]["train" if split == "train" else "dev"])
        return Example(self._query(record, wording), self._by_id[record["positive"]], self._negatives(record, rng))

    def _negatives(self, record: dict, rng: random.Random) -> tuple[Document, ...]:
        asked, shown = self._answers["asked"].get(record["asked"], []), self._answers["image"].get(record["image"], [])
        drawn = [record["positive"]]
        for i in range(self.config.hard_negatives):
            # A lone thing without a group has no other question; then another answer to the same question must do.
            pools = ((asked, shown)[i % 2], asked, self._by_id)
            choices = next((left for pool in pools if (left := [t for t in pool if t not in drawn])), None)
            if choices is None:
                raise UserError(
                    f"data.hard_negatives is {i + 1} or more, but there are {len(drawn)} passages; ask for fewer."
                )
            drawn.append(rng.choice(choices))
        return tuple(self._by_id[t] for t in drawn[1:])

    # ---- reading

    @property
    def _splits(self) -> Sequence[str]:
        return (self.train_split, self.valid_split, *self.test_splits)

    @cached_property
    def _passages(self) -> list[Document]:
        return read_passages(self.root / "passages.jsonl")

    @cached_property
    def _by_id(self) -> dict[str, Document]:
        return {d.id: d for d in self._passages}

    @cached_property
    def _answers(self) -> dict[str, dict[str, list[str]]]:
        """{"asked" or "image": {its value: the answers that training records give}}"""
        found: dict[str, dict[str, set[str]]] = {"asked": {}, "image": {}}
        for record in self._records("train"):
            for key, answers in found.items():
                answers.setdefault(record[key], set()).add(record["positive"])
        return {key: {value: sorted(ids) for value, ids in answers.items()} for key, answers in found.items()}

    def _records(self, split: str) -> list[dict]:
        if split not in self._splits:
            hint = "; build it with --photos" if split == "test_photo" else ""
            raise UserError(f"this WikiLens has no split '{split}'; it has {', '.join(self._splits)}{hint}.")
        if split not in self._cache:
            needed = ("id", "image", "question", "positive", "asked", "concept", "setting")
            self._cache[split] = read_records(self._file(split), needed)[: self.config.limit]
        return self._cache[split]

    @cached_property
    def _cache(self) -> dict[str, list[dict]]:
        return {}

    def _file(self, split: str) -> Path:
        return self.root / f"{split}.json"

    def _image(self, path: str) -> ImageRef:
        return ImageRef(path, path=str(self.root / path))

    def _query(self, record: dict, text: str) -> Query:
        meta = {key: record[key] for key in ("concept", "asked", "setting")}
        return restrict(Query(record["id"], text, (self._image(record["image"]),), meta=meta), self.config.modality)


def build(config: Config) -> WikiLens:
    """The data set of a validated ``data`` section."""
    return WikiLens(config)
