"""The numbers of ``runs.dataset_stats``. Not a command of its own."""

from __future__ import annotations

import json
import os
import random
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import read_json
from core.progress import progress
from dataset import near_duplicates as near
from dataset.conversations import is_unicode, items
from dataset.vid2r_ids import hashes
from runs.shares import Source

SHOWN = 20
"""Cases of near-duplicates and overlap that are written out."""

LEAKS_FROM = 3
"""Words an answer needs for its standing in the question to count: "a dog" stands in many."""


class Stats:
    """One file, read once (and single records again by their place). About 200 bytes a record are held."""

    @classmethod
    def of(cls, path: str, image_dir: str | None, samples: int, seed: int, limit: int | None) -> Stats:
        made = cls(path)
        made._read(image_dir, samples, seed, limit)
        return made

    def __init__(self, path: str) -> None:
        self.path, self.counts = path, Counter()
        self.lengths: dict[str, Sequence[int]] = {n: array("L") for n in ("question", "document", "answer")}
        self.keys: dict[str, Any] = {name: array("Q") for name in ("id", "image", "question and document", "document")}
        self.drawn: list[dict] = []
        self.places = array("Q")

    def _read(self, image_dir: str | None, samples: int, seed: int, limit: int | None) -> None:
        rng, marks = random.Random(seed), []
        checked: dict[str, bool] = {}
        source = Source([self.path], limit)
        with progress(None, f"reading {Path(self.path).name}", total=source.total(), unit=source.unit) as bar:
            begin = 0
            for _, item, place in source.read():
                self.counts["read"] += 1
                record = item.value
                if not self._usable(record):
                    self.counts["not usable"] += 1
                    begin = place[1]
                    continue
                question, document = record["question"], text_of(record)
                self.places.append(begin)
                begin = place[1]
                self._count(record, question, document)
                if image_dir is not None and record.get("image"):
                    image = str(record["image"])
                    if len(checked) > 1 << 16:
                        checked.clear()
                    if image not in checked:
                        checked[image] = os.path.isfile(Path(image_dir) / image)
                    self.counts["images missing"] += not checked[image]
                marks.append(near.signature(document))
                if len(marks) == 4096:  # as one array: small ones cost more than they hold
                    self._mark(marks)
                    marks = []
                self._draw(record, samples, rng)
                bar.update(source.passed(place) - bar.n)
        self._mark(marks)
        if not len(self.places):
            raise UserError(f"'{self.path}' holds no record with question and document; give a file of such records.")
        self.marks = np.concatenate(self._marks)

    def _mark(self, marks: list[np.ndarray]) -> None:
        self._marks = [*getattr(self, "_marks", []), *([np.stack(marks)] if marks else [])]

    @staticmethod
    def _usable(record: Any) -> bool:
        if not isinstance(record, dict) or not isinstance(record.get("question"), str) or not text_of(record).strip():
            return False
        return is_unicode(json.dumps(record, ensure_ascii=False))

    def _count(self, record: dict, question: str, document: str) -> None:
        answer = record.get("answer")
        self.lengths["question"].append(len(question.split()))
        self.lengths["document"].append(len(document.split()))
        named = {"document": document, "question and document": f"{question}\n{document}"}
        if (id_ := record.get("question_id", record.get("id"))) is not None:
            named["id"] = str(id_)
        if record.get("image"):
            named["image"] = str(record["image"])
        for name, text in named.items():
            self.keys[name].append(int(hashes([text])[0]))
        plain = " ".join(near.words(question))
        if isinstance(answer, str):
            told = " ".join(near.words(answer))
            self.lengths["answer"].append(len(answer.split()))
            self.counts["answer word for word in the document"] += bool(told) and told in " ".join(near.words(document))
            self.counts["answer word for word in the question"] += told.count(" ") + 1 >= LEAKS_FROM and told in plain
        self.counts["question word for word in the document"] += plain.count(
            " "
        ) + 1 >= LEAKS_FROM and plain in " ".join(near.words(document))
        self.counts["without an image"] += not record.get("image")

    def _draw(self, record: dict, samples: int, rng: random.Random) -> None:
        """Every record with the same chance, without knowing how many there are."""
        if len(self.drawn) < samples:
            self.drawn.append(record)
        elif samples and (at := rng.randrange(len(self.places))) < samples:
            self.drawn[at] = record

    def record(self, number: int) -> dict:
        """Record ``number`` of those that are usable, read again."""
        return next(items(self.path, int(self.places[number]), 1 if self.places[number] else 0)).value

    def report(self) -> dict[str, Any]:
        counts = self.counts
        file = Path(self.path)
        counted = file.with_name(f"{file.stem}.counts.json")
        report: dict[str, Any] = {"records": {"read": counts["read"], "usable": len(self.places), "not usable":
                                              counts["not usable"]}}  # fmt: skip
        if counted.is_file():
            found = read_json(counted)
            report["rules"] = {
                key: found[key] for key in ("conversations", "pairs", "changed", "notes") if key in found
            }
        distinct = {name: len(np.unique(known(keys))) for name, keys in self.keys.items()}
        report["duplicates"] = {f"same {name}": len(keys) - distinct[name] for name, keys in self.keys.items()
                                if name != "image"}  # fmt: skip
        report["images"] = {"distinct": distinct["image"], "records without": counts["without an image"]}
        if "images missing" in counts:
            report["images"]["records whose file is missing"] = counts["images missing"]
        report["leakage"] = {key: value for key, value in counts.items() if "word for word" in key}
        report["lengths in words"] = {name: spread(values) for name, values in self.lengths.items() if len(values)}
        report["near-duplicates"] = self._near()
        return report

    def _near(self) -> dict[str, Any]:
        """Documents that are nearly, but not exactly, another's."""
        _, first = np.unique(known(self.keys["document"]), return_index=True)
        first = np.sort(first)
        pairs = near.alike(self.marks[first])
        samples = [self.case(int(first[i]), self, int(first[j])) for i, j in pairs[:SHOWN]]
        return {"documents with one": len(np.unique(pairs)), "pairs": len(pairs), "samples": samples}

    def case(self, mine: int, other: Stats, its: int) -> dict[str, Any]:
        one, two = text_of(self.record(mine)), text_of(other.record(its))
        return {"first": one, "second": two, "similarity": round(near.similarity(one, two), 3)}


def overlap(train: Stats, test: Stats) -> dict[str, Any]:
    """What of the test file also stands in the training file."""
    out: dict[str, Any] = {"test records": len(test.places)}
    for name in ("image", "question and document", "document"):
        out[f"with the same {name}"] = int(np.isin(known(test.keys[name]), known(train.keys[name])).sum())
    both = near.alike(np.concatenate([train.marks, test.marks]))
    crossing = both[(both[:, 0] < len(train.places)) & (both[:, 1] >= len(train.places))] - [0, len(train.places)]
    out["with a near-duplicate document"] = len(np.unique(crossing[:, 1]))
    out["samples"] = [train.case(i, test, j) for i, j in crossing[:SHOWN].tolist()]
    return out


def known(keys: array) -> np.ndarray:
    return np.frombuffer(keys, np.uint64) if keys else np.zeros(0, np.uint64)


def text_of(record: dict) -> str:
    """What answers: the document, else the first of the contexts of a record that has such."""
    found = record.get("document")
    if found is None and isinstance(record.get("ctxs"), list) and record["ctxs"]:
        found = record["ctxs"][0].get("text") if isinstance(record["ctxs"][0], dict) else None
    return found if isinstance(found, str) else ""


def spread(values: Sequence[int]) -> dict[str, float]:
    found = np.frombuffer(values, dtype=f"u{values.itemsize}")
    return {"mean": round(float(found.mean()), 2), "median": int(np.median(found)),
            "99th percentile": int(np.percentile(found, 99)), "longest": int(found.max())}  # fmt: skip
