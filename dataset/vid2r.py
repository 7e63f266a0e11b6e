"""ViD2R-style data: a JSON list of {image, id, question, document}, with an optional passages file.

The format of the published visual-dialogue-to-retrieval data (Ju et al. 2025), and the way to bring your own data.
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
from core.records import Document, Example, ImageRef, Query, unique
from dataset.draw import Draws, Modality, restrict
from dataset.lines import LineCorpus
from dataset.records_json import read_records


class Config(Strict):
    """``data`` section for ``name: vid2r``.

    path: training records. image_dir: ``image`` fields are relative to it. valid_path, test_path: records of the
    other splits; without valid_path, ``valid_samples`` of the training records are held out, the same on every rank.
    passages: JSON lines {id, text}; then each record names its answer with ``positive``. Without it the corpus is the
    documents of all splits, each distinct text once. A record's ``negs`` (texts) are its hard negatives.
    """

    name: Literal["vid2r"] = "vid2r"
    path: str
    image_dir: str = "."
    valid_path: str | None = None
    test_path: str | None = None
    passages: str | None = None
    valid_samples: int = Field(512, ge=1)
    modality: Modality = "image+question"
    hard_negatives: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)


class ViD2R:
    """Records in, frozen queries and documents out."""

    train_split, valid_split = "train", "valid"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.test_splits = ("test",) if config.test_path else ("valid",)

    def corpus(self) -> Sequence[Document]:
        return list(self._by_text.values()) if self._passages is None else self._passages

    def queries(self, split: str) -> Sequence[Query]:
        return [self._query(r) for r in self._records(split)]

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        return {r["id"]: {self._positive(r).id: 1} for r in self._records(split)}

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        records = self._records(split)
        return Draws(len(records), epoch, seed, lambda i, rng: self._example(records[i], rng))

    def images(self) -> Sequence[ImageRef]:
        """Every image of every split, each once."""
        paths = sorted({r["image"] for split in self._splits for r in self._records(split) if r.get("image")})
        return [self._image(p) for p in paths]

    def _example(self, record: dict, rng: random.Random) -> Example:
        # A text, or another record as runs.neural_filtering --save_negative writes it.
        given = record.get("negs") or []
        texts = [n.get("document") if isinstance(n, dict) else n for n in given] if isinstance(given, list) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"record '{record['id']}' has the negs {given!r:.60}; write a list of texts.")
        wanted = self.config.hard_negatives
        if len(texts) < wanted:
            raise UserError(f"record '{record['id']}' has {len(texts)} 'negs', data.hard_negatives asks for {wanted}.")
        drawn = rng.sample(range(len(texts)), wanted)
        negatives = tuple(Document(f"{record['id']}#neg{i}", texts[i]) for i in drawn)
        return Example(self._query(record), self._positive(record), negatives)

    # ---- reading

    @cached_property
    def _splits(self) -> dict[str, list[dict]]:
        config, needed = self.config, ("id", "question", "document")
        if config.passages is not None:
            needed = ("id", "question", "positive")
        train = read_records(config.path, needed)
        if config.valid_path is not None:
            valid = read_records(config.valid_path, needed)
        else:
            if config.valid_samples >= len(train):
                raise UserError(
                    f"data.valid_samples is {config.valid_samples} but '{config.path}' has {len(train)} "
                    "records; ask for fewer."
                )
            order = list(range(len(train)))
            random.Random(0).shuffle(order)  # a fixed seed: every rank and every run holds out the same records
            held = set(order[: config.valid_samples])
            valid = [r for i, r in enumerate(train) if i in held]
            train = [r for i, r in enumerate(train) if i not in held]
        splits = {"train": train, "valid": valid}
        if config.test_path is not None:
            splits["test"] = read_records(config.test_path, needed)
        splits = {name: rows[: config.limit] for name, rows in splits.items()}
        for rows in splits.values():
            list(unique(Query(r["id"]) for r in rows))
        return splits

    def _records(self, split: str) -> list[dict]:
        if split not in self._splits:
            raise UserError(f"this data set has no split '{split}'; it has {', '.join(self._splits)}.")
        return self._splits[split]

    @cached_property
    def _passages(self) -> LineCorpus | None:
        return None if self.config.passages is None else LineCorpus(self.config.passages)

    @cached_property
    def _by_text(self) -> dict[str, Document]:
        """The corpus where there is no passages file."""
        out: dict[str, Document] = {}
        for split, rows in self._splits.items():
            for r in rows:
                out.setdefault(r["document"], Document(f"{split}:{r['id']}", r["document"]))
        return out

    def _positive(self, record: dict) -> Document:
        if self._passages is None:
            return self._by_text[record["document"]]
        found = self._passages.get(str(record["positive"]))
        if found is None:
            raise UserError(
                f"record '{record['id']}' names passage '{record['positive']}', which '{self.config.passages}' does "
                "not hold."
            )
        return found

    def _image(self, path: str) -> ImageRef:
        return ImageRef(path, path=str(Path(self.config.image_dir) / path))

    def _query(self, record: dict) -> Query:
        images = (self._image(record["image"]),) if record.get("image") else ()
        return restrict(Query(record["id"], record["question"], images), self.config.modality)


MIN_QUESTION, MAX_SAMPLES = 25, 5000


class Published:
    """The published ViD2R evaluation: the first 5,000 records whose question has 25 characters or more. Query and
    passage are numbered by the record's place in the file, and a query's answer is the passage of its number."""

    def __init__(self, path: str | Path, image_dir: str = ".") -> None:
        rows = read_records(path, ("image", "question", "document"))
        long = [(str(i), r) for i, r in enumerate(rows) if len(r["question"]) >= MIN_QUESTION]
        self.rows = dict(long[:MAX_SAMPLES])
        self.image_dir = Path(image_dir)
        if not self.rows:
            raise UserError(
                f"none of the {len(rows)} records of '{path}' has a question of {MIN_QUESTION} characters or more, "
                "which ViD2R's published evaluation asks for; give a passages file to evaluate on all."
            )

    def corpus(self) -> Sequence[Document]:
        return [Document(id_, r["document"].strip()) for id_, r in self.rows.items()]

    def queries(self) -> Sequence[Query]:
        refs = {id_: ImageRef(r["image"], path=str(self.image_dir / r["image"])) for id_, r in self.rows.items()}
        return [Query(id_, r["question"], (refs[id_],)) for id_, r in self.rows.items()]

    def qrels(self) -> Mapping[str, Mapping[str, int]]:
        return {id_: {id_: 1} for id_ in self.rows}


def build(config: Config) -> ViD2R:
    """The data set of a validated ``data`` section."""
    return ViD2R(config)
