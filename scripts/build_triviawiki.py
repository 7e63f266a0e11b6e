"""Build TriviaWiki: a real question in, the lead of the Wikipedia article that is its answer out.

    pip install -r requirements-triviawiki.txt
    python scripts/build_triviawiki.py --fetch      # downloads 72 MB once

Questions of TriviaQA, Natural Questions, WebQuestions and SQuAD whose answer is the title of one of about 10,000 leads.
The articles that answer are dealt to train, dev and test, each article with all its questions, so no question and no
answer is in two splits. Training records carry the leads that BM25 finds and that hold no answer. The same sources give
the same bytes. The texts have licences of their own (the folder's README.md names them), so the data set is built here
and does not ship.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import random
import re
import sys
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core import cli
from core.errors import UserError
from core.files import atomic_folder, sha256, write_json
from scripts.packages import archive, fetch, wheel
from scripts.wikilens_sources import ARTICLES, articles

QUESTIONS = wheel(
    "pyserini", "0.12.0", "question files of Anserini, as they come with Pyserini",
    "https://github.com/castorini/pyserini", "package Apache-2.0; the questions under their data sets' terms",
)  # fmt: skip
SETS = {
    "trivia.dev": "TriviaQA", "trivia.test": "TriviaQA", "nq.dev": "Natural Questions", "nq.test": "Natural Questions",
    "wq.test": "WebQuestions", "squad.test": "SQuAD",
}  # fmt: skip
"""Question files and the data sets they come from. CuratedTREC is left out: its answers are regular expressions."""

SEED = 29
TEST, DEV = 2400, 600  # questions at least
MINED, KEPT = 60, 24  # leads BM25 names for a training question, and how many without an answer stay
COMMON = 0.03  # a word in more than this share of the leads is not informative

Rank = Callable[[Sequence[str], Sequence[str], int], Iterable[Sequence[int]]]
"""(texts, queries, k) -> positions of the k best texts for each query"""


@dataclass(frozen=True)
class Asked:
    """A question as its data set has it."""

    id: str  # <file>:<line>
    source: str
    question: str
    answers: tuple[str, ...]


def plain(text: str) -> str:
    """Lowercase words without accents, punctuation and English articles: how answers and titles are compared."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    words = re.sub(r"[^\w ]", " ", text).split()
    return " ".join(w for w in words if w not in ("a", "an", "the"))


def name_of(title: str) -> str:
    """A title's id: as in its address on Wikipedia, since run files separate fields by blanks."""
    return title.replace(" ", "_")


def holds(text: str, phrase: str) -> bool:
    """Whether a plain text holds a plain phrase as whole words."""
    return f" {phrase} " in f" {text} "


def read_questions(raw: bytes, name: str) -> Iterator[Asked]:
    """One file: lines of JSON, or of a question, a tab and a Python list of answers (perhaps quoted as in CSV)."""
    for number, line in enumerate(raw.decode("utf-8").splitlines()):
        try:
            if line.startswith("{"):
                row = json.loads(line)
                question, answers = row["question"], row["answer"]
            else:
                question, listed = line.split("\t", 1)
                listed = listed.strip()
                if listed.startswith('"'):
                    listed = listed[1:-1].replace('""', '"')
                answers = ast.literal_eval(listed)
        except (ValueError, SyntaxError, KeyError):
            continue  # a handful of lines of the published files are cut off
        yield Asked(f"{name}:{number}", SETS.get(name, name), question.strip(), tuple(map(str, answers)))


def questions(folder: Path) -> list[Asked]:
    """All questions of the package, in the order of ``SETS``."""
    with zipfile.ZipFile(archive(folder, QUESTIONS)) as package:
        jar = next(n for n in package.namelist() if n.endswith("fatjar.jar"))
        with zipfile.ZipFile(io.BytesIO(package.read(jar))) as inner:
            return [q for name in SETS for q in
                    read_questions(inner.read(f"topics-and-qrels/topics.dpr.{name}.txt"), name)]  # fmt: skip


def match(asked: Iterable[Asked], leads: Mapping[str, str]) -> list[dict[str, Any]]:
    """Records of the questions that one or two articles answer.

    An article answers when an alias of the answer is its title and no other article's. Aliases of one or two characters
    and numbers do not count, nor does a title that stands in the question. Of equal questions the first stays.
    """
    by_name: dict[str, list[str]] = {}
    for title in leads:
        by_name.setdefault(plain(title), []).append(title)
    rows, seen = [], set()
    for q in asked:
        text = plain(q.question)
        names = {plain(a) for a in q.answers} - {""}
        titles = {by_name[n][0] for n in names if len(n) > 2 and not n.isdigit() and len(by_name.get(n, ())) == 1}
        titles = {t for t in titles if not holds(text, plain(t))}
        if text and text not in seen and 1 <= len(titles) <= 2:
            seen.add(text)
            rows.append({"id": q.id, "source": q.source, "question": q.question, "positives": sorted(titles),
                         "answers": sorted(names)})  # fmt: skip
    return rows


def informative(leads: Mapping[str, str]) -> Callable[[str], set[str]]:
    """A function from a text to its words (their first six letters) that few leads have."""

    def words(text: str) -> set[str]:
        return {w[:6] for w in re.findall(r"[a-z0-9]+", text.lower()) if len(w) > 2}

    counts = Counter(w for title, text in leads.items() for w in words(f"{title} {text}"))
    return lambda text: {w for w in words(text) if counts[w] <= COMMON * len(leads)}


def mark_answerable(rows: Sequence[dict[str, Any]], leads: Mapping[str, str]) -> None:
    """``answerable``: one article answers, and its lead shares two informative words with the question."""
    words = informative(leads)
    of_lead = {t: words(f"{t} {leads[t]}") for t in {t for r in rows for t in r["positives"]}}
    for row in rows:
        shared = max(len(words(row["question"]) & of_lead[t]) for t in row["positives"])
        row["answerable"] = len(row["positives"]) == 1 and shared >= 2


def families(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Positions of the records that answers tie together: a question with two articles ties these."""
    parent: dict[str, str] = {}

    def root(title: str) -> str:
        while parent.setdefault(title, title) != title:
            title = parent[title]
        return title

    for row in rows:
        first, *others = (root(t) for t in row["positives"])
        for other in others:
            parent[other] = first
    groups: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        groups.setdefault(root(row["positives"][0]), []).append(position)
    return [groups[name] for name in sorted(groups)]


def deal(rows: Sequence[Any], test: int = TEST, dev: int = DEV, seed: int = SEED) -> dict[str, list[Any]]:
    """Whole families at random: to test until it has ``test`` records, then to dev, the rest to train."""
    if len(rows) <= test + dev:
        raise UserError(f"{len(rows)} questions are too few for {test} test and {dev} dev questions and any training.")
    groups = families(rows)
    random.Random(f"{seed} split").shuffle(groups)
    taken: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
    for group in groups:
        split = "test" if len(taken["test"]) < test else "dev" if len(taken["dev"]) < dev else "train"
        taken[split] += group
    return {split: [rows[i] for i in sorted(positions)] for split, positions in taken.items()}


def add_negatives(rows: Sequence[dict[str, Any]], leads: Mapping[str, str], rank: Rank) -> None:
    """``negatives``: titles of the leads that ``rank`` finds and that neither are nor hold an answer, best first."""
    titles, texts = list(leads), list(leads.values())
    searchable = [plain(f"{title} {text}") for title, text in leads.items()]
    found = rank(texts, [r["question"] for r in rows], MINED)
    for row, places in zip(rows, found, strict=True):
        names = {*row["answers"], *map(plain, row["positives"])}
        wrong = (titles[i] for i in places if not any(holds(searchable[i], n) for n in names))
        row["negatives"] = [t for t in wrong if t not in row["positives"]][:KEPT]


def bm25_rank(texts: Sequence[str], queries: Sequence[str], k: int) -> Iterable[Sequence[int]]:
    from scripts.triviawiki_bm25 import BM25

    return BM25(texts).rank(queries, k)[0].tolist()


def write(out: Path, asked: Iterable[Asked], leads: Mapping[str, str], rank: Rank = bm25_rank, test: int = TEST,
          dev: int = DEV, about: Mapping[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    """Write the data set's folder from questions and leads; its manifest."""
    rows = match(asked, leads)
    mark_answerable(rows, leads)
    splits = deal(rows, test, dev)
    add_negatives(splits["train"], leads, rank)
    with atomic_folder(out) as folder:
        for split, part in splits.items():
            keys = [key for key in ("positives", "negatives") if key in part[0]]
            named = ({**row, **{key: [name_of(t) for t in row[key]] for key in keys}} for row in part)
            lines = [json.dumps(row, ensure_ascii=False) for row in named]
            (folder / f"{split}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        lines = [
            json.dumps({"id": name_of(t), "title": t, "text": text}, ensure_ascii=False) for t, text in leads.items()
        ]
        (folder / "passages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        manifest = {
            "name": "TriviaWiki", "seed": SEED,
            "counts": {"passages": len(leads), **{s: len(p) for s, p in splits.items()}},
            "answerable": {s: sum(r["answerable"] for r in p) for s, p in splits.items()},
            "articles": {s: len({t for r in p for t in r["positives"]}) for s, p in splits.items()},
            "sources_of": {s: dict(sorted(Counter(r["source"] for r in p).items())) for s, p in splits.items()},
            **(about or {}),
            "sha256": {p.name: sha256(p) for p in sorted(folder.glob("*.json*"))},
        }  # fmt: skip
        (folder / "README.md").write_text(readme(manifest), encoding="utf-8")
        write_json(folder / "manifest.json", manifest)
    return manifest


def readme(manifest: Mapping[str, Any]) -> str:
    """What lies in the folder and whom to thank."""
    lines = ["# TriviaWiki", "", "A question; the answer is the lead of the Wikipedia article about it.", "",
             "| split | questions | answerable | articles |", "|---|---|---|---|"]  # fmt: skip
    for split in ("train", "dev", "test"):
        row = (split, *(manifest[key][split] for key in ("counts", "answerable", "articles")))
        lines.append("| " + " | ".join(map(str, row)) + " |")
    lines += ["", "Sources (none of them is part of the project's licence):", ""]
    lines += [f"- {name} {source['version']}: {source['project']}, {source['homepage']}, {source['licence']}"
              for name, source in manifest.get("sources", {}).items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def build(sources: Path, out: Path) -> dict[str, Any]:
    """Read the packages in ``sources`` and write the data set's folder; its manifest."""
    about = {"sources": {p.name: {"version": p.version, "project": p.project, "homepage": p.homepage,
                                  "licence": p.licence, "sha256": sha256(archive(sources, p))}
                         for p in (ARTICLES, QUESTIONS)}}  # fmt: skip
    return write(out, questions(sources), articles(sources), about=about)


def run(argv: Sequence[str]) -> None:
    """The command line: prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, default=Path("data/.downloads"), help="the packages (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/triviawiki"), help="folder to write (%(default)s)")
    parser.add_argument("--fetch", action="store_true", help="first download the packages that --sources lacks")
    args = parser.parse_args(argv)
    if args.fetch:
        fetch(args.sources, [ARTICLES, QUESTIONS])
    print(json.dumps(build(args.sources, args.out)["counts"]))


if __name__ == "__main__":
    cli.main(run)
