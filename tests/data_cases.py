"""Tiny data sets in the formats of the releases: every function writes one and returns its ``data`` section."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import tiny

COLORS = [(220, 30, 30), (30, 200, 40), (40, 50, 220)]
TOPICS = ["surfing", "bananas", "snow"]


def passage(i: int) -> str:
    return f'Passage {i}, "about" {TOPICS[i % 3]}; it says what people do there.'


def write_json(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return str(path)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_csv(path: Path, count: int = 12) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    quoted = (passage(i).replace('"', '""') for i in range(count))
    path.write_text("kid,text\n" + "".join(f'doc_{i},"{text}"\n' for i, text in enumerate(quoted)))
    return str(path)


def coco_images(root: Path, year: int, name: str) -> str:
    """Pictures 1 to 9 of train and val below ``root/coco``; name: with {split} and {id}."""
    for split in ("train", "val"):
        for i in range(1, 10):
            tiny.image(root / "coco" / f"{split}{year}", name.format(split=split, id=f"{i:012}"), COLORS[i % 3])
    return str(root)


def webqa_images(root: Path, count: int = 8) -> dict[str, str]:
    """imgs.tsv and imgs.lineidx, as WebQA has them."""
    place, starts, lines = 0, [], []
    for i in range(count):
        picture = tiny.image(root / "pictures", f"{i}.png", COLORS[i % 3]).path
        line = f"{30_000_000 + i}\t{base64.b64encode(Path(picture).read_bytes()).decode()}\n"
        starts.append(place)
        lines.append(line)
        place += len(line)
    (root / "imgs.tsv").write_text("".join(lines))
    (root / "imgs.lineidx").write_text("".join(f"{start}\n" for start in starts))
    return {"image_tsv": str(root / "imgs.tsv"), "image_lineidx": str(root / "imgs.lineidx")}


# ---- the data sets


def okvqa(root: Path) -> dict[str, Any]:
    """Question 10 of train stands on two lines, with two passages. Ids of val and test are numbers."""

    def rows(split: str, count: int, first: int) -> list[dict[str, Any]]:
        return [{"question_id": first + i if split != "train" else str(first + i), "image_id": 1 + i,
                 "question": f"what is done in {i}?", "answers": ["x"], "pos_passage": {"passage": passage(i)},
                 "neg_passage": {"passage": f"nothing {i}"}} for i in range(count)]  # fmt: skip

    places = {"path": rows("train", 6, 10), "valid_path": rows("val", 4, 20), "test_path": rows("test", 4, 30)}
    places["path"].append({**places["path"][0], "pos_passage": {"passage": passage(7)}})
    section = {key: write_lines(root / f"{key}_pairs_cap_combine_sum.txt", found) for key, found in places.items()}
    annotations = [{"question_id": q, "image_id": 1,
                    "answers": [{"answer_id": n, "answer": a} for n, a in enumerate([TOPICS[q % 3], "Wave", ""], 1)]}
                   for q in [*range(20, 24), *range(30, 34)]]  # fmt: skip
    section["annotations"] = write_json(root / "mscoco_val2014_annotations.json", {"annotations": annotations})
    blocks = [{"id": f"wiki_{i}", "text": passage(i)} for i in range(12)]
    section["passages"] = write_lines(root / "all_blocks.txt", blocks)
    section["image_dir"] = coco_images(root / "images", 2014, "COCO_{split}2014_{id}.jpg")
    return section


def contexts(split: str, count: int, image: Callable[[int], str], negs: int = 0) -> list[dict[str, Any]]:
    """The schema that OKVQA-GS and ReMuQ share. The caption stands behind the question, as in the release."""
    return [{"question_id": f"{split}_{i}", "img_id": image(i), "question": f"what is done in {i}? a caption {i}",
             "caption": f"a caption {i}", "answers": {TOPICS[i % 3]: 1.0, "wave": 0.6},
             "ctxs": [{"id": f"doc_{j}", "title": "", "text": f"{passage(j)} ", "score": "1"} for j in (i, i + 3)],
             **({"negs": [f"nothing {i} {j}" for j in range(negs)]} if negs else {})}
            for i in range(count)]  # fmt: skip


def okvqa_gs(root: Path) -> dict[str, Any]:
    image = {"train": "COCO_train2014_{:012}", "testdev": "COCO_val2014_{:012}", "test": "COCO_val2014_{:012}"}
    rows = {s: contexts(s, 5, lambda i, name=n: name.format(i + 1), 3 if s == "train" else 0) for s, n in image.items()}
    return {
        "path": write_json(root / "retriever_train_w_negs.json", rows["train"]),
        "valid_path": write_json(root / "retriever_testdev.json", rows["testdev"]),
        "test_path": write_json(root / "retriever_test.json", rows["test"]),
        "passages": write_csv(root / "okvqa_full_clean_corpus.csv"),
        "image_dir": coco_images(root / "images", 2014, "COCO_{split}2014_{id}.jpg"),
    }


def remuq(root: Path) -> dict[str, Any]:
    return {
        "path": write_json(root / "train.json", contexts("train", 8, lambda i: str(30_000_000 + i % 5))),
        "test_path": write_json(root / "test.json", contexts("test", 4, lambda i: str(30_000_002 + i))),
        "passages": write_csv(root / "open_corpus_195837.csv"),
        "valid_samples": 3,
        **webqa_images(root),
    }


def aokvqa(root: Path) -> dict[str, Any]:
    def rows(split: str, count: int) -> list[dict[str, Any]]:
        return [{"split": split, "image_id": i + 1, "question_id": f"{split}{i}ebR4ScMpXHCw", "question": f"what {i}?",
                 "choices": ["a", "b"], "correct_choice_idx": 0, "direct_answers": [TOPICS[i % 3]] * 10,
                 "rationales": [f"{passage(i)}", f"Reason {i} of {split}.", "Another."]}
                for i in range(count)]  # fmt: skip

    coco_images(root / "images", 2017, "{id}.jpg")
    return {
        "path": write_json(root / "aokvqa_v1p0_train.json", rows("train", 8)),
        "test_path": write_json(root / "aokvqa_v1p0_val.json", rows("val", 5)),
        "image_dir": str(root / "images" / "coco" / "train2017"),
        "valid_samples": 3,
    }


def fvqa(root: Path) -> dict[str, Any]:
    """Question and fact ids as in the release; two questions share a fact."""

    def rows(count: int, first: int) -> dict[str, Any]:
        return {str(first + i): {"question": f"which thing {i}?", "img_file": f"{i % 3}.jpg", "answer": "thing",
                                 "fact": [f"conceptnet/e/{i}", "conceptnet/e/7"],
                                 "fact_surface": [f"[[thing]] is {i}"]} for i in range(count)}  # fmt: skip

    for i in range(3):
        tiny.image(root / "images", f"{i}.jpg", COLORS[i])
    facts = {f"conceptnet/e/{i}": {"surface": f"[[Thing {i}]] is related to [[{TOPICS[i % 3]}]]"} for i in range(9)}
    return {
        "path": write_json(root / "train.json", rows(6, 100)),
        "test_path": write_json(root / "all_qs_dict_release.json", rows(4, 200)),
        "passages": write_json(root / "all_fact_triples_release.json", facts),
        "image_dir": str(root / "images"),
        "valid_samples": 2,
    }


def vl_ict(root: Path) -> dict[str, Any]:
    """Ten records of five articles; the picture of Q42 is in a folder of its own, as ids of two digits are."""
    ids = ["Q42", "Q1234", "Q12345", "Q987654", "Q7"]
    for i, id_ in enumerate(ids):
        tiny.image(root / "images" / f"Q{id_[1:4]}", f"{id_}.jpg", COLORS[i % 3])
    rows = [{"question": f"_ is thing {i}.", "document": f" {passage(i)} ", "image_id": ids[i % 5]} for i in range(10)]
    return {
        "path": write_json(root / "vl_ict_train.json", rows),
        "image_dir": str(root / "images"),
        "valid_samples": 3,
    }


def webqa(root: Path) -> dict[str, Any]:
    """Every second question is answered by a snippet, the others by a picture; test has no answers and is not read."""

    def text(guid: str, n: int) -> dict[str, Any]:
        return {"title": f"Title {n}", "fact": f"{passage(n)} ", "url": "", "snippet_id": f"{guid}_{n}"}

    def image(n: int) -> dict[str, Any]:
        return {"image_id": 30_000_000 + n, "title": f"Picture {n}", "caption": f"A picture {n} ", "url": "",
                "imgUrl": ""}  # fmt: skip

    rows = {}
    for i in range(8):
        guid = f"d5be{i:04}0dba11ecb1e81171463288e9"
        rows[guid] = {
            "Q": f'"What is {i}?"', "A": [f'"It is {TOPICS[i % 3]}."'], "split": "train" if i < 5 else "val",
            "topic": "x", "Qcate": "text" if i % 2 else "YesNo", "Guid": guid,
            "txt_posFacts": [text(guid, 0), text(guid, 1)] if i % 2 else [], "txt_negFacts": [text(guid, 2)],
            "img_posFacts": [] if i % 2 else [image(i)], "img_negFacts": [image(7)] if i % 2 else [],
        }  # fmt: skip
    return {"path": write_json(root / "WebQA_train_val.json", rows), **webqa_images(root)}


CASES = {case.__name__: case for case in (okvqa, okvqa_gs, remuq, aokvqa, fvqa, vl_ict, webqa)}
