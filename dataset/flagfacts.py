"""FlagFacts: a flag and a question about its country; the answer is one of about 6,100 World Factbook passages.

The question never names the country, so it takes both: the flag says which country, the question which field.
Data, licences and the builder: ``data/flagfacts/README.md``.
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

SPLITS = ("train", "dev", "test", "test_artwork", "test_country")


class Config(Strict):
    """``data`` section for ``name: flagfacts``.

    root: folder of the data set. modality: what queries keep. hard_negatives: per training example, taken in turn
    from "same field, other country" and "same country, other field". limit: use only the first N training pairs and
    N queries of a split, and the passages they need plus N others (for trying things out).
    """

    name: Literal["flagfacts"] = "flagfacts"
    root: str = "data/flagfacts"
    modality: Modality = "image+question"
    hard_negatives: int = Field(2, ge=0)
    limit: int | None = Field(None, ge=1)


class FlagFacts:
    """Training pairs redraw the artwork, the wording and the hard negatives in every epoch."""

    train_split, valid_split = "train", "dev"
    test_splits = ("test", "test_artwork", "test_country")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = Path(config.root)
        if not (self.root / "passages.jsonl").is_file():
            raise UserError(
                f"data.root '{config.root}' holds no FlagFacts (no passages.jsonl); it ships in data/flagfacts."
            )
        self.questions = read_json(self.root / "questions.json", "FlagFacts questions")
        self.artwork = read_json(self.root / "images.json", "FlagFacts images")["images"]

    # ---- the protocol

    def corpus(self) -> Sequence[Document]:
        if self.config.limit is None:
            return self._passages
        needed = {r["positive"] for split in SPLITS for r in self._records(split)}
        return limited(self._passages, needed, self.config.limit)

    def queries(self, split: str) -> Sequence[Query]:
        return [self._query(r["id"], r["question"], r["image"], r) for r in self._records(split)]

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        return {r["id"]: {r["positive"]: 1} for r in self._records(split)}

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        records = self._records(split)
        return Draws(len(records), epoch, seed, lambda i, rng: self._example(records[i], split, rng))

    def images(self) -> Sequence[ImageRef]:
        """Every image that any split can show, each once."""
        if self.config.limit is None:
            paths = {p for sets in self.artwork.values() for p in sets.values()}
        else:
            paths = {r["image"] for split in SPLITS for r in self._records(split)}
            paths |= {p for r in self._records("train") for p in self._train_images(r["country"])}
        return [self._image(p) for p in sorted(paths)]

    # ---- drawing

    def _example(self, record: dict, split: str, rng: random.Random) -> Example:
        wording = rng.choice(self.questions[record["field"]]["train" if split == "train" else "dev"])
        query = self._query(record["id"], wording, rng.choice(self._train_images(record["country"])), record)
        return Example(query, self._by_id[record["positive"]], self._negatives(record, rng))

    def _negatives(self, record: dict, rng: random.Random) -> tuple[Document, ...]:
        pools = (self._by_field[record["field"]], self._by_country[record["country"]])
        drawn: list[Document] = []
        for i in range(self.config.hard_negatives):
            choices = [d for d in pools[i % 2] if d.id != record["positive"] and d not in drawn]
            drawn.append(rng.choice(choices or self._passages))
        return tuple(drawn)

    def _train_images(self, country: str) -> list[str]:
        return [p for name, p in sorted(self.artwork[country].items()) if name != self._held_out]

    # ---- reading

    @cached_property
    def _held_out(self) -> str:
        """The artwork set that only test_artwork shows."""
        shown = {Path(r["image"]).parent.name for r in read_records(self.root / "test_artwork.json", ("id", "image"))}
        if len(shown) != 1:
            raise UserError(
                f"'{self.root / 'test_artwork.json'}' shows artwork sets {sorted(shown)}; it must show one."
            )
        return shown.pop()

    @cached_property
    def _passages(self) -> list[Document]:
        return read_passages(self.root / "passages.jsonl")

    @cached_property
    def _by_id(self) -> dict[str, Document]:
        return {d.id: d for d in self._passages}

    @cached_property
    def _by_field(self) -> dict[str, list[Document]]:
        return self._group("field")

    @cached_property
    def _by_country(self) -> dict[str, list[Document]]:
        return self._group("country")

    def _group(self, key: str) -> dict[str, list[Document]]:
        out: dict[str, list[Document]] = {}
        for document in self._passages:
            out.setdefault(document.meta[key], []).append(document)
        return out

    def _records(self, split: str) -> list[dict]:
        if split not in SPLITS:
            raise UserError(f"FlagFacts has no split '{split}'; it has {', '.join(SPLITS)}.")
        if split not in self._cache:
            needed = ("id", "image", "question", "document", "positive", "country", "field")
            self._cache[split] = read_records(self.root / f"{split}.json", needed)[: self.config.limit]
        return self._cache[split]

    @cached_property
    def _cache(self) -> dict[str, list[dict]]:
        return {}

    def _image(self, path: str) -> ImageRef:
        return ImageRef(path, path=str(self.root / path))

    def _query(self, id_: str, text: str, image: str, record: dict) -> Query:
        meta = {"country": record["country"], "field": record["field"]}
        return restrict(Query(id_, text, (self._image(image),), meta=meta), self.config.modality)


def build(config: Config) -> FlagFacts:
    """The data set of a validated ``data`` section."""
    return FlagFacts(config)
