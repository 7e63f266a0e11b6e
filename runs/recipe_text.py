"""Stage 1 of ViD2R as a share of the work: conversations in, pairs and their ledger out. Not a command of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import atomic_file
from dataset import vid2r_rules
from dataset.conversations import Item, turn_pairs, why_not
from dataset.ledger import Ledger
from dataset.vid2r_ids import hashes, own_ids

BLOCK = 512
"""Conversations of one block."""

TAGGER = "en_core_web_sm"


def noun_tagger() -> Callable[[str], list[str]] | None:
    """spaCy's small English model: a text -> its nouns and names; None, and a line that says so, when it is absent."""
    try:
        import spacy

        model = spacy.load(TAGGER, disable=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError):
        print(
            f"note: spaCy's {TAGGER} is not installed: responses of up to four words get no nouns of their question "
            "and are mostly too short to be kept (they are counted); pip install -r requirements-spacy.txt && "
            f"python -m spacy download {TAGGER}",
            file=sys.stderr,
        )
        return None

    @lru_cache(1 << 16)
    def nouns(text: str) -> list[str]:
        return [token.text for token in model(text) if token.pos_ in ("NOUN", "PROPN")]

    return nouns


class TextRules:
    """A worker of ``shares.run_share``. Rows: {"n", "image", "id", "question", "document"}."""

    def __init__(self, rules: str, drop_len: int, nouns, image_dir: str | None = None) -> None:
        if rules not in vid2r_rules.RULES:
            raise UserError(f"--rules {rules}: there are {', '.join(vid2r_rules.RULES)}.")
        self.rules, self.image_dir, self.ledger = rules, image_dir, Ledger()
        self.context = vid2r_rules.Context(drop_len, nouns)
        # Other shards' turns are only looked at for what this rule set remembers from turn to turn.
        self.passing = vid2r_rules.Context(drop_len, lambda text: [], self.context.memory)

    def state(self) -> dict[str, Any]:
        self.ledger.notes.update(self.context.notes)
        self.context.notes.clear()
        return {"ledger": self.ledger.as_json(), "memory": self.context.memory}

    def go_on(self, state: dict[str, Any]) -> None:
        self.ledger = Ledger.of(state["ledger"])
        self.context.memory.update(state["memory"])

    def __call__(self, part: Sequence[tuple[int, Item]], own: bool) -> list[dict]:
        if own:
            return [row for number, item in part for row in self._pairs(number, item)]
        if self.rules == "legacy-mire":
            for _, item in part:
                if why_not(item, self.image_dir) is None:
                    for _, question, response, problem in turn_pairs(item.value["conversations"]):
                        if problem is None:
                            vid2r_rules.refine(self.rules, question, response, self.passing)
        return []

    def _pairs(self, number: int, item: Item) -> Iterator[dict]:
        ledger = self.ledger
        ledger.read += 1
        reason = why_not(item, self.image_dir)
        if reason is not None:
            found = item.value if isinstance(item.value, dict) else {}
            ledger.skip(reason, number, byte=item.end, id=str(found.get("id")), image=str(found.get("image")))
            return
        ledger.used += 1
        value = item.value
        id_ = value.get("id", number)
        if id_ is None and self.rules == "clean":
            id_ = number
        for t, question, response, problem in turn_pairs(value["conversations"]):
            ledger.found += 1
            draft, dropped, changed = None, problem, []
            if problem is None:
                draft, dropped, changed = vid2r_rules.refine(self.rules, question, response, self.context)
            if draft is None:
                ledger.drop(dropped, number, id=f"{id_}_{t}", question=question, response=response)
                continue
            ledger.kept += 1
            ledger.changed.update(changed)
            yield {"n": number, "image": value["image"], "id": f"{id_}_{t}", "question": draft.question,
                   "document": draft.response}  # fmt: skip
        if len(value["conversations"]) % 2:
            ledger.notes["conversation with a last turn that nobody answers"] += 1


def write_pairs(folder: Path, rows: Callable[[], Iterator[dict]], rules: str) -> int:
    """responses.jsonl, each distinct response once, and pairs.jsonl with final ids; returns how many were changed."""
    changed = 0
    first = np.unique(hashes(row["document"] for row in rows()), return_index=True)[1]
    new = np.zeros(int(first.max()) + 1 if len(first) else 0, dtype=bool)
    new[first] = True
    with atomic_file(folder / "pairs.jsonl", "w") as pairs, atomic_file(folder / "responses.jsonl", "w") as responses:
        for place, (row, renamed) in enumerate(own_ids(rows, rules)):
            changed += renamed
            pairs.write(line({key: row[key] for key in ("image", "id", "question", "document")}))
            if place < len(new) and new[place]:
                responses.write(line({"id": place, "text": row["document"]}))
    return changed


def line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
