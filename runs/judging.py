"""What is relevant, for the metrics of a run: qrels, and answers in passages. Not a command of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.errors import UserError
from core.protocols import Ranking


class Judges:
    """``eval.metrics`` of a data set: PseudoRecall@k by its ``judge``, everything else by its qrels."""

    def __init__(self, data, metrics: Sequence[str]) -> None:
        from evaluation.metrics import apart

        self.data, self.metrics = data, list(metrics)
        self.by_qrels, self.cutoffs = apart(metrics)
        if self.cutoffs and not hasattr(data, "judge"):
            raise UserError(
                f"eval.metrics has 'PseudoRecall@{self.cutoffs[0]}', but data.name '{data.config.name}' knows no "
                "answer texts; drop it."
            )

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        """Empty when no metric asks for them: a data set may know answers only."""
        return self.data.qrels(split) if self.by_qrels else {}

    def scores(self, rankings: Mapping[str, Ranking], queries: Sequence, split: str) -> dict[str, dict[str, float]]:
        """metric -> {query id: value}, in the order of the metrics."""
        from evaluation.metrics import evaluate, judged_by_text

        found = evaluate(rankings, self.qrels(split), self.by_qrels) if self.by_qrels else {}
        if self.cutoffs:
            judge = by_answers(self.data, rankings, queries)
            found |= judged_by_text(rankings, judge, self.cutoffs, [query.id for query in queries])
        return {name: found[name] for name in self.metrics}


def by_answers(data, rankings: Mapping[str, Ranking], queries: Sequence):
    """A function (query id, document id) -> does the passage hold an answer, over the passages that were found."""
    wanted = {id_ for ranking in rankings.values() for id_ in ranking.ids}
    documents = {d.id: d for d in data.corpus() if d.id in wanted}
    strange = wanted - documents.keys()
    if strange:
        raise UserError(
            f"the index answers with '{min(strange)}', which the passages of this data set do not hold ({len(strange)} "
            "such); index them anew (python -m runs.run_indexer --overwrite)."
        )
    asked = {query.id: query for query in queries}
    return lambda query, document: data.judge(asked[query], documents[document])
