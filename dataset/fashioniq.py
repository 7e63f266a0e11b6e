"""FashionIQ (Wu et al. 2021) as MIRe asks it: a picture of a garment and how the wanted one differs; the documents are
pictures too. Where to get it: ``docs/DATA.md``.
"""

from __future__ import annotations

import random
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from core.config import Strict
from core.records import Document, ImageRef, Query
from dataset.draw import Modality
from dataset.lines import LineCorpus, Lines, string
from dataset.splits import LineData, Row, strings, text


class Config(Strict):
    """``data`` section for ``name: fashioniq``.

    path, valid_path, test_path: JSON lines {q_text, q_img, positive}; null: no such split. Without valid_path,
    ``valid_samples`` of the training rows are held out. passages: the candidates, JSON lines {image, content}; content
    is the id that ``positive`` names. image_dir: the last part of every picture's path is looked for in it. limit: use
    only the first N rows of every split, and the candidates they need plus N.
    """

    name: Literal["fashioniq"] = "fashioniq"
    path: str | None = None
    valid_path: str | None = None
    test_path: str | None = "data/fashioniq/query.jsonl"
    passages: str = "data/fashioniq/candidates.jsonl"
    image_dir: str = "data/fashioniq/images"
    valid_samples: int = Field(512, ge=1)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class FashionIQ(LineData):
    """Rows have no ids of their own: a query is called what MIRe calls it, its picture and its place in the file."""

    def read(self, path: str) -> Lines[Row]:
        return Lines(path, _named, ())

    def query(self, row: Row, split: str, rng: random.Random | None = None) -> Query:
        return Query(row[0], text(row, "q_text"), (self._picture(text(row, "q_img")),), task="FashionIQ")

    def positives(self, row: Row, split: str) -> dict[str, int]:
        return dict.fromkeys(strings(row, "positive"), 1)

    def passages(self) -> LineCorpus:
        return LineCorpus(self.config.passages, self._candidate, ("content",))

    def images(self):
        """The candidates' too."""
        refs = {ref.key: ref for ref in super().images()}
        refs.update((ref.key, ref) for document in self._passages for ref in document.images)
        return [refs[key] for key in sorted(refs)]

    def _candidate(self, id_: str, row: dict[str, Any]) -> Document:
        return Document(id_, images=(self._picture(string(row, "image")),))

    def _picture(self, path: str) -> ImageRef:
        name = PurePosixPath(path).name
        return ImageRef(name, path=str(Path(self.config.image_dir) / name))


def _named(place: str, row: dict[str, Any]) -> Row:
    """The place counts from 0."""
    if not string(row, "q_img"):
        raise ValueError("it has no q_img, the picture that the query changes")
    return f"{PurePosixPath(row['q_img']).name[:-4]}_{place}", row


def build(config: Config) -> FashionIQ:
    """The data set of a validated ``data`` section."""
    return FashionIQ(config)
