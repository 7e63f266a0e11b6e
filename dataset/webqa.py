"""WebQA (Chang et al. 2022) as retrieval: a question, and the facts (snippets, or pictures with captions) it draws on.

Its questions have no picture; its documents may. Where to get it: ``docs/DATA.md``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from core.config import Strict
from core.errors import UserError
from core.files import read_object
from core.records import Document, Example, ImageRef, Query
from dataset.draw import Draws
from dataset.pairs import texts_of
from dataset.tsv_images import TsvImages

SPLITS = {"train": "train", "valid": "val"}


class Config(Strict):
    """``data`` section for ``name: webqa``.

    path: the release's WebQA_train_val.json; its test file names no answers, so val is judged. facts: which documents
    there are, and the questions that they answer: "text" for retrievers of passages, "image" or "all". image_tsv,
    image_lineidx: the pictures. hard_negatives: per training question, drawn from its negFacts. limit: use only the
    first N questions of every split, and their facts.
    """

    name: Literal["webqa"] = "webqa"
    path: str = "data/webqa/WebQA_train_val.json"
    facts: Literal["text", "image", "all"] = "all"
    image_tsv: str = "data/webqa/imgs.tsv"
    image_lineidx: str = "data/webqa/imgs.lineidx"
    hard_negatives: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)


@dataclass(frozen=True)
class Asked:
    """positives, negatives: ids of facts."""

    query: Query
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


class WebQA:
    """Both splits search the facts of both, those that answer and those that do not."""

    train_split, valid_split, test_splits = "train", "valid", ("valid",)

    def __init__(self, config: Config) -> None:
        self.config = config
        self._facts: dict[str, Document] = {}

    def corpus(self) -> Sequence[Document]:
        self._asked("train")  # reads the facts
        return list(self._facts.values())

    def queries(self, split: str) -> Sequence[Query]:
        return [asked.query for asked in self._asked(split)]

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        return {asked.query.id: dict.fromkeys(asked.positives, 1) for asked in self._asked(split)}

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        """The positive and the negatives are drawn anew in every epoch."""
        rows = self._asked(split)
        return Draws(len(rows), epoch, seed, lambda i, rng: self._example(rows[i], rng))

    def images(self) -> Sequence[ImageRef]:
        """Every picture of a fact, each once."""
        refs = {ref.key: ref for document in self.corpus() for ref in document.images}
        return [refs[key] for key in sorted(refs)]

    def _example(self, asked: Asked, rng: random.Random) -> Example:
        wanted = self.config.hard_negatives
        if len(asked.negatives) < wanted:
            raise UserError(
                f"question '{asked.query.id}' has {len(asked.negatives)} negFacts of the kind '{self.config.facts}', "
                f"data.hard_negatives asks for {wanted}."
            )
        negatives = tuple(self._facts[id_] for id_ in rng.sample(asked.negatives, wanted))
        return Example(asked.query, self._facts[rng.choice(asked.positives)], negatives)

    # ---- reading

    def _asked(self, split: str) -> list[Asked]:
        if split not in SPLITS:
            raise UserError(f"WebQA has no split '{split}' whose answers are known; it has {', '.join(SPLITS)}.")
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[str, list[Asked]]:
        found: dict[str, list[Asked]] = {split: [] for split in SPLITS}
        named = {theirs: ours for ours, theirs in SPLITS.items()}
        for id_, row in read_object(self.config.path, "data file").items():
            where = f"question '{id_}' of '{self.config.path}'"
            known = isinstance(row, dict) and isinstance(row.get("split"), str) and row["split"] in named
            if not known or not isinstance(row.get("Q"), str):
                raise UserError(f"{where} is {row!r:.60}; it needs a Q, and a split that is {' or '.join(named)}.")
            rows = found[named[row["split"]]]
            if len(rows) == self.config.limit:
                continue
            positives, negatives = (self._read(row, kind, where) for kind in ("pos", "neg"))
            if positives:
                answers = texts_of(row.get("A", []), where, "A")
                rows.append(Asked(Query(id_, plain(row["Q"]), meta={"answers": answers}), positives, negatives))
        return found

    def _read(self, row: dict[str, Any], kind: str, where: str) -> tuple[str, ...]:
        """Ids of a question's facts of the wanted kinds, which become documents."""
        ids = []
        for form in ("txt", "img"):
            if self.config.facts not in ("all", {"txt": "text", "img": "image"}[form]):
                continue
            facts = row.get(f"{form}_{kind}Facts") or []
            if not isinstance(facts, list):
                raise UserError(f"{where} has the {form}_{kind}Facts {facts!r:.60}; write a list.")
            for fact in facts:
                try:
                    made = self._text(fact) if form == "txt" else self._picture(fact)
                except (TypeError, KeyError, AttributeError) as error:
                    raise UserError(
                        f"{where} has the {form}_{kind}Facts entry {fact!r:.80}, in which {error} is missing or wrong."
                    ) from None
                known = self._facts.setdefault(made.id, made)
                if known != made:
                    raise UserError(f"{where} has the fact '{made.id}' with another text than an earlier question.")
                ids.append(made.id)
        return tuple(dict.fromkeys(ids))

    def _text(self, fact: dict[str, Any]) -> Document:
        return Document(str(fact["snippet_id"]), fact["fact"].strip(), title=fact.get("title", "").strip())

    def _picture(self, fact: dict[str, Any]) -> Document:
        id_ = str(fact["image_id"])
        return Document(id_, fact["caption"].strip(), (self._images.ref(id_),), title=fact.get("title", "").strip())

    @cached_property
    def _images(self) -> TsvImages:
        return TsvImages(self.config.image_tsv, self.config.image_lineidx)


def plain(text: str) -> str:
    """Without the quotation marks that the release puts around its questions."""
    return text.replace('"', "").strip()


def build(config: Config) -> WebQA:
    """The data set of a validated ``data`` section."""
    return WebQA(config)
