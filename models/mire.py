"""MIRe: fusion-free modality interaction for multimodal query retrieval (Ju et al., ACL 2025).

Q = normalize([global rows ; pooled rows ; text rows]): the image becomes T + H extra query vectors; the text steers
where the pooled rows look, and no text value is mixed into them. Documents are ColBERT's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from core.visual import VisualBatch
from models import colbert, visual
from models.fusion import QueryGuidedAttentivePooling

TEMPERATURES = {"pretrain": 0.3, "train": 0.8, "eval": 1.0}
"""The published temperatures: phase A, phase B, inference."""


class Stage(colbert.Stage):
    """rows: which kinds form the query. Phase A trains on [global, pooled]."""

    rows: list[Literal["global", "pooled", "text"]] = Field(default=["global", "pooled", "text"], min_length=1)


class Config(visual.Config):
    """``model`` section for ``name: mire``.

    num_tokens T, num_heads H: global and pooled rows per image. residual: the first public version's pooling.
    """

    name: Literal["mire"] = "mire"
    num_heads: int = Field(12, ge=1)
    residual: bool = False
    train: Stage = Stage()
    valid: Stage | None = None
    eval: Stage = Stage()


class MIRe(visual.VisualColBERT):
    """The fusion-free head. ``extras["relevance"]``: attention [N, H, L, P]."""

    Config = Config
    kinds = ("global", "pooled")

    def make_head(self, config, text, vision, pixels) -> QueryGuidedAttentivePooling:
        return QueryGuidedAttentivePooling(
            vision.hidden_size, config.dim, config.num_tokens, config.num_heads, config.residual
        )

    def fuse(self, features: VisualBatch, text: visual.Question):
        pooled, attention = self.fusion.pooled_rows(
            features.patches, text.rows, text.mask, exclude_masked=self.config.mask_policy == "clean"
        )
        return {"global": self.fusion.global_rows(features.global_), "pooled": pooled}, {"relevance": attention}

    def head_options(self) -> dict:
        return {"residual": self.config.residual}


def build(config: Config, root: str | Path | None = None) -> MIRe:
    """Build with pretrained towers. ``root``: folder in which relative tower names are looked up first."""
    return visual.build(MIRe, config, root)


Retriever = MIRe
