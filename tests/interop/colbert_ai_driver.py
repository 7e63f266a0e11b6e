"""colbert-ai 0.2.22 on given vectors, in a process of its own: builds an index and searches it with its own code.

  python colbert_ai_driver.py vectors.npz FOLDER    -> FOLDER/index, FOLDER/rankings.json

Its Indexer and Searcher load a model first, which fails under transformers 5; its CollectionIndexer and Searcher's
``dense_search`` do not need one. g++ compiles its extensions at the first search and keeps them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from colbert import Searcher
from colbert.data.collection import Collection
from colbert.indexing.collection_indexer import CollectionIndexer
from colbert.indexing.index_saver import IndexSaver
from colbert.infra import ColBERTConfig, Run, RunConfig
from colbert.modeling.colbert import ColBERT
from colbert.search.index_storage import IndexScorer


class Given:
    """Stands where colbert-ai's encoder stands; the text of a passage is its number."""

    def __init__(self, vectors: list[torch.Tensor]) -> None:
        self.vectors = vectors

    def encode_passages(self, passages: list[str]):
        if not passages:
            return None, None
        chosen = [self.vectors[int(p)] for p in passages]
        return torch.cat(chosen), [len(v) for v in chosen]


class Indexer(CollectionIndexer):
    def __init__(self, config: ColBERTConfig, vectors: list[torch.Tensor]) -> None:
        self.verbose, self.config, self.rank, self.nranks, self.use_gpu = 1, config, 0, 1, False
        self.collection = Collection(data=[str(i) for i in range(len(vectors))])
        self.encoder, self.saver = Given(vectors), IndexSaver(config)


def searcher(folder: Path, **settings) -> Searcher:
    made = Searcher.__new__(Searcher)
    made.config = ColBERTConfig.from_existing(ColBERTConfig.load_from_index(str(folder)), ColBERTConfig(**settings))
    made.ranker = IndexScorer(str(folder), use_gpu=False)
    return made


def main(data: str, out: str) -> None:
    given = np.load(data)
    packed, lengths = torch.from_numpy(given["vectors"]), given["lengths"].tolist()
    root, folder = Path(out), Path(out) / "index"
    folder.mkdir()
    with Run().context(RunConfig(nranks=1, gpus=0, root=str(root), avoid_fork_if_possible=True)):
        config = ColBERTConfig(dim=packed.shape[1], nbits=int(given["nbits"]), index_path=str(folder), gpus=0)
        config.configure(kmeans_niters=4, query_maxlen=8)
        Indexer(config, list(packed.split(lengths))).run([[None]])
        ColBERT.try_load_torch_extensions(False)
        rankings = {}
        for k in given["ks"].tolist():
            fresh = searcher(folder)  # one that has served a k keeps its settings
            rankings[k] = [
                [list(map(float, part)) for part in fresh.dense_search(torch.from_numpy(q)[None], k=k)]
                for q in given["queries"]
            ]
    (root / "rankings.json").write_text(json.dumps(rankings))


if __name__ == "__main__":
    main(*sys.argv[1:])
