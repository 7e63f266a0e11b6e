"""FVQA (Wang et al. 2017) as retrieval: the facts of its knowledge base are the passages.

Where to get it: ``docs/DATA.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from core.config import Strict
from core.errors import UserError
from core.files import read_object
from core.records import Document, ImageRef, Query
from dataset.draw import Modality
from dataset.pairs import Pair, PairData


class Config(Strict):
    """``data`` section for ``name: fvqa``.

    path, valid_path, test_path: JSON objects {question id: {question, img_file, answer, fact: [ids]}}. The published
    evaluation asks all questions of the release and trains on none; with a path, ``valid_samples`` of its questions are
    held out where there is no valid_path. passages: the facts, {id: {surface}}. limit: use only the first N questions
    of every split, and the facts they need plus N.
    """

    name: Literal["fvqa"] = "fvqa"
    path: str | None = None
    valid_path: str | None = None
    test_path: str = "data/fvqa/all_qs_dict_release.json"
    passages: str = "data/fvqa/all_fact_triples_release.json"
    image_dir: str = "data/fvqa/images"
    valid_samples: int = Field(512, ge=1)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class Facts(Sequence[Document]):
    """The knowledge base, small enough to be held."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._facts: dict[str, Document] = {}
        for id_, fact in read_object(path, "facts file").items():
            if not isinstance(fact, dict) or not isinstance(fact.get("surface"), str):
                raise UserError(f"fact '{id_}' of '{path}' is {fact!r:.60}; write an object with its surface.")
            self._facts[id_] = Document(id_, plain(fact["surface"]))
        self._order = list(self._facts)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position):
        found = self._order[position]
        return [self._facts[i] for i in found] if isinstance(position, slice) else self._facts[found]

    def __contains__(self, item: object) -> bool:
        return item in self._facts if isinstance(item, str) else super().__contains__(item)

    def get(self, id_: str) -> Document | None:
        return self._facts.get(id_)


class FVQA(PairData):
    """Every fact that a question names answers it."""

    def __init__(self, config: Config) -> None:
        if config.test_path in (config.path, config.valid_path):
            raise UserError(
                f"data.test_path '{config.test_path}' is trained or validated on as well; divide its questions first."
            )
        super().__init__(config)

    def passages(self) -> Facts:
        return Facts(self.config.passages)

    def read(self, path: str, split: str) -> Iterator[Pair]:
        for id_, row in read_object(path, "data file").items():
            where = f"question '{id_}' of '{path}'"
            if not isinstance(row, dict):
                raise UserError(f"{where} is {row!r:.60}; write an object with question, img_file and fact.")
            facts = row.get("fact")
            if isinstance(facts, str):
                facts = [facts]
            if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
                raise UserError(f"{where} has the fact {facts!r:.60}; write a list of ids.")
            name = _string(row, "img_file", where)
            image = ImageRef(name, path=str(Path(self.config.image_dir) / name))
            answer = row.get("answer")
            meta = {"answers": (answer,) if isinstance(answer, str) else ()}
            query = Query(id_, _string(row, "question", where), (image,), meta=meta)
            yield Pair(query, tuple(self._fact(fact, where, split) for fact in dict.fromkeys(facts)))

    def _fact(self, id_: str, where: str, split: str) -> Document:
        found = self._passages.get(id_)
        if found is None and split != "test":
            raise UserError(f"{where} names the fact '{id_}', which '{self.config.passages}' does not hold.")
        return found or Document(id_)  # nobody can find it, and it counts as not found


def plain(surface: str) -> str:
    """Without the brackets around the two things that a fact is about."""
    return surface.translate({ord("["): None, ord("]"): None})


def _string(row: dict[str, Any], field: str, where: str) -> str:
    if not isinstance(row.get(field), str):
        raise UserError(f"{where} has the {field} {row.get(field)!r:.40}; write a string.")
    return row[field]


def build(config: Config) -> FVQA:
    """The data set of a validated ``data`` section."""
    return FVQA(config)
