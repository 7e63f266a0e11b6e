"""Look at a data set before a long run: what is there, what is missing, what is odd. Nothing is encoded or trained.

  python -m runs.check_data --config_path cfgs/flagfacts_mire.yaml
  python -m runs.check_data --config_path cfgs/my_data.yaml --all_images --json > check.json

Exits with 1 when something is missing. Large passages files get their index of lines on the way, and packed ones are
unpacked, as the first run would do it. docs/DATA.md says where each data set comes from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from runs.common import need, parse, parser


def run(argv: Sequence[str]) -> int:
    made = parser(__doc__, "python -m runs.check_data")
    made.add_argument("--all_images", action="store_true", help="look at every image, not at some of each split")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parse(made, argv)
    from runs.checking import look
    from runs.settings import load

    cfg = load(need(args.config_path, "give --config_path, a YAML with a data section."), args.overrides, args.limit)
    found = look(cfg.data, args.all_images)
    if found["problems"]:
        found["get_it"] = get_it(cfg.data.name)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else told(found))
    return 0 if found["ok"] else 1


def told(found: dict) -> str:
    """The findings as text."""
    lines = [f"data set '{found['data']}'"]
    for file in found["files"]:
        state = "MISSING" if file["bytes"] is None else "folder" if file["bytes"] < 0 else size(file["bytes"])
        lines.append(f"  {state:>9}  {file['key']}: {file['path']}")
    for name, split in found["splits"].items():
        lines.append(f"{name}: {split['queries']:,} queries, {split['passages']:,} passages")
        lines += [f"  {split[key]:,} {what}" for key, what in ODD.items() if split.get(key)]
        lines += [f"  {text}" for text in split["first"]]
    passages = found["passages"]
    if passages.get("looked_at"):
        empty = f", {passages['empty']:,} without text and image" if passages["empty"] else ""
        lines.append(f"passages: {passages['looked_at']:,} looked at{empty}")
        lines += [f"  {text}" for text in passages["first"]]
    images = found["images"]
    lines.append(f"images: {images['resolved']:,} of {images['looked_at']:,} looked at can be decoded")
    lines += [f"PROBLEM: {text}" for text in found["problems"]]
    lines += [found["get_it"]] if found.get("get_it") else []
    return "\n".join([*lines, "nothing is missing" if found["ok"] else f"{len(found['problems'])} problems"])


ODD = {
    "empty": "without a question and without an image",
    "without_question": "without a question",
    "without_image": "without an image",
    "repeated_ids": "ids that stand more than once",
    "without_gold": "that name no relevant passage",
    "gold_missing": "whose relevant passages are all missing from the corpus; they count as not found",
}
"""Counts that may be in order: they are shown, and are no problem by themselves."""


def size(count: int) -> str:
    return next(f"{count / unit:.1f} {name}" for name, unit in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("B ", 1))
                if count >= unit or unit == 1)  # fmt: skip


def get_it(name: str) -> str:
    """Where the data set comes from: its row and section of docs/DATA.md, as far as that page is installed."""
    page = Path(__file__).resolve().parents[1] / "docs" / "DATA.md"
    row = None
    if page.is_file():
        row = re.search(
            rf"^\| \[`{re.escape(name)}`\]\((#[^)]+)\).*\| ([^|]+) \|$", page.read_text(encoding="utf-8"), re.M
        )
    told = "" if row is None else f"get it from: {row[2]}. "
    return f"{told}docs/DATA.md{'' if row is None else row[1]} says which files it wants and where they go."


if __name__ == "__main__":
    main(run)
