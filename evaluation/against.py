"""Runs beside published numbers. ``evaluation/published/<name>.json`` holds those and says where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_json
from evaluation.report import Report

FOLDER = Path(__file__).parent / "published"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def published(name: str) -> dict[str, Any]:
    """{"source", "models", "rows": [{"split", "metric", "published as", "source", <model>: value}]}

    split: a report's, or "<data.name>.<split>". A row's own source stands for the file's; a model it lacks was not
    measured so. Values are fractions.
    """
    if name not in names():
        raise UserError(f"there are no published numbers '{name}' here; there are {', '.join(names())}.")
    return read_json(FOLDER / f"{name}.json", "published numbers")


def references(split: str, data: str = "") -> list[dict[str, Any]]:
    """What any paper says of a split: [{"model", "source", "values": {metric: value}, "as": {metric: its name there}}],
    one entry per model and source."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name in names():
        facts = published(name)
        for row in facts["rows"]:
            if row["split"] not in (split, f"{data}.{split}"):
                continue
            source = row.get("source", facts["source"])
            for model in (m for m in facts["models"] if m in row):
                entry = found.setdefault((model, source), {"model": model, "source": source, "values": {}, "as": {}})
                entry["values"][row["metric"]] = row[model]
                entry["as"][row["metric"]] = row["published as"]
    return list(found.values())


def sources(name: str) -> list[str]:
    """Every source of the numbers of a file, in the order they appear."""
    facts = published(name)
    return list(dict.fromkeys(row.get("source", facts["source"]) for row in facts["rows"]))


def side_by_side(report: Report, name: str) -> list[dict[str, Any]]:
    """One row per published number of a split: the runs' values, the published ones, and the differences.

    A run whose kind is a published model's name gets a column "<kind>, difference": its value minus the published one.
    What no run measured is missing. A report without any of the splits is a UserError.
    """
    facts = published(name)
    kinds = list(dict.fromkeys(kind for cells in report.values() for kind in cells))
    if not any(row["split"] in report for row in facts["rows"]):
        wanted = ", ".join(dict.fromkeys(row["split"] for row in facts["rows"]))
        raise UserError(f"the runs' splits are {', '.join(report) or 'none'}; '{name}' has numbers of {wanted}.")
    rows = []
    for row in facts["rows"]:
        cells: Mapping[str, Mapping[str, Any]] = report.get(row["split"], {})
        values = {kind: cells.get(kind, {}).get(row["metric"]) for kind in kinds}
        made = {"data set": row["split"], "metric": row["metric"], "published as": row["published as"], **values}
        made |= {f"{model}, published": row.get(model) for model in facts["models"]}
        for kind in kinds:
            if kind in facts["models"]:
                ours, theirs = values[kind], row.get(kind)
                made[f"{kind}, difference"] = None if None in (ours, theirs) else round(ours - theirs, 6)
        rows.append(made)
    return rows
