"""The retrievers that TriviaWiki compares: each gives rankings of the first k leads for every question of a split."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import normalize

from core.device import autocast
from core.files import fingerprint
from core.protocols import Ranking
from core.records import Document, Query
from core.tokens import TokenBatch
from evaluation.loop import run as search_all
from evaluation.metrics import evaluate, means
from index.exact import Index
from models.towers.tokenizer import ColbertTokenizer
from runs.common import encode_corpus, open_retriever
from training.states import TextStates, build_states

CHOOSE_BY = "Success@10"
"""The dev metric that settings are chosen by; ties go to the first."""

Rankings = Mapping[str, Ranking]
CPU = torch.device("cpu")


class Bench:
    """Data, folder and settings that all systems share."""

    def __init__(self, cfg, data, out: Path) -> None:
        self.cfg, self.data, self.out = cfg, data, out
        self.documents: Sequence[Document] = list(data.corpus())
        self.precision = cfg.train.precision
        self.k = min(cfg.eval.k, len(self.documents))

    def queries(self, split: str) -> list[Query]:
        return list(self.data.queries(split))

    def dev(self, rankings: Rankings) -> dict[str, float]:
        """Mean metrics of rankings of the dev questions."""
        return means(evaluate(rankings, self.data.qrels(self.data.valid_split), self.cfg.eval.metrics))

    def choose(self, attempts: Mapping[str, Callable[[str], Rankings]]) -> tuple[str, dict, dict[str, Rankings]]:
        """The best of several settings by the dev split: its name, every setting's dev metrics, and its rankings."""
        valid = self.data.valid_split
        found = {name: attempt(valid) for name, attempt in attempts.items()}
        metrics = {name: self.dev(rankings) for name, rankings in found.items()}
        best = max(metrics, key=lambda name: metrics[name][CHOOSE_BY])
        return best, metrics, {valid: found[best], "test": attempts[best]("test")}


def bm25(bench: Bench):
    """bm25s over the whole leads; k1, b and stemming chosen on dev."""
    from scripts.triviawiki_bm25 import BM25

    texts, ids = [d.text for d in bench.documents], [d.id for d in bench.documents]

    def attempt(k1: float, b: float, stem: bool) -> Callable[[str], Rankings]:
        def rank(split: str) -> Rankings:
            queries = bench.queries(split)
            places, scores = BM25(texts, k1, b, stem).rank([q.text for q in queries], bench.k)
            return {q.id: Ranking(tuple(ids[i] for i in p), tuple(map(float, s)))
                    for q, p, s in zip(queries, places.tolist(), scores.tolist(), strict=True)}  # fmt: skip

        return rank

    grid = itertools.product((0.6, 0.9, 1.2, 1.6), (0.2, 0.4, 0.75), (True, False))
    return bench.choose({f"k1 {k1}, b {b}, {'stemmed' if stem else 'whole words'}": attempt(k1, b, stem)
                         for k1, b, stem in grid})  # fmt: skip


def open_start(bench: Bench):
    """The untrained retriever, its trunk frozen so that states can be stored, and the states of all leads."""
    retriever = open_retriever(bench.cfg.run.init)
    retriever.config = bench.cfg.model.model_copy(update={"fresh": []})
    retriever.freeze(["text"])  # not the projection: finished rows would be stored in place of the tower's states
    with autocast(CPU, bench.precision):
        store = build_states(retriever, bench.documents, bench.out / "states")
    return retriever, TextStates(retriever, store)


def search(bench: Bench, index: Index, encode: Callable[[Sequence[Query]], TokenBatch], split: str) -> Rankings:
    def unit(queries: Sequence[Query]) -> TokenBatch:
        with torch.inference_mode(), autocast(CPU, bench.precision):
            return encode(queries).to(torch.float32)

    return search_all(unit, index, bench.queries(split), bench.k, bench.cfg.eval.batch_size)[0]


def both(bench: Bench, index: Index, encode: Callable[[Sequence[Query]], TokenBatch]) -> dict[str, Rankings]:
    return {split: search(bench, index, encode, split) for split in (bench.data.valid_split, "test")}


def folder_of(bench: Bench, system: str, encoder: dict) -> Path:
    return bench.out / "index" / f"{system}-{fingerprint(encoder)}"


def indexed(bench: Bench, system: str, vectors: Iterable, dim: int, encoder: dict) -> Index:
    """The exact index of a system's vectors; an interrupted build goes on."""
    path = folder_of(bench, system, encoder)
    return Index.build(path, vectors, dim=dim, encoder=encoder, total=len(bench.documents))


def single(bench: Bench):
    """The tower as a single-vector retriever: the mean of its token states, cosine."""
    retriever, states = open_start(bench)

    def documents():
        for document in bench.documents:
            yield document.id, normalize(states.get("document", [document.text])[0].mean(0), dim=-1)[None].numpy()

    def encode(queries: Sequence[Query]) -> TokenBatch:
        batch = retriever.collate_queries(queries)
        rows, mask = retriever.states(batch).float(), batch["mask"].unsqueeze(-1)
        mean = normalize((rows * mask).sum(1) / mask.sum(1), dim=-1)
        return TokenBatch(mean[:, None], torch.ones(len(mean), 1, dtype=torch.bool))

    encoder = {"tower": retriever.identity()["text"], "pooling": "mean"}
    index = indexed(bench, "single", documents(), retriever.text.hidden_size, encoder)
    return "", {}, both(bench, index, encode)


def untrained(bench: Bench):
    """MaxSim with the tower as it came; whether queries are filled with [MASK] is chosen on dev."""
    retriever, states = open_start(bench)
    vectors = encode_corpus(retriever, bench.documents, bench.cfg.index.batch_size, states=states)
    index = indexed(bench, "untrained", vectors, retriever.config.dim, retriever.identity())
    plain = retriever.tokenizer

    def attempt(expansion: bool) -> Callable[[str], Rankings]:
        def rank(split: str) -> Rankings:
            retriever.tokenizer = ColbertTokenizer(plain.tokenizer, replace(plain.conventions, expansion=expansion))
            return search(bench, index, lambda q: retriever.encode_queries(retriever.collate_queries(q)), split)

        return rank

    return bench.choose({"queries as they are": attempt(False), "queries filled with [MASK]": attempt(True)})


def trained(bench: Bench):
    """The checkpoint that the run's validation picked."""
    retriever = open_retriever(bench.cfg.run.out)
    skip = Index.committed(folder_of(bench, "trained", retriever.identity()))
    vectors = encode_corpus(
        retriever, bench.documents, bench.cfg.index.batch_size, skip=skip, precision=bench.precision
    )
    index = indexed(bench, "trained", vectors, retriever.config.dim, retriever.identity())
    return "", {}, both(bench, index, lambda q: retriever.encode_queries(retriever.collate_queries(q)))


SYSTEMS = {"bm25": bm25, "single": single, "untrained": untrained, "trained": trained}
