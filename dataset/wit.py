"""VL-ICT out of WIT: a sentence with the title of its article masked, and what follows it; the inverse cloze task.

The rules are those of Ju et al.'s builder, but for two that made records of nothing: an empty caption is found in no
text, and what repeats an earlier record (WIT has a row per picture of an article) is left out.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from core.errors import UserError
from core.files import atomic_file, fingerprint
from core.progress import progress
from dataset.lines import Lines, string, unreadable
from dataset.unpacked import gunzipped

MASK, MARK = "_", "\ue000"
COLUMNS = ("language", "page_title", "context_page_description", "caption_reference_description")
REASONS = {
    "rows": "rows read",
    "language": "not English",
    "title": "title without Wikidata id",
    "mention": "neither title nor caption in the text",
    "sentence": "the text is one sentence",
    "following": "nothing follows the sentence",
    "repeated": "repeats an earlier record",
}
"""What is counted: all rows, and why some give no record."""


class Titles(Lines[str]):
    """Wikidata id of a Wikipedia title: JSON lines of wikipedia_title and wikidata_id, ``.gz`` unpacked once."""

    what, first_counts = "titles file", True
    remedy = "write an object with wikipedia_title and wikidata_id"

    def __init__(self, path: str | Path) -> None:
        super().__init__(gunzipped(path), lambda _, row: string(row, "wikidata_id"), ("wikipedia_title",))


def record(row: dict[str, str], titles: Titles) -> dict[str, str] | str:
    """A row's record, or the reason why there is none."""
    if row["language"] != "en":
        return "language"
    title, context = row["page_title"], row["context_page_description"]
    image_id = titles.get(title)
    if image_id is None:
        return "title"
    plain = re.sub(r"\([\w\s]+\)", "", title).strip()
    candidates = (title, plain, row["caption_reference_description"].strip())
    mention = next((words for words in candidates if words and words in context), None)
    if mention is None:
        return "mention"
    # Marked before the text is divided: a title may have a full stop of its own ("St. Louis").
    sentences = re.split(r"[.]\s", context.replace(mention, MARK))
    if len(sentences) < 2:
        return "sentence"
    first = next(i for i, sentence in enumerate(sentences) if MARK in sentence)
    document = ". ".join(sentences[first + 1 :]).strip()
    if not document:
        return "following"
    question = sentences[first].strip().replace(MARK, MASK) + "."
    return {"question": question, "document": document.replace(MARK, mention), "image_id": image_id}


def convert(path: Path, titles: Titles, folder: Path, limit: int | None) -> Path:
    """The records of one file of WIT in ``folder``, as JSON lines behind a line of counts; made when not there."""
    facts = path.stat()
    key = fingerprint([path.name, facts.st_size, facts.st_mtime_ns, titles.path.stat().st_mtime_ns, limit])
    part = folder / f"{path.name}.{key}.jsonl"
    if part.is_file():
        return part
    counts: Counter[str] = Counter()
    scratch = folder / f"{path.name}.unfinished"
    with open(scratch, "w", encoding="utf-8") as out:
        for row in islice(rows(path), limit):
            counts["rows"] += 1
            made = record(row, titles)
            if isinstance(made, str):
                counts[made] += 1
            else:
                out.write(json.dumps(made, ensure_ascii=False) + "\n")
    with atomic_file(part) as out:
        out.write(json.dumps(counts).encode() + b"\n")
        with open(scratch, "rb") as found:
            shutil.copyfileobj(found, out)
    scratch.unlink()
    return part


def rows(path: Path) -> Iterator[dict[str, str]]:
    """The wanted columns of a ``.tsv`` or ``.tsv.gz``, one row at a time."""
    before = csv.field_size_limit(1 << 30)  # some articles begin with long texts
    packed = path.suffix == ".gz"
    number = 0
    try:
        with open(path, "rb") as file, gzip.open(file) if packed else open(path, "rb") as content:
            bar = progress(None, path.name, total=path.stat().st_size >> 20, unit="MB")
            found = csv.reader((line.decode("utf-8") for line in content), delimiter="\t")
            header = next(found, [])
            places = {name: header.index(name) for name in COLUMNS if name in header}
            if len(places) < len(COLUMNS):
                raise UserError(
                    f"'{path}' has no column {', '.join(c for c in COLUMNS if c not in places)}; give files of WIT."
                )
            for number, values in enumerate(found, 1):
                if len(values) != len(header):
                    raise UserError(f"row {number} of '{path}' has {len(values)} columns, not {len(header)}; {AGAIN}.")
                yield {name: values[place] for name, place in places.items()}
                if number % 10_000 == 0:
                    bar.update(((file if packed else content).tell() >> 20) - bar.n)
            bar.close()
    except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is damaged behind row {number} ({error}); {AGAIN}.") from None
    except OSError as error:
        raise UserError(unreadable("WIT file", path, error)) from None
    finally:
        csv.field_size_limit(before)


AGAIN = "download it again"


def build(files: list[Path], titles: Titles, target: Path, limit: int | None = None) -> Counter[str]:
    """Write the JSON list ``target``; the counts of every reason. Killed, it goes on with the first unfinished file."""
    folder = target.with_name(f"{target.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    parts = [convert(file, titles, folder, limit) for file in files]
    met: set[bytes] = set()
    with atomic_file(target) as out:
        out.write(b"[")
        for part in parts:
            with open(part, "rb") as lines:
                counts.update(json.loads(next(lines)))
                for line in lines:
                    digest = hashlib.blake2b(line, digest_size=10).digest()
                    if digest in met:
                        counts["repeated"] += 1
                        continue
                    out.write(b",\n" if met else b"\n")
                    out.write(line.rstrip(b"\n"))
                    met.add(digest)
        out.write(b"\n]\n")
    shutil.rmtree(folder)
    counts["written"] = len(met)
    return counts
