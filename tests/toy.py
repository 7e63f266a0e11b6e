"""A toy retriever and a toy data set that keep the protocols, for tests of rooms that must not know a real one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from core.batch import Batch
from core.config import Strict, check
from core.files import atomic_folder, read_json, write_json
from core.records import Document, Example, ImageRef, Query
from core.tokens import TokenBatch
from core.visual import VisualBatch

WORDS = [f"w{i}" for i in range(90)]
VOCABULARY = 97


class ToyConfig(Strict):
    name: str = "toy"
    hidden: int = 12
    dim: int = 8
    dropout: float = 0.1
    frozen: list[str] = []
    pooler: bool = False  # a part that nothing reads, like BERT's


class ToyTrunk(nn.Module):
    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, hidden)
        self.mix = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh())
        self.drop = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        return self.drop(self.mix(self.words(ids)))


class ToyRetriever(nn.Module):
    """Words to vectors; an image [v = 4 features] gives two more rows. Parts: trunk, linear, image, pooler."""

    def __init__(self, config: ToyConfig | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config or ToyConfig()
        self.stage = "train"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = ToyTrunk(self.config.hidden, self.config.dropout)
            self.linear = nn.Linear(self.config.hidden, self.config.dim, bias=True)
            self.image = nn.Linear(4, 2 * self.config.dim)
            self.pooler = nn.Linear(4, 4) if self.config.pooler else None
        for name in self.config.frozen:
            getattr(self, name).requires_grad_(False)

    def _ids(self, text: str) -> list[int]:
        return [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in text.split()] or [1]

    def _collate(self, side: str, records: Sequence[Query | Document], visual, states) -> Batch:
        rows = [self._ids(r.text) for r in records]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        tensors = {"ids": ids, "mask": ids > 0}
        if states is not None:
            found = states.get(side, [r.text for r in records])
            tensors["states"] = TokenBatch.pad(list(found), ids.shape[1]).embeddings
        refs = [ref for r in records for ref in r.images]
        images = visual.fetch(refs) if refs and visual is not None else None
        counts = [len(r.images) if visual is not None else 0 for r in records]
        return Batch(tensors, images, Batch.image_offsets(counts))

    def collate_queries(self, records, visual=None, states=None) -> Batch:
        return self._collate("query", records, visual, states)

    def collate_documents(self, records, visual=None, states=None) -> Batch:
        return self._collate("document", records, visual, states)

    def _encode(self, batch: Batch) -> TokenBatch:
        states = batch["states"] if "states" in batch else self.trunk(batch["ids"])
        rows, mask = self.linear(states), batch["mask"]
        if batch.images is not None:
            extra = rows.new_zeros(len(batch), 2, self.config.dim)
            has = batch.image_counts > 0
            first = batch.offsets[:-1][has]
            extra[has] = self.image(batch.images.global_)[first].view(-1, 2, self.config.dim)
            rows, mask = torch.cat([extra, rows], 1), torch.cat([has[:, None].expand(-1, 2), mask], 1)
        return TokenBatch(normalize(rows, dim=-1), mask)

    def encode_queries(self, batch: Batch) -> TokenBatch:
        return self._encode(batch)

    def encode_documents(self, batch: Batch) -> TokenBatch:
        return self._encode(batch)

    def temperature(self) -> float:
        return 0.5 if self.stage == "train" else 1.0

    def identity(self) -> dict:
        return {"retriever": "toy", "weights": float(sum(p.double().sum() for p in self.parameters()))}

    def frozen_text_key(self, side: str) -> dict | None:
        if "trunk" not in self.config.frozen:
            return None
        weights = float(sum(p.double().sum() for p in self.trunk.parameters()))
        return {"kind": f"text states, {side}", "weights": weights, "dtype": "float16"}

    @torch.no_grad()
    def text_states(self, side: str, texts: Sequence[str]) -> list[Tensor]:
        return [self.trunk(torch.tensor(self._ids(text))) for text in texts]

    def save_pretrained(self, path: str | Path, provenance: dict | None = None) -> None:
        with atomic_folder(path) as folder:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
            write_json(folder / "config.json", self.config.model_dump())
            write_json(folder / "provenance.json", provenance or {})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> ToyRetriever:
        made = cls(check(ToyConfig, read_json(Path(path) / "config.json"), "model"))
        made.load_state_dict(load_file(Path(path) / "model.safetensors"))
        made.stage = "eval"
        return made.eval()


class ToyVisual:
    """Features that depend on the image id alone."""

    fingerprint = {"tower": "toy"}

    def fetch(self, refs: Sequence[ImageRef]) -> VisualBatch:
        rows = [np.random.default_rng(zlib.crc32(r.key.encode())).standard_normal((1, 4)) for r in refs]
        values = torch.tensor(np.concatenate(rows), dtype=torch.float32)
        return VisualBatch(global_=values, patches=values[:, None])


class ToyDataset:
    """``size`` passages of six words; each query is two words of its passage and perhaps an image."""

    def __init__(self, size: int = 40, negatives: int = 0, image_every: int = 0) -> None:
        """image_every: every how many-th query has an image; 0: none."""
        rng = np.random.default_rng(7)
        self.negatives = negatives
        texts = [" ".join(rng.choice(WORDS, 6, replace=False)) for _ in range(size)]
        self._documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
        self._queries = []
        for i, text in enumerate(texts):
            images = (ImageRef(f"img{i}", data=b"x"),) if image_every and i % image_every == 0 else ()
            self._queries.append(Query(f"q{i}", " ".join(text.split()[1:3]), images))

    def corpus(self) -> Sequence[Document]:
        return self._documents

    def queries(self, split: str) -> Sequence[Query]:
        return self._queries

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        out = []
        for i, query in enumerate(self._queries):
            others = np.random.default_rng([seed, epoch, i]).permutation(len(self._documents))
            wrong = [self._documents[j] for j in others if j != i][: self.negatives]
            out.append(Example(query, self._documents[i], tuple(wrong)))
        return out

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        return {q.id: {d.id: 1} for q, d in zip(self._queries, self._documents)}
