"""Rows of M2KR and of FLMR's OK-VQA: what is asked, which passages are searched, how rankings are judged."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image

from compat.flmr import FLMRModelForRetrieval
from core.protocols import Ranking
from core.records import ImageRef, Query
from dataset import m2kr, okvqa_flmr
from evaluation import flmr
from models.originals import load_original
from models.towers.images import PixelSource, decode
from tests.golden_case import Case


class DropsTransparency(PixelSource):
    """The one known difference (docs/FEATURES.md): the scripts drop transparency, we lay it on white. Here as they do,
    so that everything else about such pictures is compared."""

    def fetch(self, refs):
        return self.pixels([self.opaque(ref) for ref in refs])

    @staticmethod
    def opaque(ref: ImageRef) -> Image.Image:
        picture = None if ref.path is None else Image.open(ref.path)
        if picture is None or picture.mode != "RGBA":
            return decode(ref)
        picture = picture.convert("RGB")
        return picture if ref.box is None else picture.crop(ref.box)


class Script:
    """The checkpoint and picture preprocessing of a case."""

    def __init__(self, case: Case) -> None:
        self.case, self.model = case, load_original(case.path / "checkpoint").eval()
        self.api = FLMRModelForRetrieval.from_pretrained(case.path / "checkpoint").eval()
        self.pixels = DropsTransparency(case.path / "preprocessor")

    def tensors(self, queries: list[Query], prefix: str = "") -> list[dict]:
        """Compares pixels and vectors, those of the library API too; returns per query the text, ids and mask that the
        model reads."""
        each = len(queries[0].images)
        assert all(len(q.images) == each for q in queries)
        pixels = self.pixels.fetch([ref for q in queries for ref in q.images]).pixels
        pixels = pixels.unflatten(0, (len(queries), each))
        self.case.tensor(f"{prefix}pixel_values", pixels, "embedding")
        batch = self.model.collate_queries(queries, self.pixels)
        encoding = self.api.query_tokenizer([self.model.question(q) for q in queries])
        with torch.no_grad():
            vectors = self.model.encode_queries(batch).embeddings
            same = self.api.query(**encoding, pixel_values=pixels).late_interaction_output
        torch.testing.assert_close(same, vectors, atol=1e-5, rtol=0)
        self.case.tensor(f"{prefix}query_embeddings", vectors, "embedding")
        shown = batch["mask"] if not self.model.attends() else torch.ones_like(batch["mask"])
        return [
            {"question_id": q.id, "text_sequence": self.model.question(q), "input_ids": ids, "attention_mask": mask}
            for q, ids, mask in zip(queries, batch["ids"].tolist(), shown.int().tolist())
        ]


def run_m2kr(case: Case) -> None:
    script = Script(case)
    for folder in (case.path / "data", case.path / "data" / "jsonl"):
        for subset in case._load("expected.json")["datasets"]:
            _subset(case, script, subset, folder)
    _training(case)


def data_of(case: Case, subset: str, folder: Path, **changes) -> m2kr.M2KR:
    images = str(case.path / "images")
    return m2kr.build(m2kr.Config(subset=subset, path=str(folder), image_dir=images, blank_image=True, **changes))


def _subset(case: Case, script: Script, subset: str, folder: Path) -> None:
    data, base = data_of(case, subset, folder), f"datasets/{subset}"
    queries, corpus = list(data.queries("test")), list(data.corpus())
    rows = script.tensors(queries, f"{subset}/")
    for row, query in zip(rows, queries):
        (image,) = query.images
        row["image"] = None if image.path is None else str(Path(image.path).relative_to(case.path / "images"))
    case.json(f"{base}/rows", [{key: row[key] for key in case.lists[f"{base}/rows"][0]} for row in rows])
    case.json(f"{base}/passages_as_indexed", [d.text for d in corpus])
    given = case._load("expected.json")["datasets"][subset]["rankings"]
    rankings = {q: Ranking(tuple(corpus[i].id for i, _, _ in r), tuple(s for *_, s in r)) for q, r in given.items()}
    asked, texts, qrels = {q.id: q for q in queries}, {d.id: d for d in corpus}, data.qrels("test")
    names = [n for n in case.lists if n.startswith(f"{base}/metrics_with_the_rankings/")]
    assert names
    ks = cuts(names)
    scores = flmr.judged(rankings, lambda q, d: d in qrels[q], ks, lambda q, d: data.judge(asked[q], texts[d]))
    judged = {flmr.original_name(name): list(values.values()) for name, values in scores.items()}
    for name in names:
        case.json(name, judged[name.split("/")[-1]])
    case.aside(f"json:{base}/rankings/*", "given, not computed")


def cuts(names: Iterable[str]) -> list[int]:
    """The K of names such as "Recall@5"."""
    return sorted({int(name.rsplit("@", 1)[1]) for name in names})


def _training(case: Case) -> None:
    """Every drawn instruction is one of the script's, and all are drawn; blanks differ, tokens do not."""
    data = data_of(case, "EVQA", case.path / "data")
    (task,) = data.tasks
    rng = random.Random(0)
    for question, strings in case._load("expected.json")["training_query_strings"]["strings"].items():
        row = {"question_id": 1, "question": question, "img_path": None, "answers": None, "instruction": None}
        drawn = {f"{q.instruction}  {q.text}" for q in (task.query(row, rng) for _ in range(200))}
        assert drawn == set(strings), f"{question}: {sorted(drawn ^ set(strings))[:2]}"
        templates = [f"{t}  {question}" for t in m2kr.TEMPLATES["EVQA"]]
        case.json(f"training_query_strings/strings/{question}", templates)
    case.aside("json:training_query_strings/note", "prose")


def run_flmr(case: Case) -> None:
    script = Script(case)
    case_folder = case.path
    rows = okvqa_flmr.Rows([case_folder / "rows.jsonl"], okvqa_flmr.FIELDS)
    data = okvqa_flmr.build(okvqa_flmr.Config(image_dir=str(case_folder / "images")))
    queries = [data._query(row) for row in rows]
    made = script.tensors(queries)
    corpus = list(okvqa_flmr.passages([case_folder / "passages.jsonl"]))
    case.json("passages_as_indexed", [d.text for d in corpus])
    given, texts = case._load("expected.json"), {d.id: d for d in corpus}
    asked = {q.id: q for q in queries}
    rankings = {
        q: Ranking(tuple(corpus[i].id for i, _, _ in r), tuple(s for *_, s in r)) for q, r in given["rankings"].items()
    }
    ks = cuts(given["rows"][0]["answer_recall"])
    scores = flmr.judged(rankings, lambda q, d: data.judge(asked[q], texts[d]), ks)
    for row, query, source, expected in zip(made, queries, rows, given["rows"]):
        row["image"] = query.images[0].id
        row["ROIs_used"], row["enlarged_boxes_printed"] = _regions(query, source["ROIs"])
        row["answer_recall"] = {flmr.original_name(n): values[query.id] for n, values in scores.items()}
        assert set(row) == set(expected)
    case.json("rows", [{key: row[key] for key in given["rows"][0]} for row in made])
    case.aside("json:rankings/*", "given, not computed")


def _regions(query: Query, given: list[str]) -> tuple[list[str], list[str]]:
    """Our boxes as the script's strings, and its lines about boxes that grew."""
    used, grown = [], []
    for i, ref in enumerate(query.images[1:]):
        roi = given[min(i, len(given) - 1)]
        before = okvqa_flmr.box(roi, {"question_id": query.id})
        if ref.box != before:
            grown.append(f"enlarged:  {before} {tuple(map(float, ref.box))}")
        used.append(roi)
    return used, grown
