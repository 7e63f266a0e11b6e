"""OK-VQA as FLMR asks it (Lin et al. 2023): the question with what was seen in the picture written out, the whole
picture and regions of it, and passages from Google Search.

Rows: question_id, question, answers, img_path, ROIs ("path|||class_left_top_right_bottom"), objects (class,
attributes, attribute_scores), img_ocr (description), img_caption (a string, or caption). See ``docs/M2KR.md``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from core.answers import holds_answer
from core.config import Strict
from core.errors import UserError
from core.records import Document, Example, ImageRef, Query, unique
from dataset.draw import Draws, Modality, restrict
from dataset.m2kr_rows import Lazy, Passages, Rows, find

FIELDS = ("question_id", "question", "answers", "img_path", "ROIs", "objects", "img_ocr", "img_caption",
          "pos_item_ids", "pos_item_contents")  # fmt: skip
SURE, ATTRIBUTES = 0.05, 3
SMALL, MARGIN = 5.0, 2.5


class Config(Strict):
    """``data`` section for ``name: okvqa_flmr``.

    path: folder of the questions' splits. passages: folder of the splits train_passages, test_passages. image_dir:
    img_path is relative to it. regions: per picture, beside the whole one; fewer are filled up by repeating the last.
    limit: use only the first N rows of every split.
    """

    name: Literal["okvqa_flmr"] = "okvqa_flmr"
    path: str = "data/okvqa_flmr/OKVQA_FLMR_prepared_data.hf"
    passages: str = "data/okvqa_flmr/OKVQA_FLMR_prepared_passages_with_GoogleSearch_corpus.hf"
    image_dir: str = "data/okvqa_flmr"
    regions: int = Field(9, ge=0)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class OKVQA:
    """A passage is relevant when it holds an answer (``judge``); qrels and training want ``pos_item_ids`` in rows."""

    train_split, test_splits = "train", ("test",)

    def __init__(self, config: Config) -> None:
        self.config = config
        self._rows: dict[str, Rows] = {}

    @cached_property
    def valid_split(self) -> str:
        """The published data has no valid split."""
        return "valid" if find(Path(self.config.path), "valid") else "test"

    # ---- the protocol

    def corpus(self) -> Sequence[Document]:
        return self.corpus_of("test")

    def corpus_of(self, split: str) -> Sequence[Document]:
        files = find(Path(self.config.passages), f"{split}_passages")
        if not files:
            raise UserError(f"data.passages '{self.config.passages}' holds no split '{split}_passages'; put it there.")
        return passages(files)

    def queries(self, split: str) -> Sequence[Query]:
        rows = self._read(split)
        return Lazy(self._count(rows), lambda i: self._query(rows[i]))

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        rows = self._read(split)
        return {str(rows[i]["question_id"]): dict.fromkeys(positives(rows[i]), 1) for i in range(self._count(rows))}

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        rows = self._read(split)
        return Draws(self._count(rows), epoch, seed, lambda i, rng: self._example(rows[i], split, rng))

    def images(self) -> Sequence[ImageRef]:
        """Every whole picture and region of the splits whose files are here, each once."""
        here = [s for s in ("train", "valid", "test") if find(Path(self.config.path), s)]
        refs = {ref.key: ref for split in here for query in self.queries(split) for ref in query.images}
        return [refs[key] for key in sorted(refs)]

    def judge(self, query: Query, document: Document) -> bool:
        """Whether the passage holds one of the question's answers (PseudoRecall)."""
        return holds_answer(query.meta["answers"], document.text)

    # ---- reading

    def _read(self, split: str) -> Rows:
        if split not in self._rows:
            files = find(Path(self.config.path), split)
            if not files:
                raise UserError(f"data.path '{self.config.path}' holds no split '{split}'; put it there.")
            rows = Rows(files, FIELDS)
            list(unique(Query(str(id_)) for id_ in rows.column("question_id")))
            self._rows[split] = rows
        return self._rows[split]

    def _count(self, rows: Rows) -> int:
        return len(rows) if self.config.limit is None else min(len(rows), self.config.limit)

    def _query(self, row: dict[str, Any]) -> Query:
        try:
            return self._made(row)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"question '{row['question_id']}' of data.path '{self.config.path}' lacks a field or has another form "
                f"({type(error).__name__}: {error}); docs/M2KR.md says what a row holds."
            ) from None

    def _made(self, row: dict[str, Any]) -> Query:
        path = row["img_path"]
        where = str(Path(self.config.image_dir) / path)
        boxes = [grown(box(roi, row), where) for roi in (row["ROIs"] or ())[: self.config.regions]]
        boxes += boxes[-1:] * (self.config.regions - len(boxes))
        pictures = (ImageRef(path, path=where), *(ImageRef(path, path=where, box=b) for b in boxes))
        meta = {"answers": tuple(str(a) for a in row["answers"] or ())}
        return restrict(
            Query(str(row["question_id"]), written_out(row), pictures, task="OKVQA", meta=meta), self.config.modality
        )

    def _example(self, row: dict[str, Any], split: str, rng: random.Random) -> Example:
        found = positives(row)
        if not found:
            raise UserError(f"question '{row['question_id']}' has no pos_item_ids; training needs them.")
        return Example(self._query(row), self._passages(split).of(rng.choice(found)))

    def _passages(self, split: str) -> Passages:
        if split not in self._documents:
            self._documents[split] = self.corpus_of(split)
        return self._documents[split]

    @cached_property
    def _documents(self) -> dict[str, Passages]:
        return {}


def passages(files: Sequence[Path]) -> Passages:
    """With the marks that FLMR reads; they stand in the text that is judged too, as in the original."""
    return Passages(files, lambda id_, text: Document(id_, f"<BOK> {text} <EOK>"))


def written_out(row: dict[str, Any]) -> str:
    """The question, the objects with what is sure of their attributes, the strings in the picture, and its caption."""
    pieces = ["<BOQ>", row["question"], "<EOQ>", "<BOV>"]
    for thing in row["objects"] or ():
        scored = zip(thing["attributes"], thing["attribute_scores"])
        pieces += [*[name for name, score in scored if score > SURE][:ATTRIBUTES], thing["class"], "<SOV>"]
    strings = (found["description"].strip().replace("\n", " ") for found in row["img_ocr"] or ())
    pieces += [*dict.fromkeys(strings), "<EOV>"]
    caption = row["img_caption"]
    caption = caption["caption"] if isinstance(caption, dict) else caption
    return " ".join([*pieces, "<BOC>", caption or "", "<EOC>"])


def box(roi: str, row: dict[str, Any]) -> tuple[float, float, float, float]:
    """The numbers behind the last four underscores: class names may have some of their own."""
    try:
        left, top, right, bottom = map(float, roi.split("|||")[1].rsplit("_", 4)[1:])
    except (AttributeError, IndexError, ValueError):
        raise UserError(
            f"question '{row['question_id']}' has the region {roi!r:.80}; write path|||class_left_top_right_bottom."
        ) from None
    return left, top, right, bottom


def grown(box: tuple[float, float, float, float], path: str) -> tuple[float, float, float, float]:
    """A box that is both narrower and lower than 5 pixels, with 2.5 more on every side, clipped to the picture."""
    left, top, right, bottom = box
    if right - left >= SMALL or bottom - top >= SMALL:
        return box
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:  # its size alone: no pixels are decoded
            width, height = picture.size
    except FileNotFoundError:
        raise UserError(f"image '{path}' is missing; check data.image_dir.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"image '{path}' cannot be read ({type(error).__name__}); replace the file.") from None
    return max(0.0, left - MARGIN), max(0.0, top - MARGIN), min(width, right + MARGIN), min(height, bottom + MARGIN)


def positives(row: dict[str, Any]) -> list[str]:
    found = row["pos_item_ids"]
    if found is None:
        raise UserError(
            f"question '{row['question_id']}' has no pos_item_ids: these rows know answers only, so judge them by "
            "PseudoRecall."
        )
    if not isinstance(found, list):
        raise UserError(f"question '{row['question_id']}' has the pos_item_ids {found!r:.40}; write a list.")
    return list(dict.fromkeys(str(i) for i in found))


def build(config: Config) -> OKVQA:
    """The data set of a validated ``data`` section."""
    return OKVQA(config)
