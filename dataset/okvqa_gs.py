"""OK-VQA with passages from Google Search (Luo et al. 2021), as RAVQA releases it: 166,390 passages.

A passage is relevant when it holds an answer as words (``judge``). Where to get it: ``docs/DATA.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from core.answers import WORDS
from core.config import Strict
from core.errors import UserError
from core.records import Document, ImageRef, Query
from dataset.ctxs_json import read
from dataset.draw import Modality
from dataset.pairs import Pair, PairData, coco

FOLDER = "data/okvqa/RAVQA_v2_data/okvqa/pre-extracted_features/passages"


class Config(Strict):
    """``data`` section for ``name: okvqa_gs``.

    path, valid_path, test_path: records with contexts (see ``dataset.ctxs_json``). passages: CSV with the columns kid
    and text. image_dir: has coco/train2014 and coco/val2014, or is one of them. hard_negatives: per training question,
    drawn from its ``negs``. limit: use only the first N questions of every split, and the passages they need plus N.
    """

    name: Literal["okvqa_gs"] = "okvqa_gs"
    path: str = f"{FOLDER}/retriever_train_w_negs.json"
    valid_path: str = f"{FOLDER}/retriever_testdev.json"
    test_path: str = f"{FOLDER}/retriever_test.json"
    passages: str = f"{FOLDER}/okvqa_full_clean_corpus.csv"
    image_dir: str = "data/vid2r/images"
    modality: Modality = "image+question"
    hard_negatives: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)


class OKVQAGoogleSearch(PairData):
    """Each training question draws one of its contexts anew in every epoch. Questions without any train nothing."""

    def read(self, path: str, split: str) -> Iterator[Pair]:
        pairs = list(read(path, self._image))
        kept = [pair for pair in pairs if pair.positives or split == "test"]
        if len(kept) < len(pairs):
            print(f"note: {len(pairs) - len(kept)} questions of '{path}' have no ctxs; left out.", file=sys.stderr)
        yield from kept

    def judge(self, query: Query, document: Document) -> bool:
        return WORDS.holds(query.meta["answers"], document.text)

    def _image(self, img_id: str) -> ImageRef:
        split = {"COCO_train2014": "train", "COCO_val2014": "val"}.get(img_id.rsplit("_", 1)[0])
        if split is None:
            raise UserError(f"img_id is {img_id!r}; it must look like COCO_val2014_000000000042.")
        return coco(self.config.image_dir, split, 2014, f"{img_id}.jpg")


def build(config: Config) -> OKVQAGoogleSearch:
    """The data set of a validated ``data`` section."""
    return OKVQAGoogleSearch(config)
