"""All of them in one process, in either order, and the versions that requirements-interop.txt promises."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys

import pytest

from tests.index_cases import ROOT

THEIRS = [
    "pylate.models",
    "pylate.indexes",
    "fast_plaid.search",
    "colbert",
    "colbert.indexing.codecs.residual",
    "faiss",
]
OURS = [
    "models.colbert",
    "models.mire",
    "index.plaid",
    "index.fast_plaid",
    "index.faiss_flat",
    "training",
    "evaluation",
]
WORK = """
import numpy, torch, faiss
flat = faiss.IndexFlatIP(8); flat.add(numpy.eye(8, dtype="float32"))
assert flat.search(numpy.eye(8, dtype="float32"), 1)[1].ravel().tolist() == list(range(8))
assert (torch.rand(300, 300) @ torch.rand(300, 300)).isfinite().all()
from runs.common import open_retriever
from core.records import Document
model = open_retriever("tests/golden/colbert/bert_d128_nbits2/checkpoint", "cpu")
batch = model.encode_documents(model.collate_documents([Document("1", "a passage")]))
assert batch.dim == 128 and batch.embeddings.isfinite().all()
print("done")
"""


@pytest.mark.parametrize("order", [[*THEIRS, *OURS], [*OURS, *THEIRS]], ids=["theirs first", "ours first"])
def test_one_process(order):
    code = "\n".join(f"import {name}" for name in order) + WORK
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]


def test_versions_are_the_promised_ones():
    text = (ROOT / "requirements-interop.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.M))
    assert {"torch", "transformers", "pylate", "fast-plaid", "colbert-ai"} == set(pinned)
    found = {name: importlib.metadata.version(name).split("+")[0] for name in pinned}
    assert found == pinned
