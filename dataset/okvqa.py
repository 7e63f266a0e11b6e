"""OK-VQA with the passages of Wikipedia (Qu et al. 2021): 11 million, and a file of pairs for each split.

A passage is relevant when it holds one of the annotators' answers as words (``judge``). Where to get it:
``docs/DATA.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from core.answers import WORDS
from core.config import Strict
from core.errors import UserError
from core.files import read_object
from core.records import Document, Query
from dataset.draw import Modality
from dataset.lines import Lines
from dataset.pairs import Pair, PairData, coco, hard, texts_of


class Config(Strict):
    """``data`` section for ``name: okvqa``.

    path, valid_path, test_path: JSON lines of question_id, image_id, question and pos_passage. passages: JSON lines
    {id, text}. annotations: VQA's answers to the questions of valid and test, ten each; null: the ``answers`` of the
    pairs. image_dir: has coco/train2014 and coco/val2014, or is one of them. hard_negatives: 1 gives each training
    question a neg_passage. limit: use only the first N questions of every split, and N passages.
    """

    name: Literal["okvqa"] = "okvqa"
    path: str = "data/okvqa/train2014_pairs_cap_combine_sum.txt"
    valid_path: str = "data/okvqa/val2014_pairs_cap_combine_sum.txt"
    test_path: str = "data/okvqa/test2014_pairs_cap_combine_sum.txt"
    passages: str = "data/okvqa/all_blocks.txt"
    annotations: str | None = "data/okvqa/mscoco_val2014_annotations.json"
    image_dir: str = "data/vid2r/images"
    modality: Modality = "image+question"
    hard_negatives: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)


class OKVQA(PairData):
    """Lines of one question_id are one question, which draws one of their passages anew in every epoch. The test
    questions name no passages of the file: they are judged by their answers."""

    named = False

    def read(self, path: str, split: str) -> Iterator[Pair]:
        grouped: dict[str, list[dict[str, Any]]] = {}
        for id_, row in Lines(path, _row, ()):
            grouped.setdefault(id_, []).append(row)
        for id_, rows in grouped.items():
            first, where = rows[0], f"question '{id_}' of '{path}'"
            if any((r["question"], r["image_id"]) != (first["question"], first["image_id"]) for r in rows):
                raise UserError(f"{where} stands twice, with different questions or pictures; rename one of them.")
            part = "train" if split == "train" else "val"  # OK-VQA's own valid and test are parts of COCO's val2014
            image = coco(self.config.image_dir, part, 2014, f"COCO_{part}2014_{first['image_id']:012}.jpg")
            answers = self._by_annotators.get(id_) if split != "train" and self.config.annotations else None
            if answers is None:
                answers = texts_of(first.get("answers", []), where, "answers")
            query = Query(id_, first["question"], (image,), meta={"answers": answers})
            texts = dict.fromkeys(r["pos_passage"]["passage"].strip() for r in rows)
            positives = tuple(Document(str(i), text) for i, text in enumerate(texts))
            yield Pair(query, positives, hard(id_, (r["neg_passage"]["passage"] for r in rows if r.get("neg_passage"))))

    def judge(self, query: Query, document: Document) -> bool:
        return WORDS.holds(query.meta["answers"], document.text)

    @cached_property
    def _by_annotators(self) -> dict[str, tuple[str, ...]]:
        file = self.config.annotations
        rows = read_object(file, "data.annotations").get("annotations")
        try:
            return {str(r["question_id"]): tuple(dict.fromkeys(a["answer"] for a in r["answers"])) for r in rows}
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"data.annotations '{file}' is not in VQA's format ({type(error).__name__}: {error}); it has "
                '{"annotations": [{"question_id": ..., "answers": [{"answer": ...}]}]}.'
            ) from None


def _row(place: str, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    for field, kind in (("question_id", (str, int)), ("image_id", (int, str)), ("question", str)):
        if not isinstance(row.get(field), kind):
            raise ValueError(f"it has the {field} {row.get(field)!r:.40}")
    if not str(row["image_id"]).isdecimal():
        raise ValueError(f"it has the image_id {row['image_id']!r:.40}, which is no number")
    for field in ("pos_passage", "neg_passage"):
        passage = row.get(field)
        if (field == "pos_passage" or passage is not None) and not (
            isinstance(passage, dict) and isinstance(passage.get("passage"), str)
        ):
            raise ValueError(f"it has the {field} {passage!r:.40}, and not {{'passage': ...}}")
    return str(row["question_id"]), {**row, "image_id": int(row["image_id"])}


def build(config: Config) -> OKVQA:
    """The data set of a validated ``data`` section."""
    return OKVQA(config)
