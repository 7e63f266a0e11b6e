"""A-OKVQA (Schwenk et al. 2022) as retrieval: a question's rationales, joined, are the one passage that answers it.

Where to get it: ``docs/DATA.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from core.config import Strict
from core.errors import UserError
from core.records import Document, Query
from dataset.draw import Modality
from dataset.pairs import Pair, PairData, coco, texts_of
from dataset.records_json import read_records

NEEDED = ("question_id", "image_id", "question", "rationales")


class Config(Strict):
    """``data`` section for ``name: aokvqa``.

    path, valid_path, test_path: A-OKVQA's own files; without valid_path, ``valid_samples`` of the training questions
    are held out. The published test file has no rationales, so the val file is judged. image_dir: COCO's train2017,
    with val2017 beside it, or a folder that has both below coco/. limit: use only the first N questions of every split.
    """

    name: Literal["aokvqa"] = "aokvqa"
    path: str = "data/aokvqa/aokvqa_v1p0_train.json"
    valid_path: str | None = None
    test_path: str = "data/aokvqa/aokvqa_v1p0_val.json"
    image_dir: str = "data/vid2r/images/coco/train2017"
    valid_samples: int = Field(500, ge=1)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class AOKVQA(PairData):
    """The rationales of a split are its passages; a passage has the id of its question."""

    def read(self, path: str, split: str) -> Iterator[Pair]:
        for row in read_records(path, NEEDED, "question_id"):
            id_ = row["question_id"]
            if not str(row["image_id"]).isdecimal():
                raise UserError(f"question '{id_}' of '{path}' has the image_id {row['image_id']!r}; write a number.")
            # Its own word for its part of COCO; a file that lacks it is taken for what it is used as.
            part = row.get("split", "val" if split == "test" else "train")
            image = coco(self.config.image_dir, part, 2017, f"{int(row['image_id']):012}.jpg")
            rationales = texts_of(row["rationales"], f"question '{id_}' of '{path}'", "rationales")
            answers = texts_of(row.get("direct_answers", []), f"question '{id_}' of '{path}'", "direct_answers")
            query = Query(id_, row["question"], (image,), meta={"answers": answers})
            yield Pair(query, (Document(id_, " ".join(rationales)),))


def build(config: Config) -> AOKVQA:
    """The data set of a validated ``data`` section."""
    return AOKVQA(config)
