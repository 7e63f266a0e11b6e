"""M2KR, the benchmark of PreFLMR (Lin et al. 2024): ten subsets of questions about pictures, and passages for each.

Every subset X comes as ``X_data`` (splits train, valid, test) and ``X_passages`` (train_passages, valid_passages,
test_passages). Where to get them, sizes and commands: ``docs/M2KR.md``.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from core.answers import holds_answer
from core.config import Strict
from core.errors import UserError
from core.records import Document, Example, ImageRef, Query
from dataset.draw import Draws, Modality, restrict
from dataset.m2kr_instructions import TEMPLATES
from dataset.m2kr_rows import Lazy, Passages, Rows, fetch, find, id_of, joined

REPO = "BByrneLab/multi_task_multi_modal_knowledge_retrieval_benchmark_M2KR"
Subset = Literal["WIT", "IGLUE", "KVQA", "CC", "MSMARCO", "OVEN", "LLaVA", "OKVQA", "Infoseek", "EVQA"]

FIELDS = ("question_id", "question", "instruction", "img_path", "pos_item_ids", "pos_item_contents", "answers")


class Config(Strict):
    """``data`` section for ``name: m2kr``.

    subset: one of the ten, or a list; in a list every id begins with "<subset>/". path: folder with X_data and
    X_passages. repo: hub data set whose files are downloaded into path where they are missing; null downloads nothing.
    image_dir: folder that img_path is relative to, of Infoseek its last part. image_roots: {subset: folder} where a
    subset's is another. blank_image: a question without picture shows a black one, as PreFLMR's script does.
    instructions: "drawn" redraws those of training examples from the subset's templates, "stored" keeps each row's
    own; evaluation always asks with the stored ones. "none" leaves them out.
    valid_samples: of a subset without valid split, so many training rows validate and do not train. random_negatives:
    passages per training example, drawn from the subset's train_passages. limit: use only the first N rows of every
    split, and the passages they need plus N others.
    """

    name: Literal["m2kr"] = "m2kr"
    subset: Subset | list[Subset]
    path: str = "data/m2kr"
    repo: str | None = None
    image_dir: str = "data/m2kr_images"
    image_roots: dict[Subset, str] = {}
    blank_image: bool = False
    instructions: Literal["drawn", "stored", "none"] = "drawn"
    valid_samples: int = Field(512, ge=1)
    random_negatives: int = Field(0, ge=0)
    modality: Modality = "image+question"
    limit: int | None = Field(None, ge=1)


class Task:
    """One subset: rows in, frozen queries and documents out."""

    def __init__(self, name: str, config: Config, prefix: str = "") -> None:
        self.name, self.config, self.prefix = name, config, prefix
        self._rows: dict[str, tuple[Rows, list[int] | range]] = {}
        self._passages: dict[str, Passages] = {}
        self._files: dict[tuple[str, str], list[Path]] = {}

    # ---- files

    def files(self, part: str, split: str) -> list[Path]:
        """Of ``part`` "data" or "passages"; downloaded first where ``data.repo`` says so."""
        if (part, split) not in self._files:
            folder = Path(self.config.path) / f"{self.name}_{part}"
            files = find(folder, split)
            if not files and self.config.repo is not None:
                fetch(self.config.repo, [f"{folder.name}/{split}-*"], folder.parent)
                files = find(folder, split)
            self._files[part, split] = files
        return self._files[part, split]

    def lacks(self, part: str, split: str) -> UserError:
        hub = self.config.repo or REPO
        return UserError(
            f"there is no {self.name}_{part} split '{split}' in data.path '{self.config.path}'; put it there (hf "
            f"download {hub} --repo-type dataset --include '{self.name}_*/*' --local-dir {self.config.path}), or set "
            f"data.repo to download it."
        )

    def has(self, split: str) -> bool:
        if self.files("data", split):
            return True
        return split == "valid" and bool(self.files("data", "train"))

    # ---- rows

    def rows(self, split: str) -> tuple[Rows, list[int] | range]:
        """The file's rows, and which of them are the split's."""
        if split not in self._rows:
            if split not in ("train", "valid", "test"):
                raise UserError(f"M2KR has no split '{split}'; it has train, valid, test.")
            held = split in ("train", "valid") and not self.files("data", "valid")
            files = self.files("data", "train" if held else split)
            if not files:
                raise self.lacks("data", split)
            rows = Rows(files, FIELDS)
            chosen = self._held(len(rows), split) if held else range(len(rows))
            chosen = chosen[: self.config.limit]
            _check_unique(rows, chosen)
            self._rows[split] = rows, chosen
        return self._rows[split]

    def _held(self, count: int, split: str) -> list[int]:
        wanted = self.config.valid_samples
        if wanted >= count:
            raise UserError(
                f"data.valid_samples is {wanted} but {self.name} has {count} training rows and no valid split; "
                "ask for fewer."
            )
        held = set(random.Random(0).sample(range(count), wanted))  # the same on every rank and in every run
        return [i for i in range(count) if (i in held) == (split == "valid")]

    def queries(self, split: str) -> Sequence[Query]:
        rows, chosen = self.rows(split)
        return Lazy(len(chosen), lambda i: self.query(rows[chosen[i]]))

    def query(self, row: dict[str, Any], rng: random.Random | None = None) -> Query:
        """rng: draws the instruction, of a training example."""
        id_ = self.prefix + str(row["question_id"])
        answers = row["answers"] or ()
        if not isinstance(answers, (list, tuple)):
            raise UserError(
                f"question '{row['question_id']}' of {self.name} has the answers {answers!r:.40}; write a list."
            )
        meta = {"answers": tuple(str(a) for a in answers)}
        made = Query(id_, self.text(row, "question"), self.pictures(row), self.instruction(row, rng), self.name, meta)
        return restrict(made, self.config.modality)

    def text(self, row: dict[str, Any], field: str) -> str:
        found = "" if row[field] is None else row[field]
        if not isinstance(found, str):
            raise UserError(
                f"question '{row['question_id']}' of {self.name} has the {field} {found!r:.40}; write a string."
            )
        return found

    def pictures(self, row: dict[str, Any]) -> tuple[ImageRef, ...]:
        path = self.text(row, "img_path")
        if not path:
            return (blank(),) if self.config.blank_image else ()
        return (self.picture(path),)

    def picture(self, path: str) -> ImageRef:
        shown = PurePosixPath(path).name if self.name == "Infoseek" else path
        root = self.config.image_roots.get(self.name, self.config.image_dir)
        return ImageRef(f"{self.name}/{shown}", path=str(Path(root) / shown))

    def instruction(self, row: dict[str, Any], rng: random.Random | None) -> str:
        """A row without one of its own is asked with the first template of its subset."""
        templates = TEMPLATES.get(self.name, ())
        if self.config.instructions == "none":
            return ""
        if rng is not None and self.config.instructions == "drawn" and templates:
            return rng.choice(templates)
        return self.text(row, "instruction").strip() or next(iter(templates), "")

    def images(self, split: str) -> dict[str, ImageRef]:
        rows, chosen = self.rows(split)
        paths = list(rows.column("img_path"))
        first = {paths[i] if isinstance(paths[i], str) else repr(paths[i]): i for i in reversed(chosen)}
        refs = [ref for i in first.values() for ref in self.pictures({"img_path": paths[i], "question_id": f"row {i}"})]
        return {ref.key: ref for ref in refs}

    # ---- what is relevant

    def positives(self, row: dict[str, Any]) -> list[str]:
        found = row["pos_item_ids"]
        if not isinstance(found, list) or not all(isinstance(i, (str, int)) for i in found):
            raise UserError(
                f"question '{row['question_id']}' of {self.name} has the pos_item_ids {found!r:.60}; write a list of "
                "passage ids."
            )
        return list(dict.fromkeys(self.prefix + str(i) for i in found))

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        rows, chosen = self.rows(split)
        ids, found = list(rows.column("question_id")), list(rows.column("pos_item_ids"))
        pairs = ((ids[i], {"question_id": ids[i], "pos_item_ids": found[i]}) for i in chosen)
        return {self.prefix + str(id_): dict.fromkeys(self.positives(row), 1) for id_, row in pairs}

    # ---- passages

    def passages(self, split: str) -> Passages:
        """What a split is judged on. Held-out training rows are judged on the train passages."""
        if split not in self._passages:
            own = split if self.files("data", split) else "train"
            files = self.files("passages", f"{own}_passages")
            if not files:
                raise self.lacks("passages", f"{own}_passages")
            self._passages[split] = Passages(files, lambda id_, content: Document(id_, content), self.prefix)
        return self._passages[split]

    def corpus(self, split: str) -> Sequence[Document]:
        passages = self.passages(split)
        if self.config.limit is None:
            return passages
        needed = {id_ for judged in self.qrels(split).values() for id_ in judged}
        others = [id_ for id_ in passages.places if id_ not in needed][: self.config.limit]
        kept = [id_ for id_ in passages.places if id_ in needed.union(others)]
        return Lazy(len(kept), lambda i: passages.of(kept[i]))

    # ---- drawing

    def examples(self, split: str) -> tuple[int, Any]:
        rows, chosen = self.rows(split)
        return len(chosen), lambda i, rng: self.example(rows[chosen[i]], split, rng)

    def example(self, row: dict[str, Any], split: str, rng: random.Random) -> Example:
        positives = self.positives(row)
        if not positives:
            raise UserError(f"question '{row['question_id']}' of {self.name} has no pos_item_ids; remove the row.")
        place = rng.randrange(len(positives))
        contents = row["pos_item_contents"]
        if isinstance(contents, list) and len(contents) == len(row["pos_item_ids"]) == len(positives):
            positive = Document(positives[place], contents[place])
        else:
            positive = self.passages(split).of(positives[place])
        return Example(self.query(row, rng), positive, self._negatives(positives, split, rng))

    def _negatives(self, positives: list[str], split: str, rng: random.Random) -> tuple[Document, ...]:
        wanted = self.config.random_negatives
        if not wanted:
            return ()
        passages = self.passages(split)
        drawn: dict[str, Document] = {}
        if len(passages) < wanted + len(positives):
            raise UserError(
                f"data.random_negatives is {wanted} but {self.name} has {len(passages)} passages; ask for fewer."
            )
        while len(drawn) < wanted:
            document = passages[rng.randrange(len(passages))]
            if document.id not in positives:
                drawn.setdefault(document.id, document)
        return tuple(drawn.values())


def _check_unique(rows: Rows, chosen: Sequence[int]) -> None:
    seen: dict[str, int] = {}
    ids = list(rows.column("question_id"))
    for place in chosen:
        id_ = id_of(ids[place], rows, place)
        if id_ in seen:
            raise UserError(
                f"question_id '{id_}' stands twice ({rows.where(seen[id_])}, and row {place}); ids must be unique: "
                "drop or rename one of them."
            )
        seen[id_] = place


@cache
def blank() -> ImageRef:
    """A black picture of 336 x 336 pixels."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (336, 336)).save(out, format="PNG")
    return ImageRef("black-336x336", data=out.getvalue())


class M2KR:
    """One subset, or several whose rows follow each other."""

    train_split, valid_split = "train", "valid"

    def __init__(self, config: Config) -> None:
        self.config = config
        names = config.subset if isinstance(config.subset, list) else [config.subset]
        if not names or len(set(names)) != len(names):
            raise UserError(f"data.subset is {names}; name at least one subset, each once.")
        several = isinstance(config.subset, list)
        self.tasks = [Task(name, config, f"{name}/" if several else "") for name in names]

    @cached_property
    def test_splits(self) -> tuple[str, ...]:
        """CC has no test split: its held-out rows are judged."""
        return ("valid",) if all(task.name == "CC" for task in self.tasks) else ("test",)

    # ---- the protocol

    def corpus(self) -> Sequence[Document]:
        """What the test queries are judged on."""
        return self.corpus_of(self.test_splits[0])

    def corpus_of(self, split: str) -> Sequence[Document]:
        """What a split is judged on: each of the three splits has passages of its own."""
        return joined([task.corpus(split) for task in self._with(split)])

    def queries(self, split: str) -> Sequence[Query]:
        return joined([task.queries(split) for task in self._with(split)])

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        return {id_: judged for task in self._with(split) for id_, judged in task.qrels(split).items()}

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        parts = [task.examples(split) for task in self._with(split)]
        makers = joined([Lazy(count, lambda i, make=make: (make, i)) for count, make in parts])

        def make(position: int, rng: random.Random) -> Example:
            of_task, place = makers[position]
            return of_task(place, rng)

        return Draws(len(makers), epoch, seed, make)

    def images(self) -> Sequence[ImageRef]:
        """Every image of the splits whose files are here, each once."""
        refs: dict[str, ImageRef] = {}
        for task in self.tasks:
            for split in ("train", "valid", "test"):
                if task.has(split):
                    refs |= task.images(split)
        return [refs[key] for key in sorted(refs)]

    def judge(self, query: Query, document: Document) -> bool:
        """Whether the passage holds one of the question's answers (PseudoRecall)."""
        return holds_answer(query.meta["answers"], document.text)

    def _with(self, split: str) -> list[Task]:
        """The tasks that have the split; of a single one its absence is told by its rows."""
        if len(self.tasks) == 1:
            return self.tasks
        found = [task for task in self.tasks if task.has(split)]
        if not found:
            raise self.tasks[0].lacks("data", split)
        return found


def missing_images(queries: Sequence[Query]) -> list[str]:
    """Files that the queries show and that are not there, sorted."""
    paths = {image.path for query in queries for image in query.images if image.path is not None}
    return sorted(path for path in paths if not Path(path).is_file())


def build(config: Config) -> M2KR:
    """The data set of a validated ``data`` section."""
    return M2KR(config)
