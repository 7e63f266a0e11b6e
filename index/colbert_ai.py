"""Reads a PLAID index exactly as colbert-ai 0.2.22 wrote it (the layout of ColBERTv2 and PLAID)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.files import read_json
from core.maxsim import maxsim_packed
from index.codec import Codec
from index.ivf import row_numbers
from index.packed import BUDGET_BYTES, blocks


class ColbertAIIndex:
    """A folder with metadata.json, centroids.pt, buckets.pt, N.codes.pt, N.residuals.pt, doclens.N.json, ivf.pid.pt.

    Passages are numbered (pids); the ids of a collection are its line numbers. Read-only, on CPU.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "metadata.json").is_file():
            raise UserError(f"'{path}' holds no colbert-ai index (metadata.json is missing); give its index folder.")
        self.metadata: dict[str, Any] = read_json(self.path / "metadata.json", "colbert-ai metadata")
        self.config: dict[str, Any] = self.metadata["config"]
        self._chunks = range(self.metadata["num_chunks"])

    def _load(self, name: str) -> Any:
        try:
            return torch.load(self.path / name, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"'{self.path / name}' is missing; copy the whole colbert-ai index folder.") from None

    @cached_property
    def codec(self) -> Codec:
        cutoffs, weights = self._load("buckets.pt")
        codec = Codec(self._load("centroids.pt").float(), cutoffs.float(), weights.float(), unit=True)
        if codec.nbits != self.config["nbits"]:
            said = self.config["nbits"]
            raise UserError(f"'{self.path}' says nbits={said} but buckets.pt has {codec.nbits}; build it again.")
        return codec

    @cached_property
    def doclens(self) -> Tensor:
        """[passages] int64: vectors per passage."""
        return torch.tensor([n for i in self._chunks for n in read_json(self.path / f"doclens.{i}.json", "doclens")])

    @cached_property
    def offsets(self) -> Tensor:
        """[passages + 1] int64: first vector of each passage."""
        return torch.cat([torch.zeros(1, dtype=torch.int64), self.doclens.cumsum(0)])

    @cached_property
    def codes(self) -> Tensor:
        """[vectors] int32: centroid of each vector."""
        return torch.cat([self._load(f"{i}.codes.pt") for i in self._chunks])

    @cached_property
    def residuals(self) -> Tensor:
        """[vectors, dim * nbits / 8] uint8, packed as ``index.codec`` says."""
        return torch.cat([self._load(f"{i}.residuals.pt") for i in self._chunks])

    @cached_property
    def ivf(self) -> tuple[Tensor, Tensor]:
        """Passage numbers of all lists one after another [n] int64, and their lengths [K] int64."""
        pids, lengths = self._load("ivf.pid.pt")
        # colbert-ai saves its lists with a tail of zeros (room for strided reads); it belongs to no list.
        return pids[: int(lengths.sum())].long(), lengths.long()

    def __len__(self) -> int:
        return len(self.doclens)

    def rows(self, pids: Tensor) -> Tensor:
        """Numbers of the vectors of these passages, one passage after another."""
        return torch.from_numpy(row_numbers(self.offsets[pids].numpy(), self.doclens[pids].numpy()))

    def decompress(self, pids: Tensor | list[int], normalise: bool = True) -> Tensor:
        """[sum of doclens[pids], dim] float32: centroid + bucket weight, then at length 1 when ``normalise``."""
        rows = self.rows(torch.as_tensor(pids, dtype=torch.int64))
        return self.codec.decompress(self.codes[rows], self.residuals[rows], normalise)

    def exact_scores(self, query: Tensor, pids: Tensor | None = None, floor: float | None = 0.0) -> Tensor:
        """MaxSim of one query [T, dim] with all passages, or with ``pids`` -> [passages] float32, without pruning.

        floor=0.0 is what colbert-ai's CPU search computes (a row whose best similarity is negative counts 0);
        floor=None is MaxSim as this project defines it.
        """
        pids = torch.arange(len(self)) if pids is None else pids
        max_rows = max(1, BUDGET_BYTES // (8 * (query.shape[0] + query.shape[1])))
        parts = [torch.empty(0)]
        for run in blocks(self.doclens[pids].numpy(), np.arange(len(pids)), max_rows):
            here = pids[torch.from_numpy(run)]
            parts.append(maxsim_packed(query.float(), self.decompress(here), self.doclens[here], floor))
        return torch.cat(parts)
