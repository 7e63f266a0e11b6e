"""The report of an experiment: numbers with intervals, as JSON, as a table and as a bar chart.

``experiments/<name>/report.json`` is ``{split: {kind: {name: value}}}``. A kind says what the queries were made of.
Values are fractions; "queries" counts them; "ms per query" is the wall time of encoding and searching (see
``evaluation.loop``); "<metric> 95%" is the [low, high] of the mean over queries (see ``evaluation.bootstrap``).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import atomic_file, read_json, write_json
from evaluation.bootstrap import RESAMPLES, intervals
from evaluation.metrics import Scores, means

METRICS = ("Success@1", "Success@5", "Success@10", "MRR@10", "nDCG@10")
KINDS = ("image+question", "question", "image", "image+question, no image", "image+question, no question")
"""Trained on and asked with both, with one of them; trained on both and asked without one of them (ablations)."""

MS = "ms per query"
BARS = " 95%"
NONE = "–"
SHARES = ("Success@", "PseudoSuccess@", "PseudoRecall@")
"""Shares of the queries, each 0 or 1 per query: shown with their interval in tables."""

Report = dict[str, dict[str, dict[str, Any]]]


def entry(scores: Scores, ms_per_query: float | None = None, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """One cell of a report from per-query scores (metric -> {query id: value}) over the same queries."""
    sizes = {name: len(values) for name, values in scores.items()}
    if len({frozenset(values) for values in scores.values()}) != 1:
        raise UserError(f"metrics over {sizes} queries make no report entry; judge every metric on the same queries.")
    cell: dict[str, Any] = {"queries": next(iter(sizes.values()))}
    bounds = intervals(scores, resamples, seed=seed)
    for name, mean in means(scores).items():
        cell[name] = mean
        cell[name + BARS] = list(bounds[name])
    if ms_per_query is not None:
        cell[MS] = ms_per_query
    return cell


def write(path: str | Path, report: Report) -> None:
    """Write report.json atomically, in the order of the report."""
    write_json(path, report)


def read(path: str | Path) -> Report:
    """Read report.json; another structure than split -> kind -> values is a UserError."""
    report = read_json(path, "report")
    cells = [c for kinds in report.values() for c in kinds.values()] if _nested(report) else [None]
    if not all(isinstance(cell, dict) and all(map(_fits, cell, cell.values())) for cell in cells):
        raise UserError(f"report '{path}' is not {{split: {{kind: {{metric: value}}}}}}; evaluate again.")
    return report


def _fits(name: str, value: Any) -> bool:
    """Metrics are numbers."""
    return "@" not in name or name.endswith(BARS) or isinstance(value, (int, float))


def table(report: Report) -> str:
    """An aligned Markdown table, one line per split and kind, Success metrics with their interval in brackets."""
    return results_table(rows(report))


def rows(report: Report) -> list[dict[str, Any]]:
    """The cells of ``table``."""
    cells = [(split, kind, cell) for split, kinds in report.items() for kind, cell in kinds.items()]
    names = [n for n in dict.fromkeys(n for *_, cell in cells for n in cell) if not n.endswith(BARS)]
    names.sort(key=lambda n: (n == MS) - (n == "queries"))  # how many first, how fast last
    made = []
    for split, kind, cell in cells:
        row: dict[str, Any] = {"split": split, "query": kind}
        for name in names:
            bounds = cell.get(name + BARS) if name.startswith(SHARES) else None
            if name == MS:
                row[name] = f"{cell[name]:.1f}" if name in cell else NONE
            elif bounds is not None:
                row[name] = f"{cell[name]:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"
            else:
                row[name] = cell.get(name)
        made.append(row)
    return made


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """An aligned Markdown table of any rows. Columns: the keys, in the order they first appear.

    Floats get three decimals, what is missing or None a dash; columns that hold numbers are right-aligned.
    """
    if not rows:
        raise UserError("there are no rows to tabulate; give at least one.")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    lines = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    right = [all(_numeric(line[i]) for line in lines[1:]) for i in range(len(columns))]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right)]
    out = []
    for line in [lines[0], rule, *lines[1:]]:
        padded = [text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right)]
        out.append("| " + " | ".join(padded) + " |")
    return "\n".join(out) + "\n"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same columns as ``results_table``'s, as CSV with every digit; what is missing is empty."""
    if not rows:
        raise UserError("there are no rows to write; give at least one.")
    out = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v == NONE else v for k, v in row.items()} for row in rows)
    return out.getvalue()


def plot(report: Report, path: str | Path, metric: str = "Success@5") -> None:
    """Bar chart as PNG: one group per split, one bar per kind, error bars from the 95% interval where there is one."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state, Agg by default
    except ImportError:
        raise UserError("plots need matplotlib; install it with: pip install matplotlib") from None

    splits = [split for split, kinds in report.items() if any(metric in cell for cell in kinds.values())]
    kinds = list(dict.fromkeys(kind for split in splits for kind in report[split] if metric in report[split][kind]))
    if not splits:
        names = dict.fromkeys(n for group in report.values() for cell in group.values() for n in cell)
        raise UserError(f"metric '{metric}' is not in the report; it has {', '.join(names) or 'nothing'}.")
    width = 0.84 / len(kinds)
    figure = Figure(figsize=(max(7.0, 2.2 + 0.75 * len(splits) * len(kinds)), 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for number, kind in enumerate(kinds):
        places, heights, down, up = [], [], [], []
        for group, split in enumerate(splits):
            cell = report[split].get(kind, {})
            if metric in cell:
                low, high = cell.get(metric + BARS) or (cell[metric],) * 2
                places.append(group + (number - (len(kinds) - 1) / 2) * width)
                heights.append(cell[metric])
                down.append(max(0.0, cell[metric] - low))
                up.append(max(0.0, high - cell[metric]))
        colour = f"C{number % 10}"
        axes.bar(places, heights, width * 0.92, yerr=[down, up], capsize=3, label=kind, color=colour, alpha=0.85)
        for x, height, above in zip(places, heights, up):
            axes.annotate(
                f"{height:.2f}", (x, height + above), (0, 3), textcoords="offset points", ha="center", fontsize=9
            )
    axes.set_xticks(range(len(splits)), splits, fontsize=11)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_ylabel(f"{metric} (share of queries)" if metric.startswith(SHARES) else metric, fontsize=11)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(3, len(kinds)), frameon=False, fontsize=10)
    figure.suptitle(f"{metric}, whiskers: 95% bootstrap interval over queries", fontsize=11)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png")


def _nested(report: Any) -> bool:
    return isinstance(report, dict) and all(isinstance(kinds, dict) for kinds in report.values())


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _numeric(text: str) -> bool:
    try:
        float(text.split(" [")[0])
    except ValueError:
        return text == NONE
    return True
