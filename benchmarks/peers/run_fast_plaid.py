"""fast-plaid as an engine of the race (see serve.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import serve
import torch
from fast_plaid.search import FastPlaid


class FastPlaidEngine(serve.Engine):
    packages = ("fast-plaid", "torch", "numpy")

    def __init__(self, args) -> None:
        super().__init__(args)
        torch.set_num_threads(args.threads)

    def prepare(self, docs: int) -> None:
        rows = torch.from_numpy(np.array(self.rows(docs)))
        self.handed = list(rows.split(self.lengths[:docs].tolist()))

    def build(self, docs: int, folder: Path) -> None:
        made = FastPlaid(index=str(folder), device=self.args.device)
        # start_from_scratch=0: no copy of the raw vectors beside a small index, which would count as its size.
        made.create(documents_embeddings=self.handed, nbits=self.args.nbits, start_from_scratch=0)

    def open(self, docs: int, folder: Path) -> None:
        self.index = FastPlaid(index=str(folder), device=self.args.device)

    def search(self, queries: np.ndarray, k: int, setting: dict) -> list[list[int]]:
        # Its own rule for parallel workers is one per 10 queries up to the cores of the machine: here, the threads.
        workers = max(1, min(len(queries) // 10, self.args.threads))
        found = self.index.search(
            torch.from_numpy(queries), top_k=k, show_progress=False, n_processes=workers, **setting
        )
        return [[number for number, _ in best] for best in found]


if __name__ == "__main__":
    serve.main(FastPlaidEngine)
