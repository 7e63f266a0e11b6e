"""Best and second of a column, and who cannot be told from the best.

Only systems that were asked the same queries are ranked. Equal values share their mark. A system is "near" the best
when the 95% bootstrap interval of its paired difference to it holds 0 (``evaluation.bootstrap.compare``): other queries
of the same kind could have turned the order round. Each comparison stands alone, nothing is corrected for their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.progress import progress
from evaluation.bootstrap import compare
from evaluation.report import BARS, MS, Report, rows
from evaluation.report_runs import System

BEST, SECOND = "best", "second"
EQUAL = 1e-9
RESAMPLES = 1000


KEY = (
    "**Best** and _second_ of a split; ≈: the 95% bootstrap interval of the paired difference to the best holds 0. "
    "In brackets: the 95% bootstrap interval of the mean over the queries."
)


@dataclass(frozen=True)
class Mark:
    place: str = ""
    """best, second or nothing"""
    near: bool | None = None
    """not to be told from the best; None: it is the best, or nothing per query is known"""


def metrics(cells: Sequence[Mapping]) -> list[str]:
    """What is measured, larger being better, in the order it first appears."""
    names = dict.fromkeys(name for cell in cells for name in cell)
    return [n for n in names if n not in ("queries", MS) and not n.endswith(BARS)]


def by_split(report: Report, found: Sequence[System]) -> dict[str, dict[str, dict[str, Mark]] | None]:
    """``marks`` of every split."""
    with progress(list(report), "comparing systems", unit="split") as splits:
        return {split: marks([s for s in found if s.split == split]) for split in splits}


def marks(found: Sequence[System]) -> dict[str, dict[str, Mark]] | None:
    """metric -> label -> Mark for the systems of one split; None when they were asked different queries."""
    if len({s.cell.get("queries") for s in found}) > 1:
        return None
    asked = {frozenset(s.answers.rankings) for s in found if s.answers.rankings}
    if len(asked) > 1:
        return None
    return {metric: _column(metric, found) for metric in metrics([s.cell for s in found])}


def _column(metric: str, found: Sequence[System]) -> dict[str, Mark]:
    values = {s.label: s.cell[metric] for s in found if s.cell.get(metric) is not None}
    if len(values) < 2:
        return {label: Mark() for label in values}
    top = max(values.values())
    rest = [v for v in values.values() if v < top - EQUAL]
    second = max(rest, default=0)
    per_query = {s.label: s.answers.scores.get(metric) for s in found}
    best = next(label for label, value in values.items() if value >= top - EQUAL)
    made = {}
    for label, value in values.items():
        if value >= top - EQUAL:
            # When all are equal there is no best.
            made[label] = Mark(BEST if rest else "")
            continue
        ours, theirs = per_query[best], per_query[label]
        near = None if not ours or not theirs else not compare(ours, theirs, RESAMPLES).differs
        made[label] = Mark(SECOND if value >= second - EQUAL and value > 0 else "", near)
    return made


def marked_rows(report: Report, marked: Mapping[str, dict[str, dict[str, Mark]] | None]) -> list[dict]:
    """The rows of ``evaluation.report.rows`` as Markdown: best in bold, second in italics, ≈ what is near the best."""
    made = []
    for row in rows(report):
        columns = marked[row["split"]] or {}
        made.append({n: _marked(v, columns.get(n, {}).get(row["query"], Mark())) for n, v in row.items()})
    return made


def _marked(value, mark: Mark):
    if not isinstance(value, (str, float)) or not (mark.place or mark.near):
        return value
    first, *rest = (f"{value:.3f}" if isinstance(value, float) else value).split(" ", 1)
    sign = {BEST: "**", SECOND: "_"}.get(mark.place, "")
    return " ".join([f"{sign}{first}{sign}" + (" ≈" if mark.near else ""), *rest])
