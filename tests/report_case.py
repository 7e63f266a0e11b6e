"""Run folders as an evaluation leaves them, from ranks that a test chooses."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from core.protocols import Ranking
from evaluation import files, report
from evaluation.metrics import evaluate

METRICS = ["Success@1", "Success@5", "MRR@10"]
DEPTH = 10


def thumbnail(colour: tuple[int, int, int]) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(stream, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def make_run(folder: Path, ranks: dict[str, dict[str, list[int]]], nasty: str = "", sample: int = 99) -> Path:
    """split -> kind -> the rank of each query's one relevant passage (0: not found). Query i of a split asks about the
    colour i % 3, has passage "g<i>" for gold, and the "odd" or "even" type. nasty: text of every third passage."""
    cells: dict = {}
    for split, kinds in ranks.items():
        for kind, places in kinds.items():
            write(folder, split, kind, places, cells.setdefault(split, {}), nasty, sample)
    report.write(folder / "report.json", cells)
    return folder


def write(folder: Path, split: str, kind: str, places: list[int], cells: dict, nasty: str, sample: int) -> None:
    where = folder / "runs" / files.stem(split, kind)
    qrels = {f"{split}:q{i}": {f"g{i}": 1} for i in range(len(places))}
    rankings, facts, examples = {}, {}, []
    for i, (qid, rank) in enumerate(zip(qrels, places)):
        ids = [f"x{i}.{n}" for n in range(DEPTH)]
        if rank:
            ids[rank - 1] = f"g{i}"
        rankings[qid] = Ranking(tuple(ids), tuple(20.0 - n for n in range(DEPTH)))
        question = f"which colour has flag number {i}"
        meta = {"parity": "odd" if i % 2 else "even", "number": i}
        facts[qid] = {"question": question, "gold": [f"g{i}"], "meta": meta}

        def document(id_: str, more: dict, i: int = i) -> dict:
            return {
                "id": id_,
                "title": f"Title {id_}",
                "text": nasty if nasty and i % 3 == 0 else f"text of {id_}",
            } | more

        colour = [(200, 30, 30), (30, 160, 40), (40, 60, 210)][i % 3]
        images = [{"id": f"{i}.png", "path": None, "thumbnail": thumbnail(colour)}]
        examples.append({
            "query_id": qid, "question": question, "instruction": "", "answers": [f"x{i}.1"], "meta": meta,
            "images": [] if "no image" in kind else images, "metrics": {},
            "gold": [document(f"g{i}", {"rank": rank or None, "images": []})],
            "top": [document(d, {"score": s, "relevant": d == f"g{i}", "holds_answer": None, "images": []})
                    for d, s in zip(rankings[qid].ids, rankings[qid].scores)],
        })  # fmt: skip
    scores = evaluate(rankings, qrels, METRICS)
    files.write_run(where.with_name(where.name + ".trec"), rankings)
    files.write_qrels(where.with_name(where.name + ".qrels"), qrels)
    files.write_per_query(where.with_name(where.name + ".jsonl"), scores, rankings, facts)
    files.write_examples(where.with_name(where.name + ".examples.json"), split, kind, len(places), 0, examples[:sample])
    cells[kind] = report.entry(scores, 2.5, resamples=1000)
