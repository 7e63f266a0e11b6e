"""VL-ICT: a sentence of Wikipedia with its title masked, the picture of its article, and the sentences that follow.

``python -m runs.build_vl_ict`` makes the file from WIT (see ``docs/DATA.md``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from core.config import Strict
from core.errors import UserError
from core.records import Document, ImageRef, Query
from dataset.draw import Modality
from dataset.pairs import Pair, PairData
from dataset.records_json import read_records

NEEDED = ("question", "document", "image_id")


class Config(Strict):
    """``data`` section for ``name: vl_ict``.

    path, valid_path, test_path: a JSON list of {question, document, image_id}; without valid_path, ``valid_samples`` of
    the training records are held out, and without test_path the validation records are judged. image_dir: holds
    Q123/Q123456.jpg for the image_id Q123456; records whose picture is not there are left out, and counted. limit: use
    only the first N records of every split.
    """

    name: Literal["vl_ict"] = "vl_ict"
    path: str = "data/wit/vl_ict_train.json"
    valid_path: str | None = None
    test_path: str | None = None
    image_dir: str = "data/wiki/wikipedia_images_full"
    valid_samples: int = Field(512, ge=1)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class VLICT(PairData):
    """A record has no id of its own: its place in the file is its name."""

    def read(self, path: str, split: str) -> Iterator[Pair]:
        rows = read_records(path, NEEDED)
        kept = 0
        for place, row in enumerate(rows):
            name = picture(str(row["image_id"]))
            if name is None:
                raise UserError(f"record {place} of '{path}' has the image_id {row['image_id']!r}; write Q and digits.")
            folder, file = name.split("/")
            if file not in self._pictures(folder):
                continue
            kept += 1
            image = ImageRef(name, path=str(Path(self.config.image_dir) / name))
            query = Query(str(place), row["question"], (image,))
            yield Pair(query, (Document(query.id, row["document"].strip()),))
        if rows and not kept:
            raise UserError(
                f"none of the {len(rows)} pictures of '{path}' is in data.image_dir '{self.config.image_dir}' (such as "
                f"{picture(str(rows[0]['image_id']))}); check the folder."
            )
        if kept < len(rows):
            print(f"note: {len(rows) - kept} of {len(rows)} records of '{path}' have no picture here.", file=sys.stderr)

    @cached_property
    def _pictures(self):
        @cache
        def names(folder: str) -> frozenset[str]:
            """A thousand folders at most: listing each is much less work than looking for each picture."""
            try:
                return frozenset(os.listdir(Path(self.config.image_dir) / folder))
            except (FileNotFoundError, NotADirectoryError):
                return frozenset()

        return names


def picture(image_id: str) -> str | None:
    """The file of a Wikidata id, "Q123456" -> "Q123/Q123456.jpg"; None when it is no such id."""
    number = image_id[1:]
    if image_id[:1] != "Q" or not (number.isascii() and number.isdecimal()):
        return None
    return f"Q{number[:3]}/{image_id}.jpg"


def build(config: Config) -> VLICT:
    """The data set of a validated ``data`` section."""
    return VLICT(config)
