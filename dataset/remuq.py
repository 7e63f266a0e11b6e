"""ReMuQ (Luo et al. 2023): questions of WebQA that need their picture, and 195,837 passages.

The first context of a question is its one answer. Where to get it: ``docs/DATA.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from pydantic import Field

from core.config import Strict
from dataset.ctxs_json import read
from dataset.draw import Modality
from dataset.pairs import Pair, PairData
from dataset.tsv_images import TsvImages


class Config(Strict):
    """``data`` section for ``name: remuq``.

    path, valid_path, test_path: records with contexts (see ``dataset.ctxs_json``); without valid_path,
    ``valid_samples`` of the training questions are held out. passages: CSV with the columns kid and text. image_tsv,
    image_lineidx: WebQA's pictures. limit: use only the first N questions of every split, and the passages they need
    plus N.
    """

    name: Literal["remuq"] = "remuq"
    path: str = "data/remuq/train.json"
    valid_path: str | None = None
    test_path: str = "data/remuq/test.json"
    passages: str = "data/remuq/open_corpus_195837.csv"
    image_tsv: str = "data/webqa/imgs.tsv"
    image_lineidx: str = "data/webqa/imgs.lineidx"
    valid_samples: int = Field(512, ge=1)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class ReMuQ(PairData):
    """One passage answers each question."""

    def read(self, path: str, split: str) -> Iterator[Pair]:
        return read(path, self._images.ref, gold=1)

    @cached_property
    def _images(self) -> TsvImages:
        return TsvImages(self.config.image_tsv, self.config.image_lineidx)


def build(config: Config) -> ReMuQ:
    """The data set of a validated ``data`` section."""
    return ReMuQ(config)
