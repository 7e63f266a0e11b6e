"""FLMR's evaluation: what its scripts call Recall and Pseudo Recall, its report files, its table of several reports.

Its "Recall@K" is 1 when any positive passage stands in the top K: Success@K here. Its "Pseudo Recall@K" is 1 when any
of the top K passages holds any answer (``core.answers``): PseudoRecall@K here. Its OK-VQA script says Recall to that.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.answers import holds_answer as holds_answer
from core.errors import UserError
from core.files import read_json
from core.protocols import Ranking
from evaluation.metrics import PSEUDO_RECALL, Scores, by_answers, means

PUBLISHED = [
    ("WIT", "Recall@10"), ("IGLUE", "Recall@1"), ("KVQA", "Recall@5"), ("MSMARCO", "Recall@5"), ("OVEN", "Recall@5"),
    ("LLaVA", "Recall@1"), ("Infoseek", "Recall@5"), ("Infoseek", "Pseudo Recall@5"), ("EVQA", "Recall@5"),
    ("EVQA", "Pseudo Recall@5"), ("OKVQA", "Recall@5"), ("OKVQA", "Pseudo Recall@5"),
]  # fmt: skip
"""Columns of the published table: data set and FLMR's name of the metric, in its order."""


def judged(
    rankings: Mapping[str, Ranking],
    positive: Callable[[str, str], bool],
    ks: Sequence[int],
    answered: Callable[[str, str], bool] | None = None,
) -> Scores:
    """Success@k, and with ``answered`` PseudoRecall@k, of every ranked query under our names.

    positive, answered: (query id, document id) -> bool.
    """
    names = [f"{PSEUDO_RECALL}@{k}" for k in ks]
    hits = by_answers(_hits(rankings, positive, max(ks)), rankings, names)
    scores = {name.replace(PSEUDO_RECALL, "Success"): values for name, values in hits.items()}
    return scores if answered is None else scores | by_answers(_hits(rankings, answered, max(ks)), rankings, names)


def _hits(rankings: Mapping[str, Ranking], judge: Callable[[str, str], bool], depth: int) -> dict[str, list[bool]]:
    return {qid: [judge(qid, doc) for doc in ranking.ids[:depth]] for qid, ranking in rankings.items()}


def original_name(name: str) -> str:
    """Success@5 -> Recall@5, PseudoRecall@5 -> Pseudo Recall@5."""
    family, cut = name.split("@")
    known = {"Success": "Recall", PSEUDO_RECALL: "Pseudo Recall"}
    if family not in known:
        raise UserError(f"FLMR's reports have no name for '{name}'; evaluate {' and '.join(f'{k}@k' for k in known)}.")
    return f"{known[family]}@{cut}"


def original_report(scores: Scores, rankings: Mapping[str, Ranking]) -> dict[str, dict[str, Any]]:
    """What the original writes: question id -> its metrics' values, and its ranking as "retrieved_passage"."""
    names = {name: original_name(name) for name in scores}
    return {
        qid: {
            **{names[name]: values[qid] for name, values in scores.items()},
            "retrieved_passage": [{"passage_id": i, "score": s} for i, s in zip(ranking.ids, ranking.scores)],
        }
        for qid, ranking in rankings.items()
    }


def original_means(scores: Scores) -> dict[str, float]:
    """Means under the original's names."""
    return {original_name(name): value for name, value in means(scores).items()}


def published_table(paths: Iterable[Path]) -> list[dict[str, str | float]]:
    """One row per model of several report files named DATASET_ANYTHING_MODEL.json: "Model", and those ``PUBLISHED``
    columns that any of them has, such as "EVQA Pseudo Recall@5"."""
    rows: dict[str, dict[str, float]] = {}
    for path in sorted(paths):
        data, *index_and_model = path.stem.split("_")
        model = index_and_model[1:]
        report = read_json(path, "report")
        if not model or not report:
            raise UserError(f"'{path}' is no report of questions named DATASET_INDEX_MODEL.json; rename or remove it.")
        for name in {n for entry in report.values() for n in entry} - {"retrieved_passage"}:
            values = [entry[name] for entry in report.values() if name in entry]
            rows.setdefault("_".join(model), {})[f"{data} {name}"] = sum(values) / len(values)
    columns = [f"{data} {name}" for data, name in PUBLISHED]
    present = [c for c in columns if any(c in row for row in rows.values())]
    return [{"Model": model, **{c: row.get(c, "") for c in present}} for model, row in rows.items()]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as the original's report.csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
