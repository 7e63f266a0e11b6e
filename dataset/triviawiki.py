"""TriviaWiki: a real question; the answer is one of about 10,000 Wikipedia leads. Text only.

Relevant is the article whose title is the answer, whether or not its lead says what the question asks about. Train, dev
and test share no question and no answering article. Built by ``scripts/build_triviawiki.py``.
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
from dataset.draw import Draws
from dataset.records_json import limited, read_passages, read_records


class Config(Strict):
    """``data`` section for ``name: triviawiki``.

    root: folder of the data set. modality: there are only questions. hard_negatives: per training example, drawn from
    the leads that BM25 finds and that hold no answer. limit: use only the first N records of a split, and the passages
    they need plus N others (for trying things out).
    """

    name: Literal["triviawiki"] = "triviawiki"
    root: str = "data/triviawiki"
    modality: Literal["question"] = "question"
    hard_negatives: int = Field(2, ge=0)
    limit: int | None = Field(None, ge=1)


class TriviaWiki:
    """Training pairs redraw the hard negatives, and the positive where two articles answer, in every epoch.

    test_answerable is the part of test whose lead shares words with the question; that filter flatters word search.
    """

    train_split, valid_split = "train", "dev"
    test_splits: Sequence[str] = ("test", "test_answerable")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = Path(config.root)
        if not (self.root / "manifest.json").is_file():
            raise UserError(
                f"data.root '{config.root}' holds no TriviaWiki (no manifest.json); "
                "make it with python scripts/build_triviawiki.py --fetch."
            )
        self.manifest = read_json(self.root / "manifest.json", "TriviaWiki manifest")

    # ---- the protocol

    def corpus(self) -> Sequence[Document]:
        if self.config.limit is None:
            return self._passages
        splits = (self.train_split, self.valid_split, *self.test_splits)
        needed = {title for split in splits for r in self._records(split) for title in r["positives"]}
        return limited(self._passages, needed, self.config.limit)

    def queries(self, split: str) -> Sequence[Query]:
        return [self._query(r) for r in self._records(split)]

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        return {r["id"]: {title: 1 for title in r["positives"]} for r in self._records(split)}

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        records = self._records(split)
        return Draws(len(records), epoch, seed, lambda i, rng: self._example(records[i], rng))

    def images(self) -> Sequence[ImageRef]:
        return []

    # ---- drawing

    def _example(self, record: dict, rng: random.Random) -> Example:
        positive, wanted = rng.choice(record["positives"]), self.config.hard_negatives
        mined = record.get("negatives", [])
        drawn = rng.sample(mined, min(wanted, len(mined)))
        # Few questions have fewer mined leads than asked for; what is missing is drawn from all of them.
        taken = {*record["positives"], *drawn}
        while len(drawn) < wanted:
            if len(taken) >= len(self._passages):
                raise UserError(f"data.hard_negatives is {wanted}, but there are {len(self._passages)} passages.")
            title = rng.choice(self._passages).id
            if title not in taken:
                drawn.append(title)
                taken.add(title)
        return Example(self._query(record), self._by_id[positive], tuple(self._by_id[title] for title in drawn))

    def _query(self, record: dict) -> Query:
        meta = {"source": record["source"], "answerable": record["answerable"], "answers": record["answers"]}
        return Query(record["id"], record["question"], meta=meta)

    # ---- reading

    @cached_property
    def _passages(self) -> list[Document]:
        return read_passages(self.root / "passages.jsonl")

    @cached_property
    def _by_id(self) -> dict[str, Document]:
        return {d.id: d for d in self._passages}

    def _records(self, split: str) -> list[dict]:
        known = (self.train_split, self.valid_split, *self.test_splits)
        if split not in known:
            raise UserError(f"TriviaWiki has no split '{split}'; it has {', '.join(known)}.")
        if split not in self._cache:
            needed = ("id", "source", "question", "positives", "answers", "answerable")
            rows = read_records(self.root / f"{split.removesuffix('_answerable')}.json", needed)
            rows = rows[: self.config.limit]  # first: test_answerable is a part of what is left of test
            self._cache[split] = [r for r in rows if r["answerable"]] if split == "test_answerable" else rows
        return self._cache[split]

    @cached_property
    def _cache(self) -> dict[str, list[dict]]:
        return {}


def build(config: Config) -> TriviaWiki:
    """The data set of a validated ``data`` section."""
    return TriviaWiki(config)
