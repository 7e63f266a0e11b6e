"""An index that colbert-ai writes here and now, searched by its own code and by ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from index.colbert_ai import ColbertAIIndex
from index.colbert_ai_search import search
from tests.index_cases import ROOT, corpus, questions

DOCS = corpus(600, dim=64)
QUERIES = questions(DOCS, 12, 11).embeddings
KS = (10, 60, 150)


@pytest.fixture(scope="module", params=[2, 4])
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("colbert-ai")
    vectors, lengths = np.concatenate([v for _, v in DOCS]), [len(v) for _, v in DOCS]
    data = {"vectors": vectors, "lengths": lengths, "queries": QUERIES.numpy(), "nbits": request.param, "ks": KS}
    np.savez(folder / "data.npz", **data)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    driver = Path(__file__).parent / "colbert_ai_driver.py"
    done = subprocess.run(
        [sys.executable, str(driver), str(folder / "data.npz"), str(folder)],
        capture_output=True, text=True, env=environment, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return ColbertAIIndex(folder / "index"), json.loads((folder / "rankings.json").read_text())


def test_it_opens(case):
    assert len(case[0]) == 600 and case[0].doclens.tolist() == [len(v) for _, v in DOCS]
    wanted = torch.from_numpy(np.concatenate([v for _, v in DOCS[:50]]))
    cosines = (case[0].decompress(torch.arange(50)) * wanted).sum(1)
    assert cosines.mean() > 0.95


@pytest.mark.parametrize("k", KS)
def test_it_ranks_as_its_own_searcher(case, k):
    index, rankings = case
    assert index.config["query_maxlen"] == 8  # shorter than the queries, so candidates come from some rows only
    for query, (pids, _, scores) in zip(QUERIES, rankings[str(k)], strict=True):
        got, ours = search(index, query, k)
        np.testing.assert_allclose(ours, scores, atol=1e-4)
        assert got == [int(p) for p in pids]


def test_its_models_do_not_load_but_ours_read_its_checkpoint():
    """Why the driver avoids its Indexer: HF_ColBERT never calls transformers' post_init."""
    from runs.common import open_retriever

    checkpoint = ROOT / "tests" / "golden" / "colbert" / "bert_d128_nbits2" / "checkpoint"
    code = (
        "import sys; from colbert.infra import ColBERTConfig; from colbert.modeling.checkpoint import Checkpoint\n"
        "Checkpoint(sys.argv[1], colbert_config=ColBERTConfig(checkpoint=sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(checkpoint)], capture_output=True, text=True)
    assert done.returncode == 1 and "'HF_ColBERT' object has no attribute 'all_tied_weights_keys'" in done.stderr
    assert open_retriever(checkpoint, "cpu").config.dim == 128
