"""MIRe's and Ret-XKnow's evaluation commands: relevance, metrics and --save_pairs, by our command's own functions.

A case is a folder of data sets. The flags that the originals were called with go through our parser, our data set
modules read the files, and the given rankings (rows of the collection) stand for a search.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.errors import UserError
from core.protocols import Ranking
from evaluation.relevance import Passages
from runs import original_data
from runs.evaluate_retrieval import arguments
from runs.m2kr import with_instruction
from runs.original_evaluation import asked_data
from runs.original_numbers import legacy_numbers, relevant_by, saved_pairs, theirs
from tests.golden_case import Case, leaves

CRASHES = ("KeyError", "ImportError")
"""Errors that show a defect of Ret-XKnow's last commit, and no rule of its evaluation."""
TOP = "top5"


def run(case: Case) -> None:
    folders = sorted(p.parent for p in case.path.glob("*/expected.json"))
    assert folders, f"no data set below {case.path}"
    for folder in folders:
        given = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        case.lists |= {f"{folder.name}/{name}": value for name, value in leaves(given)}
        pairs = folder / "expected_mire_top5_docs.json"
        if pairs.is_file():
            case.lists[f"{folder.name}/{TOP}"] = json.loads(pairs.read_text(encoding="utf-8"))
        case.aside(f"json:{folder.name}/args", "given, not computed")
        with inside(folder):
            for style, expected in given["results"].items():
                one(case, folder, style, given["args"], expected)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The flags are relative to the case's folder, and so is data/okvqa, where the originals look by themselves."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def one(case: Case, folder: Path, style: str, words: list[str], expected: dict) -> None:
    base, name = f"{folder.name}/results/{style}", folder.name
    if expected.get("error", "").startswith(CRASHES):
        case.aside(f"json:{base}/error", "a crash of the last commit, nothing to reproduce")
        return
    args = arguments().parse_args([*words, "--legacy_metrics", style, "--save_pairs"])
    with tempfile.TemporaryDirectory() as made:  # rows are read when they are asked for
        if any(folder.glob("m2kr_*.json")):
            args.dataset_hf_path = made
            for file in folder.glob("m2kr_*.json"):
                _, subset, part, split = file.stem.split("_", 3)
                place = Path(made) / f"{subset}_{part}" / f"{split}.jsonl"
                place.parent.mkdir(exist_ok=True)
                rows = json.loads(file.read_text(encoding="utf-8"))
                place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        if style == "xknow":
            args.xknow_ckpt = "its flag"
        data = asked_data(args)
        queries, corpus = list(data.queries("test")), list(data.corpus())
        if args.use_instruction:
            queries = with_instruction(queries)
        rows = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        entry = original_data.entry_of(data, args.dataset_name)
        rankings = {
            q.id: Ranking(tuple(corpus[row].id for row, _ in rows[q.id]), tuple(score for _, score in rows[q.id]))
            for q in queries
            if q.id in rows
        }
        passages = Passages(corpus)
        if "error" in expected:
            reason = expected["error"].removeprefix("error: ")
            with pytest.raises(UserError) as stopped:
                legacy_numbers(style, data, "test", queries, rankings, passages, args.dataset_name)
            case.json(f"{base}/error", f"error: {reason}" if reason in str(stopped.value) else str(stopped.value))
            return
        numbers = legacy_numbers(style, data, "test", queries, rankings, passages, args.dataset_name)
        assert list(numbers) == list(expected["metrics"]), name
        for key, value in numbers.items():
            case.json(f"{base}/metrics/{key}", value, "fraction")
        asked = [query for query in theirs(entry, data, "test", queries) if query.id in rankings]
        found = relevant_by(style, entry, data, "test", asked, {q.id: rankings[q.id] for q in asked}, passages)
        for query in asked:
            top = [id_ for id_ in rankings[query.id].ids[:100] if id_ in found[query.id]]
            case.json(f"{base}/relevant_in_top100/{query.id}", sorted(top))
        if style == "mire" and f"{name}/{TOP}" in case.lists:
            saved = saved_pairs(args, data, queries, rankings, passages)
            for row, wanted in zip(saved, case.lists[f"{name}/{TOP}"]):
                if isinstance(wanted["question_id"], int):  # ids are strings here
                    row["question_id"] = int(row["question_id"])
            case.json(f"{name}/{TOP}", json.loads(json.dumps(saved)))
