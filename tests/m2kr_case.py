"""A tiny M2KR in its layouts: parquet as on the hub, Arrow as save_to_disk leaves it, JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import tiny

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220)}
INSTRUCTION = "Using the provided image, obtain documents that address the subsequent question:"


def passages(count: int = 9) -> list[dict[str, Any]]:
    names = list(COLORS)
    return [{"language": "en", "passage_id": f"p{i}",
             "passage_content": f"the {names[i % 3]} bird number {i} eats fish, and lives in the snow."}
            for i in range(count)]  # fmt: skip


def rows(split: str, count: int = 6, subset: str = "EVQA") -> list[dict[str, Any]]:
    """Row i is answered by passages i % 3 and i % 3 + 3, which hold the colour of its picture."""
    pictures = subset != "MSMARCO"
    texts = {p["passage_id"]: p["passage_content"] for p in passages()}
    found = []
    for i in range(count):
        ids = [f"p{i % 3}", f"p{i % 3 + 3}"]
        found.append({
            "question_id": f"{subset}_{split}_{i}", "question": None if subset in ("CC", "WIT") else f"which bird {i}",
            "instruction": INSTRUCTION, "img_path": f"inat/{i % 3}.png" if pictures else None,
            "pos_item_ids": ids, "pos_item_contents": [texts[id_] for id_ in ids],
            "answers": [f"{list(COLORS)[i % 3].upper()} "],
        })  # fmt: skip
    return found


def write_split(folder: Path, name: str, split: str, found: list[dict[str, Any]], layout: str = "parquet") -> None:
    """One split of ``<folder>/<name>``; parquet and Arrow in two files, each with the column types of its own rows."""
    place = folder / name
    if layout == "jsonl":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        return
    import pyarrow
    from pyarrow import ipc, parquet

    half = max(1, len(found) // 2)
    for number, part in enumerate([found[:half], found[half:]]):
        table = pyarrow.Table.from_pylist(part)
        if layout == "parquet":
            place.mkdir(parents=True, exist_ok=True)
            parquet.write_table(table, place / f"{split}-{number:05}-of-00002.parquet")
        else:
            (place / split).mkdir(parents=True, exist_ok=True)
            with ipc.new_stream(str(place / split / f"data-{number:05}-of-00002.arrow"), table.schema) as stream:
                stream.write_table(table)


def images(root: Path) -> Path:
    for number, color in enumerate(COLORS.values()):
        tiny.image(root / "inat", f"{number}.png", color)
    return root


def tiny_m2kr(root: Path, subset: str = "EVQA", layout: str = "parquet", splits=("train", "valid", "test")) -> Path:
    """The subset's rows and passages below ``root``, pictures below ``root/images``."""
    for split in splits:
        write_split(root, f"{subset}_data", split, rows(split, subset=subset), layout)
        write_split(root, f"{subset}_passages", f"{split}_passages", passages(), layout)
    images(root / "images")
    return root


def tiny_okvqa(root: Path) -> Path:
    """FLMR's OK-VQA below ``root``: "data" and "passages"."""
    for split in ("train", "test"):
        found = [
            {"question_id": i, "question": row["question"], "answers": row["answers"], "img_path": row["img_path"],
             "ROIs": [f"x|||old_bike_1_2_{20 + i}_30", "x|||sign_10_10_12_13"][: i % 3], "objects": [],
             "img_ocr": [{"description": " ONE\nWAY "}], "img_caption": {"caption": "a bird"},
             "pos_item_ids": row["pos_item_ids"]}
            for i, row in enumerate(rows(split))
        ]  # fmt: skip
        write_split(root, "data", split, found, "jsonl")
        write_split(root, "passages", f"{split}_passages", passages(), "jsonl")
    images(root / "images")
    return root
