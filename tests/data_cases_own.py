"""Tiny data sets in the layouts on disk: your own files, BEIR, InfoSeek, OVEN, Encyclopedic VQA, FashionIQ.

Each function writes one below a folder and returns the ``data`` section that reads it.
"""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def jsonl(path: Path, rows: Iterable[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def picture(path: Path, number: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (10 * number % 256, 90, 255 - 20 * number % 256)).save(path)
    return str(path)


def own(root: Path) -> dict:
    """Ten training questions (some without image, ids as numbers), four test questions with a TREC file, six passages
    of which one is a picture."""
    for i in range(4):
        picture(root / "images" / f"{i}.png", i)
    passages = [
        {"docid": i, "title": f"Title {i}", "text": f"passage {i} about fish {'and Paris' if i == 2 else ''}"}
        for i in range(5)
    ]
    passages.append({"docid": "shown", "image": "3.png"})
    train = [
        {"query_id": i, "query_text": f"which fish is {i}", "query_image": f"{i % 3}.png" if i % 4 else None,
         "positive_document_ids": [str(i % 5), (i + 1) % 5], "negative_document_ids": [(i + 2) % 5, (i + 3) % 5],
         "answers": ["fish"]}
        for i in range(10)
    ]  # fmt: skip
    test = [{"query_id": f"t{i}", "query_text": f"what is {i}", "query_image": f"{i % 3}.png", "answers": ["Paris"]}
            for i in range(4)]  # fmt: skip
    (root / "test.qrels").parent.mkdir(parents=True, exist_ok=True)
    (root / "test.qrels").write_text("t0 0 0 1\nt1 0 2 2\nt1 0 3 0\nt2 0 shown 1\nt3 0 4 1\n")
    return {
        "name": "jsonl", "path": jsonl(root / "train.jsonl", train), "test_path": jsonl(root / "test.jsonl", test),
        "test_qrels": str(root / "test.qrels"), "passages": jsonl(root / "passages.jsonl", passages),
        "image_dir": str(root / "images"), "valid_samples": 3,
    }  # fmt: skip


def beir(root: Path) -> dict:
    """Six training queries and two test queries with graded relevance; passage p4 is a picture, query q7 has one."""
    corpus = [{"_id": f"p{i}", "title": f"T{i}", "text": f"text {i}", "metadata": {}} for i in range(4)]
    jsonl(root / "corpus.jsonl", [*corpus, {"_id": "p4", "title": "", "text": "", "image": "images/p4.png"}])
    queries = [{"_id": f"q{i}", "text": f"question {i}"} for i in range(8)]
    queries[7]["image"] = "images/q7.png"
    jsonl(root / "queries.jsonl", queries)
    for name in ("p4", "q7"):
        picture(root / "images" / f"{name}.png")
    (root / "qrels").mkdir(exist_ok=True)
    head = "query-id\tcorpus-id\tscore\n"
    (root / "qrels" / "train.tsv").write_text(head + "".join(f"q{i}\tp{i % 5}\t1\n" for i in range(6)))
    (root / "qrels" / "test.tsv").write_text(head + "q6\tp1\t2\nq6\tp2\t1\nq6\tp3\t0\nq7\tp4\t1\n")
    return {"name": "beir_like", "path": str(root), "valid_samples": 2}


ENTITIES = [("Q1", "Alp", "A mountain range 1,200 km long in Europe."), ("Q2", "Nile", "A river in Africa."),
            ("Q3", "Rex", "")]  # fmt: skip


def wiki6m(root: Path) -> str:
    """Packed, as released. Q2 stands twice, and Q3 has no content."""
    rows = [{"wikidata_id": q, "wikipedia_title": t, "wikipedia_content": c or None, "wikipedia_summary": "",
             "wikipedia_image_url": None} for q, t, c in ENTITIES]  # fmt: skip
    rows.append({**rows[1], "wikipedia_content": "Another text."})
    path = root / "wiki6m" / "Wiki6M_ver_1_0.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


def infoseek(root: Path) -> dict:
    """Pictures are .jpg in the folder and .JPEG in its part 01/; numbers come with a range."""

    def rows(split: str, count: int) -> list[dict]:
        out = []
        for i in range(count):
            evaluated = [{"wikidata": 1200.0, "range": [1080.0, 1320.0]}] if i % 2 else ["eu", "Europe"]
            out.append({"data_id": f"infoseek_{split}_{i:08}", "image_id": f"oven_{i % 2:02}00000{i % 4}",
                        "question": f"Where is this {i}?", "answer": ["1200"] if i % 2 else ["Europe"],
                        "answer_eval": evaluated, "data_split": split})  # fmt: skip
        return out

    def about(split: str, count: int) -> list[dict]:
        return [{"data_id": f"infoseek_{split}_{i:08}", "entity_id": ENTITIES[i % 3][0],
                 "entity_text": ENTITIES[i % 3][1]} for i in range(count)]  # fmt: skip

    picture(root / "images" / "oven_00000000.jpg")
    picture(root / "images" / "oven_00000002.jpg")
    for i in (1, 3):
        (root / "images" / "01").mkdir(exist_ok=True)
        Image.new("RGB", (24, 24)).save(root / "images" / "01" / f"oven_0100000{i}.JPEG", format="JPEG")
    return {
        "name": "infoseek", "path": jsonl(root / "infoseek_train.jsonl", rows("train", 9)),
        "kb_path": jsonl(root / "infoseek_train_withkb.jsonl", about("train", 9)),
        "test_path": jsonl(root / "infoseek_val.jsonl", rows("val", 4)),
        "test_kb_path": jsonl(root / "infoseek_val_withkb.jsonl", about("val", 4)),
        "passages": wiki6m(root), "image_dir": str(root / "images"), "valid_samples": 3,
    }  # fmt: skip


def oven(root: Path) -> dict:
    """Two files a split: questions by entity and by query."""

    def rows(kind: str, split: str, count: int) -> list[dict]:
        return [{"data_id": f"oven_{kind}_{split}_{i:08}", "image_id": f"oven_0000000{i % 3}",
                 "question": "what is the name of this place?", "entity_id": ENTITIES[i % 3][0],
                 "entity_text": ENTITIES[i % 3][1], "data_split": f"{kind}_{split}"} for i in range(count)]  # fmt: skip

    def files(split: str) -> list[str]:
        return [jsonl(root / f"oven_{k}_{split}.jsonl", rows(k, split, n)) for k, n in (("entity", 5), ("query", 3))]

    for i in range(3):
        picture(root / "images" / "00" / f"oven_0000000{i}.jpg", i)
    return {"name": "oven", "path": files("train"), "test_path": files("val"), "passages": wiki6m(root),
            "image_dir": str(root / "images"), "valid_samples": 2}  # fmt: skip


COLUMNS = ("question", "answer", "dataset_image_ids", "dataset_name", "dataset_category_id", "question_type",
           "wikipedia_url", "wikipedia_title", "evidence", "evidence_section_id", "evidence_section_title",
           "encyclopedic_vqa_split", "question_original", "wikipedia_url_used_in_train")  # fmt: skip
LANDMARK = "0a1b2c3d4e5f6789"


def evqa(root: Path) -> dict:
    """iNaturalist and landmark pictures, one question of each type, the knowledge base zipped."""
    url = "https://en.wikipedia.org/wiki/"
    kb = {
        f"{url}Robin": {"title": "Robin", "section_titles": ["Robin", "Food", "Empty", "Nest"],
                        "section_texts": ["A bird.", "It eats worms, \"berries\" \u00e9.", "", "It lays five eggs."],
                        "image_urls": [], "url": f"{url}Robin"},
        f"{url}Tower": {"title": "Tower", "section_titles": ["Tower"], "section_texts": ["330 m high, of iron."]},
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / "encyclopedic_kb_wiki.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("encyclopedic_kb_wiki.json", json.dumps(kb))
    robin = {"dataset_name": "inaturalist", "wikipedia_url": f"{url}Robin", "dataset_image_ids": "7|8"}
    tower = {"dataset_name": "landmarks", "wikipedia_url": f"{url}Tower", "dataset_image_ids": LANDMARK}
    rows = [
        {**robin, "question": "What does it, the bird, eat?", "answer": "worms|berries", "question_type": "templated",
         "evidence_section_id": "1"},
        {**tower, "question": "How high is it?", "answer": "330 m", "question_type": "automatic",
         "evidence_section_id": "0"},
        {**robin, "question": "What of it?", "answer": "berries&&eggs", "question_type": "multi_answer",
         "evidence_section_id": ""},
        {**robin, "question": "Two hops?", "answer": "iron", "question_type": "2_hop",
         "wikipedia_url": f"{url}Robin|{url}Tower", "evidence_section_id": "3|0"},
    ]  # fmt: skip
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        with open(root / f"{split}.csv", "w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows([row for _ in range(count) for row in rows])
    for i in (7, 8):
        picture(root / "inat" / "train" / "001_Robin" / f"{i}.jpg", i)
    picture(root / "landmarks" / "0" / "a" / "1" / f"{LANDMARK}.jpg")
    images = [{"id": 7, "width": 9, "file_name": "train/001_Robin/7.jpg", "license": 0}]
    (root / "train.json").write_text(json.dumps({"info": {"year": "2021"}, "images": images,
                                                 "annotations": [{"id": 7, "image_id": 7}]}))  # fmt: skip
    (root / "id2name.json").write_text(json.dumps({"8": "train/001_Robin/8.jpg"}))
    return {
        "name": "evqa", "path": str(root / "train.csv"), "valid_path": str(root / "val.csv"),
        "test_path": str(root / "test.csv"), "passages": str(root / "encyclopedic_kb_wiki.zip"),
        "inat_dir": str(root / "inat"), "landmarks_dir": str(root / "landmarks"),
        "inat_map": [str(root / "train.json"), str(root / "id2name.json")],
    }  # fmt: skip


def fashioniq(root: Path) -> dict:
    """Images are named with folders that are not there."""
    for i in range(5):
        picture(root / "images" / f"B{i}.png", i)
    candidates = [{"image": f"./images/dress/B{i}.png", "content": f"B{i}"} for i in range(5)]
    queries = [{"q_text": f"is {i} shorter", "q_img": f"./images/dress/B{i}.png", "positive": f"B{(i + 1) % 5}"}
               for i in range(4)]  # fmt: skip
    return {
        "name": "fashioniq", "path": jsonl(root / "train.jsonl", [*queries, *queries]),
        "test_path": jsonl(root / "query.jsonl", queries), "passages": jsonl(root / "candidates.jsonl", candidates),
        "image_dir": str(root / "images"), "valid_samples": 2,
    }  # fmt: skip


CASES = {"jsonl": own, "beir_like": beir, "infoseek": infoseek, "oven": oven, "evqa": evqa, "fashioniq": fashioniq}


def section(name: str, root: Path, **changes) -> dict:
    return {**CASES[name](root / name), **changes}
