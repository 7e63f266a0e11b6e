"""Ret-XKnow: question-relevant cells of the image as query vectors (Ju et al. 2024, arXiv 2411.08334v1).

Q = normalize([global rows ; cell rows ; text rows]): a convolution over the patch grid, with the patches' relevance to
the question as one more channel, makes cells of four rows each. Documents are ColBERT's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from core.visual import VisualBatch
from models import colbert, visual
from models.fusion import QuerySampler


class Stage(colbert.Stage):
    """rows: which kinds form the query. Phase A trains on [global, cell]."""

    rows: list[Literal["global", "cell", "text"]] = Field(default=["global", "cell", "text"], min_length=1)


class Config(visual.Config):
    """``model`` section for ``name: ret_xknow``.

    kernel_size: of the convolution; 3 and 5 suit a 7 x 7 grid of patches, 4 one of 16 x 16.
    cells: which cells give rows.
      legacy  all while training, the most relevant one in validation and inference, as published
      all     all of them everywhere
      best    the most relevant one everywhere
    """

    name: Literal["ret_xknow"] = "ret_xknow"
    kernel_size: Literal[3, 4, 5] = 5
    cells: Literal["legacy", "all", "best"] = "legacy"
    train: Stage = Stage()
    valid: Stage | None = None
    eval: Stage = Stage()


class RetXKnow(visual.VisualColBERT):
    """``extras``: "relevance" of each patch [N, P], the maximum of its "similarity" to the text rows [N, P, L]; "cell",
    the most relevant one [N]."""

    Config = Config
    kinds = ("global", "cell")

    def make_head(self, config, text, vision, pixels) -> QuerySampler:
        patches = visual.patches_per_image(vision, pixels)
        return QuerySampler(
            vision.hidden_size, text.hidden_size, config.dim, config.num_tokens, config.kernel_size, patches
        )

    def fuse(self, features: VisualBatch, text: visual.Question):
        rows, relevance, cell, similarity = self.fusion.cell_rows(
            features.patches, text.states, text.mask, self.only_best(), self.config.mask_policy == "clean"
        )
        return {"global": self.fusion.global_rows(features.global_), "cell": rows}, {
            "relevance": relevance,
            "similarity": similarity,
            "cell": cell,
        }

    def only_best(self) -> bool:
        """Whether the present stage keeps the most relevant cell only."""
        return self.config.cells == "best" or (self.config.cells == "legacy" and self.stage != "train")

    def head_options(self) -> dict:
        return {"cells": "best" if self.only_best() else "all"}


def build(config: Config, root: str | Path | None = None) -> RetXKnow:
    """Build with pretrained towers. ``root``: folder in which relative tower names are looked up first."""
    return visual.build(RetXKnow, config, root)


Retriever = RetXKnow
