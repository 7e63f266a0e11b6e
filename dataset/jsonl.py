"""Your own data: questions, passages and, where you have one, a qrels file. ``docs/DATA.md`` shows all three.

Field names are those of Tevatron; a few short ones are read too.
"""

from __future__ import annotations

import random
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from core.answers import WORDS
from core.config import Strict
from core.errors import UserError
from core.records import Document, ImageRef, Query
from dataset.draw import Modality
from dataset.lines import LineCorpus
from dataset.qrels import read_qrels
from dataset.splits import LineData, Row, strings, text


class Config(Strict):
    """``data`` section for ``name: jsonl``.

    path, valid_path, test_path: questions as JSON lines {query_id, query_text, query_image, positive_document_ids,
    negative_document_ids, answers, instruction}, everything but the id optional; null: no such split. Without
    valid_path, ``valid_samples`` of the training questions are held out. passages: JSON lines {docid, text, title,
    image}, or .csv or .tsv. qrels, valid_qrels, test_qrels: TREC or TSV files, which take the place of
    positive_document_ids in their split. image_dir: pictures are relative to it. hard_negatives: drawn for each example
    from negative_document_ids. limit: use only the first N questions of every split, and the passages they need plus N.
    """

    name: Literal["jsonl"] = "jsonl"
    path: str | None = None
    valid_path: str | None = None
    test_path: str | None = None
    passages: str
    qrels: str | None = None
    valid_qrels: str | None = None
    test_qrels: str | None = None
    image_dir: str = "."
    valid_samples: int = Field(512, ge=1)
    hard_negatives: int = Field(0, ge=0)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class Jsonl(LineData):
    """The title stands before the text of a passage, as Tevatron encodes it."""

    id_fields = ("query_id", "_id", "id")

    def query(self, row: Row, split: str, rng: random.Random | None = None) -> Query:
        pictures = strings(row, "query_image") or strings(row, "image")
        refs = tuple(picture(p, self.config.image_dir) for p in pictures if p)
        question, instruction = text(row, "query_text", "question", "text"), text(row, "instruction")
        return Query(row[0], question, refs, instruction, meta={"answers": strings(row, "answers")})

    def positives(self, row: Row, split: str) -> dict[str, int]:
        judged = self._qrels.get("train" if split == "valid" and self.config.valid_path is None else split)
        if judged is None:
            return dict.fromkeys(strings(row, "positive_document_ids"), 1)
        return judged.get(row[0], {})

    def negatives(self, row: Row) -> list[str]:
        return list(strings(row, "negative_document_ids"))

    def passages(self) -> LineCorpus:
        return LineCorpus(self.config.passages, self._document, ("docid", "_id", "id", "kid"))

    def images(self):
        refs = {ref.key: ref for ref in super().images()}
        refs.update((ref.key, ref) for document in self._passages for ref in document.images)
        return [refs[key] for key in sorted(refs)]

    def judge(self, query: Query, document: Document) -> bool:
        """Whether the passage holds one of the question's answers as whole words."""
        return WORDS.holds(query.meta["answers"], document.text)

    @cached_property
    def _qrels(self) -> dict[str, dict[str, dict[str, int]]]:
        files = {"train": self.config.qrels, "valid": self.config.valid_qrels, "test": self.config.test_qrels}
        if files["valid"] is not None and self.config.valid_path is None:
            raise UserError("data.valid_qrels is given, but data.valid_path is not; give both or neither.")
        return {split: read_qrels(file) for split, file in files.items() if file is not None}

    def _document(self, id_: str, row: dict[str, Any]) -> Document:
        return document(id_, row, self.config.image_dir)


def document(id_: str, row: dict[str, Any], image_dir: str) -> Document:
    """A passage of text, of pictures, or both."""
    title, body = (_string(row, *fields) for fields in (("title",), ("text", "document_text", "contents")))
    found = next((row[f] for f in ("image", "document_image") if row.get(f) is not None), [])
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        raise ValueError(f"it has the image {found!r:.40}; write a path")
    refs = tuple(picture(path, image_dir) for path in found if path)
    return Document(id_, f"{title} {body}".strip(), refs, title)


def picture(path: str, image_dir: str) -> ImageRef:
    return ImageRef(path, path=str(Path(image_dir) / path))


def _string(row: dict[str, Any], *fields: str) -> str:
    found = next((row[f] for f in fields if row.get(f) is not None), "")
    if not isinstance(found, str):
        raise ValueError(f"it has the {fields[0]} {found!r:.40}, which is no string")
    return found


def build(config: Config) -> Jsonl:
    """The data set of a validated ``data`` section."""
    return Jsonl(config)
