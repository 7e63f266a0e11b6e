"""Questions with what answers them, in one file per split, and often a passages file that the test questions search.

What the data sets of the papers have in common; ``dataset/<name>.py`` says how its files are read.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records import Document, Example, ImageRef, Query, unique
from dataset.draw import Draws, restrict
from dataset.lines import LineCorpus

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Pair:
    """positives: the passages that answer. negatives: hard ones."""

    query: Query
    positives: tuple[Document, ...]
    negatives: tuple[Document, ...] = ()


class PairData:
    """A data set of ``path``, ``valid_path`` and ``test_path``.

    Train and valid are judged on the passages that answer their own questions, each once: that needs no passages file.
    Test is judged on ``passages`` where the data set has such a file, and else on its own likewise. Without valid_path,
    ``valid_samples`` of the training questions are held out, the same in every process and every run.
    """

    train_split, valid_split = "train", "valid"
    named = True
    """Whether the ids of the test questions' passages are those of the passages file."""

    def __init__(self, config) -> None:
        self.config = config
        self._pairs: dict[str, list[Pair]] = {}
        self._usable: dict[str, list[Pair]] = {}
        self._answers: dict[str, dict[tuple, Document]] = {}
        self._judged: dict[str, dict[str, dict[str, int]]] = {}

    def read(self, path: str, split: str) -> Iterable[Pair]:
        """What the file of a split holds (train is also read for the questions that are held out of it)."""
        raise NotImplementedError

    def passages(self) -> LineCorpus | None:
        """What the test questions search; None: the passages that answer them."""
        file = getattr(self.config, "passages", None)
        return None if file is None else LineCorpus(file)

    # ---- the protocol

    @property
    def test_splits(self) -> tuple[str, ...]:
        return ("test",) if self.config.test_path is not None else ("valid",)

    def corpus(self) -> Sequence[Document]:
        return self.corpus_of(self.test_splits[0])

    def corpus_of(self, split: str) -> Sequence[Document]:
        if split != "test" or self._passages is None:
            return list(self._own(split).values())
        if self.config.limit is None:
            return self._passages
        needed = {d.id for pair in self.pairs(split) for d in pair.positives if self.named}
        needed |= {d.id for d in self._passages[: len(needed) + self.config.limit]}
        return [d for d in map(self._passages.get, sorted(needed)) if d is not None]

    def queries(self, split: str) -> Sequence[Query]:
        return [restrict(pair.query, self.config.modality) for pair in self.pairs(split)]

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        if split not in self._judged:
            self._judged[split] = self._qrels(split)
        return self._judged[split]

    def _qrels(self, split: str) -> dict[str, dict[str, int]]:
        pairs = self.pairs(split)
        if split != "test" or self._passages is None:
            own = self._own(split)
            return {p.query.id: {own[_content(d)].id: 1 for d in p.positives} for p in pairs}
        if not self.named:
            raise UserError(
                f"the questions of '{self.config.test_path}' are judged by their answers and name no passages; ask for "
                "metrics that judge by answers, such as PseudoRecall@5 in eval.metrics."
            )
        return {p.query.id: {d.id: 1 for d in p.positives} for p in pairs}

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        """The positive and the negatives are drawn anew in every epoch."""
        pairs, own = self._answered(split), self._own(split)
        return Draws(len(pairs), epoch, seed, lambda i, rng: self._example(pairs[i], own, rng))

    def images(self) -> Sequence[ImageRef]:
        """Every image of the splits whose files are here, each once."""
        refs = {
            ref.key: ref for split in SPLITS if self.has(split) for p in self.pairs(split) for ref in p.query.images
        }
        return [refs[key] for key in sorted(refs)]

    # ---- reading

    def has(self, split: str) -> bool:
        file = self._file(split)
        return file is not None and Path(file).is_file()

    def pairs(self, split: str) -> list[Pair]:
        if split not in SPLITS:
            raise UserError(f"this data set has no split '{split}'; it has {', '.join(SPLITS)}.")
        if split not in self._pairs:
            if split != "test" and self.config.valid_path is None:
                self._pairs |= self._held_out()
            else:
                self._pairs[split] = self._checked(self.read(self._need(split), split))
        return self._pairs[split]

    def _file(self, split: str) -> str | None:
        key = {"train": "path", "valid": "valid_path", "test": "test_path"}[split]
        return getattr(self.config, key) if key != "valid_path" or self.config.valid_path else self.config.path

    def _need(self, split: str) -> str:
        file = self._file(split)
        if file is None:
            key = "path" if split == "train" else f"{split}_path"
            raise UserError(f"data.{key} is not given, so there is no split '{split}'; give its file.")
        return file

    def _held_out(self) -> dict[str, list[Pair]]:
        file = self._need("train")
        pairs, wanted = list(self.read(file, "train")), self.config.valid_samples
        if wanted >= len(pairs):
            raise UserError(f"data.valid_samples is {wanted} but '{file}' has {len(pairs)} questions; ask for fewer.")
        held = set(random.Random(0).sample(range(len(pairs)), wanted))
        valid = [pair for i, pair in enumerate(pairs) if i in held]
        train = [pair for i, pair in enumerate(pairs) if i not in held]
        return {"train": self._checked(train), "valid": self._checked(valid)}

    def _checked(self, pairs: Iterable[Pair]) -> list[Pair]:
        pairs = list(pairs)[: self.config.limit]
        list(unique(pair.query for pair in pairs))
        return pairs

    def _answered(self, split: str) -> list[Pair]:
        """Those that can train: a passage answers them."""
        if split not in self._usable:
            pairs = self.pairs(split)
            self._usable[split] = [pair for pair in pairs if pair.positives]
            if lacking := len(pairs) - len(self._usable[split]):
                message = f"{lacking} of {len(pairs)} questions of '{self._file(split)}' name no passage"
                if not self._usable[split]:
                    raise UserError(f"{message} that answers them; give questions with their passages.")
                print(f"note: {message}; they do not train.", file=sys.stderr)
        return self._usable[split]

    def _own(self, split: str) -> dict[tuple, Document]:
        """By content: the passages that answer a split's questions. Their ids are made of a question that they answer:
        files may give one text several ids, and one id several texts."""
        if split not in self._answers:
            own: dict[tuple, Document] = {}
            for pair in self.pairs(split):
                for i, d in enumerate(pair.positives):
                    id_ = d.id if d.id == pair.query.id else f"{pair.query.id}/{i}"
                    own.setdefault(_content(d), replace(d, id=id_))
            self._answers[split] = own
        return self._answers[split]

    @cached_property
    def _passages(self) -> LineCorpus | None:
        return self.passages()

    def _example(self, pair: Pair, own: Mapping[tuple, Document], rng: random.Random) -> Example:
        positive = own[_content(rng.choice(pair.positives))]
        wanted = getattr(self.config, "hard_negatives", 0)
        if len(pair.negatives) < wanted:
            raise UserError(
                f"question '{pair.query.id}' has {len(pair.negatives)} hard negatives, data.hard_negatives asks for "
                f"{wanted}."
            )
        negatives = tuple(rng.sample(pair.negatives, wanted))
        return Example(restrict(pair.query, self.config.modality), positive, negatives)


def _content(document: Document) -> tuple:
    return document.title, document.text, tuple(image.key for image in document.images)


def hard(id_: str, texts: Iterable[str]) -> tuple[Document, ...]:
    """Negatives of a question that come as texts."""
    return tuple(Document(f"{id_}#neg{i}", text) for i, text in enumerate(dict.fromkeys(texts)))


def coco(image_dir: str, split: str, year: int, name: str) -> ImageRef:
    """A picture of MS COCO. image_dir: the folder that has ``coco/train2014``, ``coco/val2014`` and so on, or one of
    these themselves, which stands for those beside it too. Its id is the same for all data sets of these pictures."""
    folder, root = f"{split}{year}", Path(image_dir)
    own = root.name in {f"{part}{year}" for part in ("train", "val", "test")}
    place = root.with_name(folder) if own else root / "coco" / folder
    return ImageRef(f"coco/{folder}/{name}", path=str(place / name))


def texts_of(found: Any, where: str, what: str) -> tuple[str, ...]:
    """A list of strings, or the keys of an object of weights."""
    if not isinstance(found, (list, dict)) or not all(isinstance(text, str) for text in found):
        raise UserError(f"{where} has the {what} {found!r:.60}; write a list of strings.")
    return tuple(found)
