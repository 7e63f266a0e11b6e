"""InfoSeek (Chen et al. 2023) as released: a question about what a picture shows, and Wiki6M, where the answer stands.

M2KR's smaller variant is ``name: m2kr, subset: Infoseek``. Where to get both: ``docs/DATA.md``.
"""

from __future__ import annotations

import random
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from core.answers import SUBSTRING, Answer, Range
from core.config import Strict
from core.errors import UserError
from core.records import Document, Query
from dataset.draw import Modality
from dataset.lines import LineCorpus, Lines, string
from dataset.splits import LineData, Row, strings, text
from dataset.wiki6m import Pictures, Wiki6M


class Config(Strict):
    """``data`` section for ``name: infoseek``.

    path, valid_path, test_path: questions {data_id, image_id, question, answer, answer_eval}; null: no such split. The
    published test file has no answers, so the val file is judged. kb_path, valid_kb_path, test_kb_path: which entity
    each question is about {data_id, entity_id}; null: the questions themselves have entity_id. Without valid_path,
    ``valid_samples`` of the training questions are held out. passages: Wiki6M, packed or not. image_dir: OVEN's
    pictures. limit: use only the first N questions of every split, and the passages they need plus N.
    """

    name: Literal["infoseek"] = "infoseek"
    path: str | None = "data/infoseek/infoseek_train.jsonl"
    kb_path: str | None = "data/infoseek/infoseek_train_withkb.jsonl"
    valid_path: str | None = None
    valid_kb_path: str | None = None
    test_path: str | None = "data/infoseek/infoseek_val.jsonl"
    test_kb_path: str | None = "data/infoseek/infoseek_val_withkb.jsonl"
    passages: str = "data/wiki/Wiki6M_ver_1_0.jsonl.gz"
    image_dir: str = "data/oven_images"
    valid_samples: int = Field(512, ge=1)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class InfoSeek(LineData):
    """A question's entity is the relevant passage (qrels); a passage with an answer is pseudo-relevant (``judge``)."""

    id_fields = ("data_id",)

    def query(self, row: Row, split: str, rng: random.Random | None = None) -> Query:
        picture = self._pictures.ref(text(row, "image_id"))
        meta = {"answers": answers(row), "entity": self._entity(row, split)}
        return Query(row[0], text(row, "question"), (picture,), task="InfoSeek", meta=meta)

    def positives(self, row: Row, split: str) -> dict[str, int]:
        entity = self._entity(row, split)
        return {} if entity is None else {entity: 1}

    def passages(self) -> LineCorpus:
        return Wiki6M(self.config.passages)

    def judge(self, query: Query, document: Document) -> bool:
        """Whether an answer is a substring of the passage, or a number of the passage lies in the answer's range."""
        return SUBSTRING.holds(query.meta["answers"], document.text)

    def _entity(self, row: Row, split: str) -> str | None:
        maps = self._entities.get("train" if split == "valid" and self.config.valid_path is None else split)
        return text(row, "entity_id") or None if maps is None else maps.get(row[0])

    @cached_property
    def _entities(self) -> dict[str, Lines[str]]:
        paths = {"train": self.config.kb_path, "valid": self.config.valid_kb_path, "test": self.config.test_kb_path}
        return {s: Lines(p, lambda _, row: string(row, "entity_id"), self.id_fields) for s, p in paths.items() if p}

    @cached_property
    def _pictures(self) -> Pictures:
        return Pictures(self.config.image_dir)


def answers(row: Row) -> tuple[Answer, ...]:
    """What counts as the answer: ``answer_eval`` where there is one, a number as its range; else ``answer``."""
    found = row[1].get("answer_eval")
    found = found if isinstance(found, list) else [] if found is None else [found]
    kept = [_answer(row[0], x) for x in found] or list(strings(row, "answer"))
    return tuple(a for a in kept if isinstance(a, Range) or a.strip())  # a blank one would stand in every passage


def _answer(id_: str, found: Any) -> Answer:
    if isinstance(found, str):
        return found
    bounds = found.get("range") if isinstance(found, dict) else None
    if isinstance(bounds, list) and len(bounds) == 2 and all(type(x) in (int, float) for x in bounds):
        return Range(float(min(bounds)), float(max(bounds)))
    raise UserError(
        f"question '{id_}' has the answer_eval {found!r:.60}; write a string, or an object with range [low, high]."
    )


def build(config: Config) -> InfoSeek:
    """The data set of a validated ``data`` section."""
    return InfoSeek(config)
