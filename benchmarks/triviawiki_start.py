"""The untrained late-interaction retriever that TriviaWiki's training starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import models
from core.device import autocast
from models.towers.tokenizer import ColbertTokenizer

PASSAGES = 512  # whose token states give the principal axes


def make_start(cfg, data, path: str | Path) -> Path:
    """Write ``run.init``: the tower, its token states projected on their principal axes (the mean stays in).

    Queries are not filled with [MASK]: the tower was never asked what these rows mean.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    section = cfg.model.model_copy(update={"fresh": ["linear"]})
    retriever = models.module("colbert").build(section).eval()
    own = retriever.tokenizer
    retriever.tokenizer = ColbertTokenizer(own.tokenizer, replace(own.conventions, expansion=False))
    documents = list(data.corpus())
    sample = documents[:: max(1, len(documents) // PASSAGES)][:PASSAGES]
    moment = torch.zeros(retriever.text.hidden_size, retriever.text.hidden_size, dtype=torch.float64)
    for start in range(0, len(sample), 16):
        batch = retriever.collate_documents(sample[start : start + 16])
        with torch.inference_mode(), autocast(torch.device("cpu"), cfg.train.precision):
            rows = retriever.states(batch)[batch["keep"]].double()
        moment += rows.T @ rows
    axes = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, : cfg.model.dim].T  # [dim, h], strongest first
    with torch.no_grad():
        retriever.text.linear.weight.copy_(axes * signs(axes))
    retriever.save_pretrained(path, {"made_by": "principal axes of the token states, untrained"})
    return path


def signs(axes: torch.Tensor) -> torch.Tensor:
    """[n, 1] factors that make each axis' largest entry positive: eigenvectors know no sign."""
    return axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
