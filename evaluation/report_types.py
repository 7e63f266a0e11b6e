"""Means per type of question: what the data set says of its queries (``meta``), value by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.report import Report
from evaluation.report_marks import metrics
from evaluation.report_runs import System

MOST = 60
"""Values of a key that make a table; a key with more (an id, a title) does not divide the queries into types."""

SPLITS = "all splits"


def breakdown(found: Sequence[System], report: Report) -> dict[str, dict[str, Any]]:
    """split -> key -> {"values", "queries", "metrics": {metric: {label: [mean per value]}}}; values by name.

    The mean over all queries is the mean over the values, weighted with "queries": every query counts once, those of
    which the data set does not say the key under "(none)". Several splits are themselves a division, "all splits".
    """
    made: dict[str, dict[str, Any]] = {}
    if len(report) > 1:
        made[SPLITS] = {"split": _splits(report)}
    for split in report:
        here = [s for s in found if s.split == split and s.answers.scores]
        asked = {frozenset(s.answers.rankings) for s in here}
        if len(asked) != 1:  # nothing per query, or about other queries each
            continue
        tables = {key: _table(here, key) for key in _keys(here[0])}
        if tables:
            made[split] = tables
    return made


def _keys(system: System) -> list[str]:
    metas = [facts.get("meta") or {} for facts in system.answers.facts.values()]
    keys = dict.fromkeys(key for meta in metas for key in meta)
    return [key for key in keys if 2 <= len({_value(meta, key) for meta in metas}) <= min(MOST, len(metas) // 2)]


def _value(meta: dict, key: str) -> str:
    value = meta.get(key)
    return "(none)" if value is None or value == "" else str(value)


def _table(here: Sequence[System], key: str) -> dict[str, Any]:
    groups: dict[str, list[str]] = {}
    for qid, facts in here[0].answers.facts.items():
        groups.setdefault(_value(facts.get("meta") or {}, key), []).append(qid)
    values = sorted(groups)
    names = metrics([s.answers.scores for s in here])
    return {
        "values": values,
        "queries": [len(groups[v]) for v in values],
        "metrics": {
            name: {s.label: [_mean(s.answers.scores[name], groups[v]) for v in values]
                   for s in here if name in s.answers.scores}
            for name in names
        },
    }  # fmt: skip


def _mean(scores: dict[str, float], qids: Sequence[str]) -> float:
    return round(sum(scores[qid] for qid in qids) / len(qids), 6)


def _splits(report: Report) -> dict[str, Any]:
    cells = [cell for kinds in report.values() for cell in kinds.values()]
    labels = list(dict.fromkeys(label for kinds in report.values() for label in kinds))
    return {
        "values": list(report),
        "queries": [max(cell.get("queries", 0) for cell in kinds.values()) for kinds in report.values()],
        "metrics": {
            name: {label: [kinds.get(label, {}).get(name) for kinds in report.values()] for label in labels}
            for name in metrics(cells)
        },
    }
