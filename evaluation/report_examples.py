"""The examples of several runs joined: each text and each picture once, queries that all runs show first.

What is shown is bounded: ``EXAMPLES`` queries a split, ``PICTURES`` letters of pictures. The page says how many of how
many.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from evaluation.report_runs import System

EXAMPLES = 100
PICTURES = 12_000_000
"""Letters of data URIs in one page."""

TOP = 10
_PICTURE = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


class Gallery:
    """Pictures by number, each once; nothing but encoded pictures, and no more than the budget."""

    def __init__(self, budget: int = PICTURES) -> None:
        self.uris: list[str] = []
        self.left = budget
        self.refused: set[str] = set()
        self._numbers: dict[str, int] = {}

    def add(self, images: Sequence[dict] | None) -> list[int]:
        return [number for image in images or () if (number := self._add(image)) is not None]

    def _add(self, image: dict) -> int | None:
        uri = image.get("thumbnail")
        if uri in self._numbers:
            return self._numbers[uri]
        if not isinstance(uri, str) or not _PICTURE.fullmatch(uri) or len(uri) > self.left:
            self.refused.add(str(image.get("id")))
            return None
        self.left -= len(uri)
        self._numbers[uri] = len(self.uris)
        self.uris.append(uri)
        return self._numbers[uri]


def joined(found: Sequence[System], most: int = EXAMPLES, gallery: Gallery | None = None) -> dict[str, Any]:
    """{"pictures": [uri], "refused": how many there was no room or no picture for, "splits": {split: {"of", "seed",
    "queries": [...], "documents": {id: ...}, "runs": {label: {query id: {"top", "metrics", ...}}}}}}"""
    gallery = gallery or Gallery()
    splits = {}
    for split in dict.fromkeys(s.split for s in found):
        here = [s for s in found if s.split == split and s.examples and s.examples["examples"]]
        if here and most > 0:
            splits[split] = _split(here, most, gallery)
    return {"pictures": gallery.uris, "refused": len(gallery.refused), "splits": splits}


def _split(here: Sequence[System], most: int, gallery: Gallery) -> dict[str, Any]:
    by_run = {s.label: {e["query_id"]: e for e in s.examples["examples"]} for s in here}
    order = list(dict.fromkeys(qid for examples in by_run.values() for qid in examples))
    # Those that most runs show, and of these any: the sample stays one drawn by chance.
    wanted = sorted(order, key=lambda q: (-sum(q in examples for examples in by_run.values()), _hash(q)))[:most]
    documents: dict[str, dict] = {}

    def document(found: dict) -> str:
        if found["id"] not in documents:
            entry = {"title": found.get("title") or "", "text": found.get("text") or ""}
            documents[found["id"]] = entry | ({"images": i} if (i := gallery.add(found.get("images"))) else {})
        return found["id"]

    queries, runs = [], {label: {} for label in by_run}
    for qid in sorted(wanted, key=order.index):
        asked = [examples[qid] for examples in by_run.values() if qid in examples]
        # What one kind of query leaves out (ablations, baselines) another kind of the same query has.
        full = {name: next((e[name] for e in asked if e.get(name)), None) for name in
                ("question", "instruction", "answers", "meta", "images", "gold")}  # fmt: skip
        queries.append({
            "id": qid, "question": full["question"] or "", "instruction": full["instruction"] or "",
            "answers": [str(a) for a in full["answers"] or ()], "meta": full["meta"] or {},
            "images": gallery.add(full["images"]), "gold": [document(g) for g in full["gold"] or ()],
        })  # fmt: skip
        for label, examples in by_run.items():
            if qid in examples:
                runs[label][qid] = _answer(examples[qid], full, document)
    return {
        "of": max(s.cell.get("queries", 0) for s in here),
        "queries": queries,
        "documents": documents,
        "runs": runs,
    }


def _answer(example: dict, full: dict, document) -> dict[str, Any]:
    found = (example.get("top") or ())[:TOP]
    parts = (("image", "images"), ("question", "question"))
    return {
        "top": [[document(t), t.get("score"), t.get("relevant"), t.get("holds_answer")] for t in found],
        "metrics": example.get("metrics") or {},
        "without": [word for word, name in parts if full[name] and not example.get(name)],
        "ranks": {g["id"]: g.get("rank") for g in example.get("gold") or ()},
    }


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
