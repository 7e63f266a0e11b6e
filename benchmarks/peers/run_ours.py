"""Our index as an engine of the race (see serve.py), in the environment that started the benchmark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import serve
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core.tokens import TokenBatch
from index.plaid import Index


class Ours(serve.Engine):
    def __init__(self, args) -> None:
        super().__init__(args)
        torch.set_num_threads(args.threads)

    def prepare(self, docs: int) -> None:
        self.handed = np.array(self.rows(docs))  # in memory, as every engine gets it

    def build(self, docs: int, folder: Path) -> None:
        options = {"nbits": self.args.nbits, "device": self.args.device}
        Index.build(folder, self._stream(docs), dim=self.handed.shape[1], encoder={}, total=docs, **options)

    def _stream(self, docs: int) -> Iterator[tuple[str, np.ndarray]]:
        end = np.cumsum(self.lengths[:docs])
        for i, (last, length) in enumerate(zip(end.tolist(), self.lengths.tolist())):
            yield str(i), self.handed[last - length : last]

    def open(self, docs: int, folder: Path) -> None:
        self.index = Index.open(folder, device=self.args.device)
        self.docs = docs

    def facts(self) -> dict:
        return {"centroids": self.index.stats().get("centroids", 0)}

    def search(self, queries: np.ndarray, k: int, setting: dict) -> list[list[int]]:
        embeddings = torch.from_numpy(queries)
        batch = TokenBatch(embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool))
        k = min(k, self.docs, setting.get("n_candidates", k))
        return [[int(i) for i in ranking.ids] for ranking in self.index.search(batch, k, **setting)]


if __name__ == "__main__":
    serve.main(Ours)
