"""What the tests of FLMR share: tiny released folders, a variant, a comparison by vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests import tiny

GOLDEN = Path(__file__).parent / "golden"
HUB = GOLDEN / "preflmr" / "hub_layout" / "checkpoint"
SHARDED = GOLDEN / "preflmr" / "sharded_and_name_variants" / "checkpoint"
FOLDERS = [HUB, SHARDED, *(GOLDEN / "flmr" / n / "checkpoint" for n in ("rois_shared_encoders", "colbert_text_only"))]


@pytest.fixture
def folder(tmp_path):
    """A released PreFLMR folder that a test may spoil."""
    return shutil.copytree(HUB, tmp_path / "released")


def variant(tmp_path, **changes):
    return tiny.retriever("flmr", tmp_path / "towers", **{"variant": "preflmr", **changes})


def same_vectors(a, b, tmp_path) -> bool:
    with torch.no_grad():
        pairs = [
            [m.encode_queries(m.collate_queries(tiny.queries(tmp_path))) for m in (a, b)],
            [m.encode_documents(m.collate_documents(tiny.documents())) for m in (a, b)],
        ]
    return all(torch.equal(x.embeddings, y.embeddings) and torch.equal(x.mask, y.mask) for x, y in pairs)
