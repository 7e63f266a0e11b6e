"""What is relevant, for the metrics of a run: qrels, and answers in passages. Not a command of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from core.answers import SUBSTRING, WORDS
from core.errors import UserError
from core.protocols import Ranking
from core.records import Query
from evaluation.metrics import PSEUDO_RECALL, Scores, apart, by_answers, evaluate, parse
from evaluation.relevance import Kept, Passages, hits
from runs.common import corpus_of

TOP = 10
"""Passages of a query that its examples and its line in the per-query file show."""


@dataclass(frozen=True)
class Judgement:
    """Rankings of one split, judged. qrels: empty when no metric asked for them. passages: what was read of the corpus,
    at least the first of every query and the first ``TOP`` and relevant ones of ``shown``."""

    scores: Scores
    qrels: Mapping[str, Mapping[str, int]]
    passages: Passages
    shown: Sequence[Query]


class Judges:
    """The metrics of a data set: Pseudo ones by the answers of its queries, everything else by its qrels.

    kept: file of what was judged before (see ``evaluation.relevance``); None keeps nothing.
    """

    def __init__(self, data, metrics: Sequence[str], kept: str | Path | None = None) -> None:
        self.data, self.metrics, self._kept = data, list(metrics), kept
        self.by_qrels, self.by_answers = apart(metrics)
        if self.by_answers and not knows_answers(data):
            raise UserError(
                f"eval.metrics has '{self.by_answers[0]}', but data.name '{data.config.name}' knows no "
                "answer texts; drop it."
            )
        self._passages: dict[str, Passages] = {}

    @cached_property
    def kept(self) -> Kept | None:
        return None if self._kept is None else Kept(self._kept)

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        """Empty when no metric asks for them: a data set may know answers only."""
        return self.data.qrels(split) if self.by_qrels else {}

    def passages(self, split: str) -> Passages:
        if split not in self._passages:
            self._passages[split] = Passages(corpus_of(self.data, split))
        return self._passages[split]

    def judge(
        self, split: str, queries: Sequence[Query], rankings: Mapping[str, Ranking], shown: Sequence[Query] = ()
    ) -> Judgement:
        """Every metric of every query, in the order of the metrics. The passages are read in one go."""
        asked, passages = self.qrels(split), self.passages(split)
        qrels = {query.id: asked[query.id] for query in queries if query.id in asked}
        if self.by_answers and not any(answers_of(queries).values()):
            raise UserError(
                f"'{self.by_answers[0]}' is asked for, but no query of split '{split}' has answers; drop the metric."
            )
        depth = max((parse(name)[1] for name in self.by_answers), default=1)
        wanted = {id_ for ranking in rankings.values() for id_ in ranking.ids[:depth]}
        wanted.update(id_ for q in shown if q.id in rankings for id_ in rankings[q.id].ids[:TOP])
        passages.fetch(wanted, {id_ for query in shown for id_ in gold(qrels, query.id)[:TOP]})
        scores = evaluate(rankings, qrels, self.by_qrels) if self.by_qrels else {}
        for rule, names in (
            (WORDS, [n for n in self.by_answers if parse(n)[0] != PSEUDO_RECALL]),
            (SUBSTRING, [n for n in self.by_answers if parse(n)[0] == PSEUDO_RECALL]),
        ):
            if names:
                cut = max(parse(name)[1] for name in names)
                held = hits(rankings, answers_of(queries), passages, rule, cut, self.kept)
                scores |= by_answers(held, [query.id for query in queries], names)
        return Judgement({name: scores[name] for name in self.metrics}, qrels, passages, shown)


def knows_answers(data) -> bool:
    """Whether a data set's queries carry ``meta["answers"]``: it then has a ``judge``."""
    return hasattr(data, "judge")


def answers_of(queries: Iterable[Query]) -> dict[str, Sequence]:
    """Query id -> its answers."""
    return {query.id: query.meta.get("answers") or () for query in queries}


def gold(qrels: Mapping[str, Mapping[str, int]], query_id: str) -> list[str]:
    """The relevant ids of a query, best grade first, then by id."""
    grades = {id_: grade for id_, grade in qrels.get(query_id, {}).items() if grade > 0}
    return sorted(grades, key=lambda id_: (-grades[id_], id_))


def golds_indexed(index, qrels: Mapping[str, Mapping[str, int]], passages: Passages) -> None:
    """An answer that the passages hold and the index does not can never be found: an error, not a low number. One that
    the passages lack too counts as not found, with a note."""
    asked = list(dict.fromkeys(id_ for judged in qrels.values() for id_ in judged))
    known = {id_ for id_, place in zip(asked, index.find(asked)) if place >= 0}  # not all ids: they may be millions
    lost = [(query, id_) for query, judged in qrels.items() for id_ in judged if id_ not in known]
    passages.fetch((), {id_ for _, id_ in lost})
    here = [(query, id_) for query, id_ in lost if id_ in passages]
    if here:
        query, id_ = here[0]
        raise UserError(
            f"the index '{index.path}' does not hold '{id_}', the answer of query '{query}' ({len(here)} such); "
            "index the passages of this data set anew (python -m runs.run_indexer --overwrite)."
        )
    if lost:
        print(f"note: {len(lost)} answers, such as '{lost[0][1]}', are no passages here; they count as not found")


class Named:
    """An index that colbert-ai built, answering with the ids of the passages: its own are their places."""

    def __init__(self, index, ids: Sequence[str]) -> None:
        if len(index) != len(ids):
            raise UserError(
                f"the index '{index.path}' of colbert-ai has {len(index)} passages and this data set {len(ids)}; its "
                "passages are told by their places alone, so give the index of this very collection."
            )
        self._index, self._ids, self.path, self.manifest = index, ids, index.path, index.manifest

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> Sequence[str]:
        return self._ids

    def find(self, ids: Sequence[str]) -> list[int]:
        """The place of each id, -1 where there is none."""
        places = {id_: place for place, id_ in enumerate(self._ids)}
        return [places.get(id_, -1) for id_ in ids]

    def search(self, queries, k: int, **effort) -> list[Ranking]:
        found = self._index.search(queries, k, **effort)
        return [Ranking(tuple(self._ids[int(place)] for place in r.ids), r.scores) for r in found]


def named(index, corpus: Sequence):
    """The index as it is; one of colbert-ai with the ids of ``corpus``."""
    if index.manifest["format"] != "colbert_ai":
        return index
    ids = [document.id for document in corpus]
    return index if list(index.ids()) == ids else Named(index, ids)
