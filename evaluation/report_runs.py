"""The runs of a report: every split and kind of several folders, under labels that tell them apart.

A folder is what ``runs.evaluate_retrieval`` leaves: report.json, and the files of ``evaluation.files`` in it or in its
``runs/``. Only report.json must be there; what the others would have added is then left out of the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from core.config import load_yaml
from core.errors import UserError
from evaluation import files
from evaluation.report import Report, read

FAMILIES = ("Success", "Recall", "PseudoSuccess", "PseudoRecall")
"""Metrics that rise with k, and are drawn over it."""

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class System:
    """One row of a table: one kind of query of one run, on one split."""

    label: str
    folder: Path
    split: str
    kind: str
    cell: Mapping[str, Any]
    data: str = ""
    """the data set's name, as far as it is known"""

    @property
    def _stem(self) -> Path | None:
        name = files.stem(self.split, self.kind)
        places = [self.folder / "runs" / name, self.folder / name]
        return next((p for p in places if p.with_name(f"{name}.jsonl").is_file()), None)

    def _file(self, suffix: str) -> Path | None:
        path = self._stem and self._stem.with_name(self._stem.name + suffix)
        return path if path and path.is_file() else None

    @cached_property
    def answers(self) -> files.PerQuery:
        """Per query: scores, what was asked. Empty when there is no such file."""
        path = self._file(".jsonl")
        if path is None:
            return files.PerQuery({}, {}, {})
        found = files.read_per_query(path)
        for metric, values in found.scores.items():
            self._same(metric, sum(values.values()) / len(values), len(values), path)
        return found

    @cached_property
    def examples(self) -> dict[str, Any] | None:
        path = self._file(".examples.json")
        return None if path is None else files.read_examples(path)

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """family -> [(k, mean)]: at every k where rankings and qrels are there, else where report.json has values."""
        found: dict[str, Curve] = {}
        for name, value in self.cell.items():
            if (match := re.fullmatch(r"(\w+)@(\d+)", name)) and match[1] in FAMILIES:
                found.setdefault(match[1], []).append((int(match[2]), float(value)))
        found = {family: sorted(points) for family, points in found.items()}
        run, qrels = self._file(".trec"), self._file(".qrels")
        if run and qrels:
            grown = over_k(files.read_run(run), files.read_qrels(qrels), self.cell["queries"])
            for family, points in grown.items():
                for k, value in points:
                    self._same(f"{family}@{k}", value, self.cell["queries"], run)
            found |= grown
        return found

    def _same(self, metric: str, value: float, queries: int, path: Path) -> None:
        """A file of another evaluation than report.json's must not stand beside it."""
        if queries != self.cell.get("queries") or abs(value - self.cell.get(metric, value)) > 1e-6:
            raise UserError(
                f"'{path}' gives {metric} {value:.4f} over {queries} queries, '{self.folder / 'report.json'}' "
                f"{self.cell.get(metric, value):.4f} over {self.cell.get('queries')}; evaluate again."
            )


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    report: Report = field(repr=False)
    data: str = ""
    named: bool = False
    """by whoever asked for the report"""


def open_runs(words: Sequence[str]) -> list[Run]:
    """Each word is a folder, or NAME=FOLDER. Else the folders' last parts, longer where two are alike."""
    runs: list[Run] = []
    folders = [_named(word) for word in words]
    for number, (name, folder) in enumerate(folders):
        report = read(folder / "report.json")
        others = [other for i, (given, other) in enumerate(folders) if i != number and not given]
        made = name or _shortest(folder, others)
        if any(made == run.name for run in runs):
            raise UserError(f"two runs are called '{made}'; give each folder once, or write NAME={folder}.")
        config = load_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
        data = config.get("data") or {}
        runs.append(Run(made, folder, report, str(data.get("name", "")), bool(name)))
    return runs


def systems(runs: Sequence[Run]) -> list[System]:
    """Every split and kind of the runs, told apart by as few words as possible: the kinds where no two runs share one
    and nobody gave names, the runs' names where there is a single kind, else both."""
    kinds = [{kind for cells in run.report.values() for kind in cells} for run in runs]
    every = set().union(*kinds)
    apart = sum(map(len, kinds)) == len(every) and not any(run.named for run in runs)
    one = len(every) == 1
    return [
        System(kind if apart else run.name if one else f"{run.name}: {kind}", run.folder, split, kind, cell, run.data)
        for run in runs
        for split, cells in run.report.items()
        for kind, cell in cells.items()
    ]


def joined(found: Sequence[System]) -> Report:
    """split -> label -> cell, splits and labels in the order they first appear."""
    labels = list(dict.fromkeys(s.label for s in found))
    report: Report = {}
    for split in dict.fromkeys(s.split for s in found):
        cells = {s.label: dict(s.cell) for s in found if s.split == split}
        report[split] = {label: cells[label] for label in labels if label in cells}
    return report


def over_k(rankings: Mapping[str, Any], qrels: Mapping[str, Mapping[str, int]], queries: int) -> dict[str, Curve]:
    """Success@k and, where some query has several relevant documents, Recall@k, for every k down to the longest
    ranking. queries: all that count, as 0 those without a ranking or without a line in the qrels, which cannot say
    that nothing is relevant."""
    depth = max((len(r.ids) for r in rankings.values()), default=0)
    first, share, several = [0.0] * (depth + 1), [0.0] * (depth + 1), False
    for qid, grades in qrels.items():
        relevant = {doc for doc, grade in grades.items() if grade >= 1}
        several |= len(relevant) > 1
        ids = rankings[qid].ids if qid in rankings else ()
        ranks = [rank for rank, doc in enumerate(ids, 1) if doc in relevant]
        if ranks:
            first[ranks[0]] += 1
        for rank in ranks:
            share[rank] += 1 / len(relevant)
    found = {"Success": _running(first, queries)}
    if several:
        found["Recall"] = _running(share, queries)
    return found


def _running(gains: list[float], queries: int) -> Curve:
    total, points = 0.0, []
    for k, gain in enumerate(gains[1:], 1):
        total += gain
        points.append((k, total / queries))
    return points


def _named(word: str) -> tuple[str, Path]:
    if not Path(word).exists() and "=" in word:
        name, _, rest = word.partition("=")
        if name.strip() and rest:
            return name.strip(), Path(rest)
    return "", Path(word)


def _shortest(folder: Path, others: Sequence[Path]) -> str:
    """The last part of the path, or as many as no other folder ends with."""
    parts = folder.resolve().parts
    for length in range(1, len(parts) + 1):
        if not any(other.resolve().parts[-length:] == parts[-length:] for other in others):
            break
    return "/".join(parts[-length:])
