"""What the tests of FLMR's own API share: a tiny released checkpoint, texts, questions, scores by definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compat.flmr import (
    FLMRModelForRetrieval,
)

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
HUB = GOLDEN / "preflmr" / "hub_layout" / "checkpoint"
M2KR = GOLDEN / "recall" / "m2kr_rows"
COLBERT = GOLDEN / "colbert" / "bert_d128_nbits2"
DIM, WIDTH, SIZE = 16, 32, 24  # of HUB: late interaction, vision tower, pixels
TEXTS = [
    "the bird eats fish.",
    "a river, cold and long",
    "the capital",
    "snow on the mountain; ice",
    "rice with cheese",
]
ASKED = {"a": "describe it: which bird is it", "b": "what is this: a river"}


@pytest.fixture
def model():
    return FLMRModelForRetrieval.from_pretrained(HUB)


@pytest.fixture
def where(tmp_path):
    return {"index_root_path": str(tmp_path / "indexes"), "index_experiment_name": "e", "index_name": "i"}


def picture(path: Path, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def processor(folder: Path) -> Path:
    """The image processor of the tiny checkpoint, as a folder."""
    raw = json.loads((M2KR / "preprocessor" / "preprocessor_config.json").read_text())
    raw |= {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text(json.dumps(raw))
    return folder


@torch.no_grad()
def asked(model, pixels: torch.Tensor | None = None) -> torch.Tensor:
    found = model.query(**model.query_tokenizer(list(ASKED.values())), pixel_values=pixels)
    return found.late_interaction_output


def brute_force(queries: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores [B, N] by definition."""
    similar = torch.einsum("bqd,nld->bnql", queries.double(), rows.double())
    return similar.masked_fill(~mask[None, :, None, :, 0], -9999).amax(-1).sum(-1)


def tokens(tokenizer, texts):
    return {k: v for k, v in tokenizer(texts).items() if k != "token_type_ids"}
