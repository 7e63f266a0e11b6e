"""Brute force as an engine of the race (see serve.py): fp32 products with every vector, the truth for the overlaps.

Documents of one length lie together, so that the maximum over a document is a reduction of a dense block: no padding,
no mask, no gather.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import serve
import torch

BLOCK_FLOATS = {"cpu": 1 << 21, "cuda": 1 << 28}  # similarities of one block; on CPU the best of 2^17 to 2^24


class Exact(serve.Engine):
    def __init__(self, args) -> None:
        super().__init__(args)
        torch.set_num_threads(args.threads)

    def build(self, docs: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, docs: int, folder: Path) -> None:
        lengths = self.lengths[:docs]
        starts = np.cumsum(lengths) - lengths
        self.order = torch.from_numpy(np.argsort(lengths, kind="stable"))
        rows = self.rows(docs)
        ordered = np.concatenate([rows[starts[i] : starts[i] + lengths[i]] for i in self.order.tolist()])
        self.packed = torch.from_numpy(ordered.astype(np.float32)).to(self.args.device)
        sizes, counts = np.unique(lengths, return_counts=True)
        self.groups = [(int(n), int(c)) for n, c in zip(sizes, counts) if n > 0]
        self.empty = int((lengths == 0).sum())

    @torch.inference_mode()
    def search(self, queries: np.ndarray, k: int, setting: dict) -> list[list[int]]:
        b, t, dim = queries.shape
        columns = torch.from_numpy(queries).to(self.args.device).reshape(b * t, dim).T.contiguous()
        parts = [torch.full((self.empty, b), -torch.inf, device=self.args.device)] if self.empty else []
        row = 0
        for length, count in self.groups:
            step = max(1, BLOCK_FLOATS[self.args.device] // (length * b * t))
            for first in range(0, count, step):
                n = min(step, count - first)
                similar = self.packed[row : row + n * length] @ columns
                parts.append(similar.view(n, length, b * t).amax(1).view(n, b, t).sum(-1))
                row += n * length
        best = torch.cat(parts).T.topk(min(k, len(self.order)), dim=1).indices.cpu()
        return self.order[best].tolist()


if __name__ == "__main__":
    serve.main(Exact)
