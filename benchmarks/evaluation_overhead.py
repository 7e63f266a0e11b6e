"""What an evaluation costs beside the model and the search: milliseconds of CPU time a query, part by part.

    python -m benchmarks.evaluation_overhead --queries 10000 --documents 10000 --k 100

Queries are made up, and the index answers with rankings drawn beforehand, so that encoding and searching cost nothing;
everything else is the code that ``runs.evaluate_retrieval`` runs: collecting rankings, judging by qrels and by answers,
intervals, and writing every file. The second judging finds the answers' judgements in the file of the first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from core.protocols import Ranking
from core.records import Document, Query
from core.tokens import TokenBatch
from evaluation.loop import run as search_all
from evaluation.report import entry
from runs.judging import Judges
from runs.leaving import leave, sample

METRICS = [f"{family}@{k}" for family in ("Success", "Recall", "MRR", "nDCG") for k in (5, 10, 100)]
METRICS += ["MAP@100", "Precision@5", "PseudoSuccess@5", "PseudoSuccess@100", "PseudoMRR@10", "PseudoPrecision@5"]


class Drawn:
    """An index that knows its answers beforehand."""

    def __init__(self, documents: int, queries: int, k: int, rng: np.random.Generator) -> None:
        scores = tuple(float(s) for s in np.linspace(30, 10, k))
        places = rng.integers(documents, size=(queries, k * 2))
        self.rankings = []
        for row in places:
            ids = tuple(f"d{i}" for i in dict.fromkeys(row.tolist()))[:k]
            self.rankings.append(Ranking(ids, scores[: len(ids)]))
        self.next = 0

    def search(self, queries: TokenBatch, k: int) -> list[Ranking]:
        self.next += len(queries)
        return self.rankings[self.next - len(queries) : self.next]


class Made:
    """A data set in memory: passages of ``words`` words, two answers of one or two words a query, one gold passage."""

    config = SimpleNamespace(name="made")
    test_splits = ("test",)

    def __init__(self, documents: int, queries: int, words: int, rng: np.random.Generator) -> None:
        vocabulary = np.array([f"word{i}" for i in range(20_000)])
        drawn = rng.zipf(1.3, size=(documents, words)) % len(vocabulary)
        self._corpus = [Document(f"d{i}", " ".join(vocabulary[row])) for i, row in enumerate(drawn)]
        self._queries, self._qrels = [], {}
        for i in range(queries):
            answers = tuple(" ".join(vocabulary[rng.integers(len(vocabulary), size=1 + j)]) for j in range(2))
            self._queries.append(Query(f"q{i}", f"what is {i}", meta={"answers": answers, "kind": str(i % 7)}))
            self._qrels[f"q{i}"] = {f"d{rng.integers(documents)}": 1}

    def corpus(self):
        return self._corpus

    def queries(self, split: str):
        return self._queries

    def qrels(self, split: str):
        return self._qrels

    def judge(self, query, document):
        raise AssertionError("answers are judged many at once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--words", type=int, default=100, help="of a passage")
    parser.add_argument("--out", help="also write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    data = Made(args.documents, args.queries, args.words, rng)
    index = Drawn(args.documents, args.queries, args.k, rng)
    queries, seconds = data.queries("test"), {}

    def timed(part: str, work):
        start = time.process_time()
        result = work()
        seconds[part] = time.process_time() - start
        return result

    def encode(batch):
        return TokenBatch(torch.zeros(len(batch), 1, 1), torch.ones(len(batch), 1, dtype=torch.bool))

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        rankings, _ = timed("collecting rankings", lambda: search_all(encode, index, queries, args.k))
        by_ids = [name for name in METRICS if not name.startswith("Pseudo")]
        timed("judging by qrels", lambda: Judges(data, by_ids).judge("test", queries, rankings))
        judges = Judges(data, METRICS, out / "kept.npz")
        found = timed("judging by qrels and answers", lambda: judges.judge("test", queries, rankings, sample(queries)))
        again = Judges(data, METRICS, out / "kept.npz")
        timed("the same, answers judged before", lambda: again.judge("test", queries, rankings))
        timed("means and intervals", lambda: entry(found.scores))
        timed("writing all files", lambda: leave(out / "runs", "test", "made", queries, rankings, found, tag="bench"))
    parts = ("collecting rankings", "judging by qrels and answers", "means and intervals", "writing all files")
    seconds["one evaluation"] = sum(seconds[part] for part in parts)
    pairs = sum(len(r.ids) for r in rankings.values())
    print(
        f"{len(queries)} queries, {args.documents} passages of {args.words} words, {pairs} pairs, "
        f"{len(METRICS)} metrics"
    )
    for part, value in seconds.items():
        print(f"{part:34} {value:8.2f} s {1000 * value / len(queries):8.3f} ms/query")
    if args.out:
        Path(args.out).write_text(json.dumps({"arguments": vars(args), "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
