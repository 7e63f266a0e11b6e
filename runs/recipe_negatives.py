"""Hard negatives of a split's questions, for one shard. Not a command of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from core.errors import UserError
from core.files import read_json
from core.records import Document, Query
from runs import recipe, shares
from runs.common import corpus_of

T = TypeVar("T")

RULES = ("clean", "legacy")


def hard_negatives(
    found: Sequence[T], answers: Sequence[bool], least: int, rules: str, gold: Sequence[bool]
) -> list[T]:
    """What was retrieved, best first, without what answers; topped up from the end of the list to ``least``.

    legacy: as Ret-XKnow's script: the last ones whatever they are, so that one may stand twice or be an answer. clean:
    only those that are not among the negatives yet and not ``gold``; there may be fewer than ``least``.
    """
    negatives = [item for item, answer in zip(found, answers) if not answer]
    if rules == "legacy":
        if not negatives:
            negatives = list(found[-least:])
        if len(negatives) < least:
            negatives += found[-(least - len(negatives)) :]
        return negatives
    spare = [item for item, answer, is_gold in zip(found, answers, gold) if answer and not is_gold]
    return negatives + spare[::-1][: max(0, least - len(negatives))]


@dataclass
class Mining:
    """What is mined: a data set's questions, the passages they search, and who searches."""

    data: Any
    split: str
    retriever: Any
    index: Any
    visual: Any = None
    text_only: bool = False

    def __post_init__(self) -> None:
        corpus = searched(self.data, self.split)
        by_id = None if hasattr(corpus, "get") else {d.id: d for d in corpus}
        self.document: Callable[[str], Document | None] = corpus.get if by_id is None else by_id.get
        self.qrels = self.data.qrels(self.split)
        # A split that is judged on passages of its own names them by other ids than the passages file: told by text.
        own = corpus_of(self.data, self.split) if hasattr(self.data, "passages") else ()
        self.texts = {d.id: d.text.strip() for d in own}
        self.judge = getattr(self.data, "judge", None)

    def queries(self) -> Sequence[Query]:
        found = self.data.queries(self.split)
        return [replace(query, images=()) for query in found] if self.text_only else found

    def gold(self, query: Query) -> Set[str]:
        """Ids, and texts, of the passages that answer a question."""
        ids = {id_ for id_, grade in self.qrels.get(query.id, {}).items() if grade > 0}
        return ids | {self.texts[id_] for id_ in ids if id_ in self.texts}

    def passages(self, ids: Sequence[str]) -> list[Document]:
        found = [self.document(id_) for id_ in ids]
        if None in found:
            raise UserError(
                f"the index '{self.index.path}' answers with '{ids[found.index(None)]}', which the passages of this "
                "data set do not hold; index them anew (python -m runs.run_indexer --overwrite)."
            )
        return found


def searched(data, split: str) -> Sequence[Document]:
    """What negatives come from: the passages file where there is one, else what the split is judged on."""
    passages = data.passages() if hasattr(data, "passages") else None
    return corpus_of(data, split) if passages is None else passages


class Worker:
    """Of ``shares.run_share``. Rows: {"n", "id", "neg_ids", "neg_scores", "answers": how many held one}."""

    def __init__(self, mining: Mining, topk: int, least: int, rules: str) -> None:
        from runs.common import query_encoder

        self.mining, self.least, self.rules = mining, least, rules
        self.topk = min(topk, len(mining.index))
        self.encode = query_encoder(mining.retriever, mining.visual)

    def state(self) -> dict:
        return {}

    def go_on(self, state: dict) -> None:
        """Nothing is carried from block to block."""

    def __call__(self, part: Sequence[tuple[int, Query]], own: bool) -> list[dict]:
        if not own:
            return []
        queries = [query for _, query in part]
        found = self.mining.index.search(self.encode(queries), self.topk)
        return [{"n": n, **self.row(query, ranking)} for (n, query), ranking in zip(part, found, strict=True)]

    def row(self, query: Query, ranking) -> dict[str, Any]:
        gold, judge = self.mining.gold(query), self.mining.judge
        documents = self.mining.passages(ranking.ids)
        is_gold = [d.id in gold or d.text.strip() in gold for d in documents]
        answers = [g or (judge is not None and judge(query, d)) for g, d in zip(is_gold, documents)]
        chosen = hard_negatives(range(len(documents)), answers, self.least, self.rules, is_gold)
        scores = [round(ranking.scores[i], 4) for i in chosen]
        return {"id": query.id, "neg_ids": [ranking.ids[i] for i in chosen], "neg_scores": scores,
                "answers": sum(answers)}  # fmt: skip


def mine(mining: Mining, work: recipe.Work, topk: int, least: int, rules: str, batch_size: int) -> dict | None:
    """Returns the counts; None while other shards are not done."""
    if work.finished:
        recipe.say([f"complete: '{work.out}'"])
        return read_json(work.counts)
    queries = mining.queries()
    worker = Worker(mining, topk, least, rules)
    shares.run_share(work.journal("search"), shares.Listed(queries), work.shard, batch_size, worker, "mining negatives")
    parts = work.journals("search")
    if parts is None:
        return None
    counts = {"queries": len(queries), "searched": worker.topk, "with an answer among them": 0, "topped up": 0,
              "negatives": 0, "fewer than asked for": 0}  # fmt: skip

    def rows() -> Iterator[dict]:
        own = source_records(mining)
        for query, row in zip(queries, shares.merged(parts), strict=True):
            negatives = mining.passages(row["neg_ids"])
            counts["with an answer among them"] += row["answers"] > 0
            counts["topped up"] += worker.topk - row["answers"] < least
            counts["fewer than asked for"] += len(negatives) < least
            counts["negatives"] += len(negatives)
            record = own.get(query.id) or plain_record(mining, query)
            yield {**record, "negs": [d.text for d in negatives], "neg_ids": row["neg_ids"],
                   "neg_scores": row["neg_scores"]}  # fmt: skip

    done = work.finish(rows(), lambda: counts)
    recipe.say([*(f"{key}: {value}" for key, value in done.items() if isinstance(value, int)), f"saved: '{work.out}'"])
    return done


def plain_record(mining: Mining, query: Query) -> dict[str, Any]:
    """A query whose split is not a file of records, as a record that ``data.name: vid2r`` reads."""
    record: dict[str, Any] = {"id": query.id, "question": query.text}
    if query.images:
        record["image"] = query.images[0].path or query.images[0].id
    answer = next((id_ for id_, grade in mining.qrels.get(query.id, {}).items() if grade > 0), None)
    document = None if answer is None else mining.document(answer)
    return record if document is None else {**record, "document": document.text}


def source_records(mining: Mining) -> dict[str, dict]:
    """The records of the split's file by the ids of their queries, where it is a file of such records."""
    fields = {"train": "path", "valid": "valid_path", "test": "test_path"}
    path = getattr(mining.data.config, fields.get(mining.split, "path"), None) or getattr(
        mining.data.config, "path", None
    )
    if path is None or Path(path).suffix not in (".json", ".jsonl"):
        return {}
    out = {}
    for _, item, _ in shares.Source([str(path)]).read():
        if isinstance(item.value, dict):
            id_ = item.value.get("question_id", item.value.get("id"))
            if id_ is not None:
                out[str(id_)] = item.value
    return out
