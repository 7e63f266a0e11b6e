"""colbert-ai as an engine of the race (see serve.py).

Its indexer and searcher want a checkpoint that encodes text. Here passages are numbers, and the encoder is replaced by
one that looks the vectors up; all else is its own: sampling, k-means (faiss), codec, files, and the C++ extensions that
it compiles at first use.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

# Compiled once, beside the environment; ninja comes with it but is looked for on the PATH.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "extensions"))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

import faiss
import numpy as np
import serve
import torch
from colbert.indexing import collection_indexer
from colbert.infra import ColBERTConfig
from colbert.modeling.colbert import ColBERT
from colbert.search.index_storage import IndexScorer


class NoCheckpoint:
    def __init__(self, *args, **kwargs) -> None:
        pass

    def cuda(self) -> NoCheckpoint:
        return self


class ColBERTEngine(serve.Engine):
    packages = ("colbert-ai", "faiss-cpu", "transformers", "torch", "numpy")

    def __init__(self, args) -> None:
        super().__init__(args)
        torch.set_num_threads(args.threads)
        faiss.omp_set_num_threads(args.threads)
        self.gpu = args.device != "cpu"
        collection_indexer.Checkpoint = NoCheckpoint
        collection_indexer.CollectionEncoder = lambda config, checkpoint: self  # encode_passages is below
        ColBERT.try_load_torch_extensions(self.gpu)

    def prepare(self, docs: int) -> None:
        self.handed = torch.from_numpy(np.array(self.rows(docs)))
        lengths = torch.from_numpy(self.lengths[:docs])
        self.bounds = list(zip((lengths.cumsum(0) - lengths).tolist(), lengths.tolist()))

    def encode_passages(self, numbers: list[int]) -> tuple[torch.Tensor, list[int]]:
        """What its encoder gives: packed vectors (fp32 on CPU, fp16 on GPU) and the length of each passage."""
        rows = [self.handed[start : start + length] for start, length in (self.bounds[n] for n in numbers)]
        packed = torch.cat(rows)
        return packed.half() if self.gpu else packed.float(), [len(r) for r in rows]

    def build(self, docs: int, folder: Path) -> None:
        random.seed(0)
        torch.manual_seed(0)
        folder.mkdir(parents=True)
        config = ColBERTConfig(nbits=self.args.nbits, dim=self.handed.shape[1], index_path=str(folder), nranks=1)
        config.configure(rank=0, checkpoint="none")
        collection_indexer.CollectionIndexer(config, list(range(docs)), verbose=0).run([])

    def open(self, docs: int, folder: Path) -> None:
        self.scorer = IndexScorer(str(folder), use_gpu=self.gpu)
        self.configs: dict[str, ColBERTConfig] = {}  # its searcher makes one, not one per query

    def search(self, queries: np.ndarray, k: int, setting: dict) -> list[list[int]]:
        config = self.configs.get(repr(setting))
        if config is None:
            config = self.configs[repr(setting)] = ColBERTConfig(query_maxlen=queries.shape[1], **setting)
        return [self.scorer.rank(config, torch.from_numpy(q[None]))[0][:k] for q in queries]


if __name__ == "__main__":
    serve.main(ColBERTEngine)
