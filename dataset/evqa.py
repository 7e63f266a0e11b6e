"""Encyclopedic VQA (Mensink et al. 2023) as released: a question about the species or landmark that a picture shows,
and a section of its Wikipedia article that answers it.

M2KR's smaller variant is ``name: m2kr, subset: EVQA``. Where to get both: ``docs/DATA.md``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, get_args

from pydantic import Field

from core.answers import SUBSTRING
from core.config import Strict
from core.errors import UserError
from core.records import Document, ImageRef, Query
from dataset.draw import Modality
from dataset.lines import LineCorpus, Lines, string, unreadable
from dataset.splits import LineData, Row, text
from dataset.unpacked import made, members

Kind = Literal["templated", "automatic", "multi_answer", "2_hop"]


class Config(Strict):
    """``data`` section for ``name: evqa``.

    path, valid_path, test_path: the released CSV files; null: no such split. Without valid_path, ``valid_samples`` of
    the training questions are held out. passages: the knowledge base, encyclopedic_kb_wiki.zip or the .json in it.
    kinds: question types that are asked. inat_dir: iNaturalist 2021's pictures. inat_map: which file has which picture:
    iNaturalist's own train.json and val.json, or {id: file} objects. landmarks_dir: Google Landmarks v2's pictures.
    limit: use only the first N questions of every split, and the sections they need plus N.
    """

    name: Literal["evqa"] = "evqa"
    path: str | None = "data/evqa/train.csv"
    valid_path: str | None = "data/evqa/val.csv"
    test_path: str | None = "data/evqa/test.csv"
    passages: str = "data/evqa/encyclopedic_kb_wiki.zip"
    kinds: list[Kind] = ["templated", "automatic", "multi_answer"]
    inat_dir: str = "data/evqa/inat"
    inat_map: list[str] = ["data/evqa/inat/train.json", "data/evqa/inat/val.json"]
    landmarks_dir: str = "data/evqa/google-landmark"
    valid_samples: int = Field(512, ge=1)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class EVQA(LineData):
    """A passage is a section, "title: section: text", with the id "<article's URL>#<number of the section>".

    The section that the question's evidence stands in is relevant, of a 2-hop question both. Where none is named, those
    sections of the article that hold an answer, and if none does, all of them. A question has up to five pictures:
    training draws one, evaluation shows the first. Queries are named after their file and row, from 0.
    """

    def read(self, path: str) -> Lines[Row]:
        name = Path(path).stem
        return Lines(path, lambda place, row: (f"{name}_{place}", row), ())

    def keeps(self, row: Row) -> bool:
        kind = text(row, "question_type")
        if kind not in get_args(Kind):
            raise UserError(
                f"question '{row[0]}' has the question_type '{kind}'; known are {', '.join(get_args(Kind))}. Give "
                "the released file."
            )
        return kind in self.config.kinds

    def query(self, row: Row, split: str, rng: random.Random | None = None) -> Query:
        ids = picture_ids(row)
        shown = ids[0] if rng is None else rng.choice(ids)
        meta = {"answers": answers(row), "kind": text(row, "question_type")}
        return Query(row[0], text(row, "question"), (self._picture(row, shown),), task="EVQA", meta=meta)

    def shown(self, row: Row, split: str) -> tuple[ImageRef, ...]:
        ids = picture_ids(row)
        return tuple(self._picture(row, id_) for id_ in (ids if split == self.train_split else ids[:1]))

    def positives(self, row: Row, split: str) -> dict[str, int]:
        urls, sections = (
            [p.strip() for p in text(row, f).split("|")] for f in ("wikipedia_url", "evidence_section_id")
        )
        if len(sections) == len(urls) and all(map(str.isdecimal, sections)):
            return {f"{url}#{int(section)}": 1 for url, section in zip(urls, sections)}
        known = answers(row)
        found = [d for url in urls for d in self._article(url)]
        holding = [d for d in found if known and SUBSTRING.holds(known, d.text)]
        return {d.id: 1 for d in holding or found}

    def passages(self) -> LineCorpus:
        path = Path(self.config.passages)
        target = path.with_name(f"{path.stem}.sections.jsonl")
        return LineCorpus(made(path, target, lambda content: sections(content, path)), section)

    def judge(self, query: Query, document: Document) -> bool:
        """Whether one of the answers is a substring of the section."""
        return SUBSTRING.holds(query.meta["answers"], document.text)

    def _article(self, url: str) -> list[Document]:
        first = self._passages.get(f"{url}#0")
        if first is None:
            return []
        found = (self._passages.get(f"{url}#{i}") for i in range(1, first.meta["sections"]))
        return [first, *(d for d in found if d is not None)]

    def _picture(self, row: Row, id_: str) -> ImageRef:
        kind = text(row, "dataset_name")
        if kind == "landmarks":
            place = Path(self.config.landmarks_dir, *id_[:3], f"{id_}.jpg")
            return ImageRef(f"landmarks/{id_}", path=str(place))
        if kind != "inaturalist":
            raise UserError(f"question '{row[0]}' has the dataset_name '{kind}'; known are inaturalist and landmarks.")
        name = self._inat.get(id_)
        if name is None:
            raise UserError(
                f"picture '{id_}' of question '{row[0]}' is in none of data.inat_map {self.config.inat_map}; add the "
                "file that lists it."
            )
        return ImageRef(f"inat/{name}", path=str(Path(self.config.inat_dir) / name))

    @cached_property
    def _inat(self) -> dict[str, str]:
        """Of iNaturalist's own lists, which have millions of entries, only id and file are held."""
        found: dict[str, str] = {}
        for path in self.config.inat_map:
            try:
                with open(path, encoding="utf-8") as handle:
                    whole = json.load(handle, object_hook=lambda o: _named(o, found))
            except OSError as error:
                raise UserError(unreadable("list of pictures", path, error)) from None
            except ValueError as error:
                raise UserError(f"list of pictures '{path}' is no JSON ({error}); download it again.") from None
            if isinstance(whole, dict):
                found.update((str(k), v) for k, v in whole.items() if isinstance(v, str))
        return found


def _named(found: dict[str, Any], into: dict[str, str]) -> dict[str, Any] | None:
    """Takes {id, file_name}, and lets other objects go except those that may be {id: file}."""
    if isinstance(found.get("file_name"), str) and "id" in found:
        into[str(found["id"])] = found["file_name"]
        return None
    return found if all(isinstance(v, str) for v in found.values()) else None


def picture_ids(row: Row) -> list[str]:
    ids = [id_.strip() for id_ in text(row, "dataset_image_ids").split("|") if id_.strip()]
    if not ids:
        raise UserError(f"question '{row[0]}' has no dataset_image_ids; remove the row.")
    return ids


def answers(row: Row) -> tuple[str, ...]:
    """ "a|b" are what several people answered, "a&&b" the parts of one answer; each counts by itself."""
    parts = (part.strip() for whole in text(row, "answer").split("|") for part in whole.split("&&"))
    return tuple(dict.fromkeys(part for part in parts if part))


def sections(content: IO[bytes], path: Path) -> Iterator[bytes]:
    """The knowledge base {url: {title, section_titles, section_texts}} as one line a section. The first section of an
    article always stands, with how many there are; others where they have text."""
    for url, entry in members(content, path):
        try:
            title, names, texts = entry["title"], entry["section_titles"], entry["section_texts"]
            rows = [{"title": title, "section": n or "", "text": t or ""} for n, t in zip(names, texts, strict=True)]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"entry '{url}' of '{path}' has no title, or section_titles and section_texts that do not fit; "
                "download it again."
            ) from None
        for number, row in enumerate(rows):
            if number == 0 or row["text"].strip():
                row = {"id": f"{url}#{number}", **row, **({"sections": len(rows)} if number == 0 else {})}
                yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


def section(id_: str, row: dict[str, Any]) -> Document:
    title, name, body = string(row, "title"), string(row, "section"), string(row, "text")
    heading = title if name == title else f"{title}: {name}"
    return Document(id_, f"{heading}: {body}".strip(), title=title, meta={"sections": row.get("sections")})


def build(config: Config) -> EVQA:
    """The data set of a validated ``data`` section."""
    return EVQA(config)
