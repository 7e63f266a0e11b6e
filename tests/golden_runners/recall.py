"""FLMR's evaluation scripts: metrics per question, report files and the table of several reports."""

from __future__ import annotations

import csv
import io
import json

from core.protocols import Ranking
from evaluation import flmr
from tests.golden_case import Case
from tests.golden_runners import recall_rows


def run(case: Case) -> None:
    if (case.path / "data").is_dir():
        return recall_rows.run_m2kr(case)
    if (case.path / "rows.jsonl").is_file():
        return recall_rows.run_flmr(case)
    given = case._load("inputs.json")
    passages, questions, ks = given["passages"], {q["question_id"]: q for q in given["queries"]}, given["Ks"]
    # Places, not ids: two passages may have one id.
    rankings = {
        q: Ranking(tuple(str(i) for i, _, _ in facts["ranking"]), tuple(s for _, _, s in facts["ranking"]))
        for q, facts in questions.items()
    }

    def positive(query: str, place: str) -> bool:
        return passages[int(place)]["passage_id"] in questions[query]["pos_item_ids"]

    def answered(query: str, place: str) -> bool:
        return flmr.holds_answer(questions[query]["answers"], passages[int(place)]["passage_content"])

    def wrapped(query: str, place: str) -> bool:
        text = f"<BOK> {passages[int(place)]['passage_content']} <EOK>"
        return flmr.holds_answer(questions[query]["answers"], text)

    scores = flmr.judged(rankings, positive, ks, answered)
    named = {q: Ranking(tuple(passages[int(i)]["passage_id"] for i in r.ids), r.scores) for q, r in rankings.items()}
    report, means = flmr.original_report(scores, named), flmr.original_means(scores)
    plain = flmr.judged(rankings, wrapped, ks)
    values = {
        "per_question": {q: {k: v for k, v in e.items() if k != "retrieved_passage"} for q, e in report.items()},
        "averages": means,
        "printed_summary_lines": [f"{name}:\t {means[name]}" for name in sorted(means, key=_printed)],
        "wrapped_passages_answer_recall": {
            "per_question": {
                q: {k: v for k, v in e.items() if k != "retrieved_passage"}
                for q, e in flmr.original_report(plain, named).items()
            },
            "averages": flmr.original_means(plain),
        },
    }
    for name in case.lists:
        found = values
        if name == "Ks":
            case.json(name, ks)
            continue
        for part in name.split("/"):
            found = found[part]
        case.json(name, found)
    for path in sorted(case.path.glob("report_*.json")):
        assert json.loads(path.read_text(encoding="utf-8")) == report, path.name
    if (case.path / "reports").is_dir():
        table = flmr.as_csv(flmr.published_table((case.path / "reports").glob("*.json")))
        expected = (case.path / "reports_expected.csv").read_text(encoding="utf-8")
        rows = [sorted(csv.DictReader(io.StringIO(t)), key=lambda r: r["Model"]) for t in (table, expected)]
        assert rows[0] == rows[1] and table.splitlines()[0] == expected.splitlines()[0]


def _printed(name: str) -> tuple[str, int]:
    family, cut = name.split("@")
    return family, int(cut)
