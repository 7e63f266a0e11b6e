"""The engine's side of the race: a process that obeys JSON lines on stdin and answers on stdout.

  {"do": "build", "docs": 6123, "name": "index"}    -> {"seconds", "bytes", "vectors"}
  {"do": "open", "docs": 6123, "name": "index"}     -> {}
  {"do": "search", "setting": {...}, "batch": 64, "first": 0, "last": 1000, "k": 100, "out": "ids.npy"} -> {"ms"}

``ms`` is per query. Only numpy is needed here: this file runs in every engine's own environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np

WARM_UP = 64  # queries (at most one batch) that are searched untimed before every timed stretch


class Engine:
    """What an engine fills in. Vectors are handed over as they come from disk: float16 rows, documents in order."""

    packages: tuple[str, ...] = ("torch", "numpy")

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.vectors = np.load(args.vectors / "vectors.npy", mmap_mode="r")
        self.lengths = np.load(args.vectors / "lengths.npy")[: args.docs]
        self.queries = np.load(args.vectors / "queries.npy")[: args.queries]

    def prepare(self, docs: int) -> None:
        """Anything about handing over ``docs`` documents that is not the engine's work (untimed)."""

    def build(self, docs: int, folder: Path) -> None:
        """Timed: vectors in memory -> a complete index in ``folder``."""
        raise NotImplementedError

    def open(self, docs: int, folder: Path) -> None:
        """Make ``search`` answer from this index."""
        raise NotImplementedError

    def search(self, queries: np.ndarray, k: int, setting: dict) -> list[list[int]]:
        """The document numbers of the best k for queries [B, 32, 128]; timed."""
        raise NotImplementedError

    def facts(self) -> dict:
        """Numbers of the open index that the report wants."""
        return {}

    def rows(self, docs: int) -> np.ndarray:
        return self.vectors[: int(self.lengths[:docs].sum())]


def folder_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def timed_search(engine: Engine, order: dict) -> dict:
    queries = engine.queries[order["first"] : order["last"]]
    batch, k, setting = order["batch"], order["k"], order["setting"]
    engine.search(queries[: min(batch, WARM_UP)], k, setting)
    found: list[list[int]] = []
    start = time.perf_counter()
    for i in range(0, len(queries), batch):
        found += engine.search(queries[i : i + batch], k, setting)
    seconds = time.perf_counter() - start
    if order.get("out"):
        ids = np.full((len(found), k), -1, dtype=np.int64)  # -1: the engine gave fewer than k
        for row, best in enumerate(found):
            ids[row, : len(best[:k])] = best[:k]
        np.save(order["out"], ids)
    return {"ms": 1000 * seconds / len(queries)}


def obey(engine: Engine, order: dict) -> dict:
    if order["do"] == "search":
        return timed_search(engine, order)
    folder = engine.args.work / order["name"]
    engine.prepare(order["docs"])
    if order["do"] == "open":
        engine.open(order["docs"], folder)
        return {}
    start = time.perf_counter()
    engine.build(order["docs"], folder)
    seconds = time.perf_counter() - start
    size, vectors = folder_bytes(folder), len(engine.rows(order["docs"]))
    engine.open(order["docs"], folder)
    return {"seconds": seconds, "bytes": size, "vectors": vectors, **engine.facts()}


def main(engine_class: type[Engine]) -> None:
    parser = argparse.ArgumentParser()
    for name in ("--vectors", "--work"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--docs", "--queries", "--threads", "--nbits"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    # Libraries print to stdout, some of them from C: answers get a descriptor that nobody else knows.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        engine = engine_class(args)
        answer({"versions": {p: importlib.metadata.version(p) for p in engine.packages}})
        for line in sys.stdin:
            answer(obey(engine, json.loads(line)))
    except Exception as error:  # the parent prints the sentence; the traceback is in the log
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
