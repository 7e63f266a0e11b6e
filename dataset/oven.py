"""OVEN (Hu et al. 2023) as released: which of the six million entities of Wikipedia does the picture show?

M2KR's smaller variant is ``name: m2kr, subset: OVEN``. Where to get both: ``docs/DATA.md``.
"""

from __future__ import annotations

import random
from functools import cached_property
from typing import Literal

from pydantic import Field

from core.config import Strict
from core.records import Query
from dataset.draw import Modality
from dataset.lines import LineCorpus
from dataset.splits import LineData, Row, text
from dataset.wiki6m import Pictures, Wiki6M


class Config(Strict):
    """``data`` section for ``name: oven``.

    path, valid_path, test_path: a file or several {data_id, image_id, question, entity_id, entity_text}; null: no such
    split. The published test files name no entity, so the val files are judged. Without valid_path, ``valid_samples``
    of the training questions are held out. passages: Wiki6M, packed or not. image_dir: OVEN's pictures. limit: use only
    the first N questions of every split, and the passages they need plus N.
    """

    name: Literal["oven"] = "oven"
    path: str | list[str] | None = ["data/oven/oven_entity_train.jsonl", "data/oven/oven_query_train.jsonl"]
    valid_path: str | list[str] | None = None
    test_path: str | list[str] | None = ["data/oven/oven_entity_val.jsonl", "data/oven/oven_query_val.jsonl"]
    passages: str = "data/wiki/Wiki6M_ver_1_0.jsonl.gz"
    image_dir: str = "data/oven_images"
    valid_samples: int = Field(512, ge=1)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class OVEN(LineData):
    """The one relevant passage is the entity's."""

    id_fields = ("data_id",)

    def query(self, row: Row, split: str, rng: random.Random | None = None) -> Query:
        meta = {"entity": text(row, "entity_id"), "answers": (text(row, "entity_text"),)}
        picture = self._pictures.ref(text(row, "image_id"))
        return Query(row[0], text(row, "question"), (picture,), task="OVEN", meta=meta)

    def positives(self, row: Row, split: str) -> dict[str, int]:
        entity = text(row, "entity_id")
        return {entity: 1} if entity else {}

    def passages(self) -> LineCorpus:
        return Wiki6M(self.config.passages)

    @cached_property
    def _pictures(self) -> Pictures:
        return Pictures(self.config.image_dir)


def build(config: Config) -> OVEN:
    """The data set of a validated ``data`` section."""
    return OVEN(config)
