"""The PreFLMR baseline of the MIRe and Ret-XKnow repositories: their own, smaller re-implementation.

Q = normalize([global rows ; mapped rows ; text rows]): every patch becomes a row, after one transformer layer in which
it reads the question. Documents are ColBERT's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from core.config import Strict
from core.errors import UserError
from core.visual import VisualBatch
from models import colbert, visual
from models.fusion import MappedPatches


class Stage(colbert.Stage):
    """rows: which kinds form the query. Phase A trains on [global, mapped]."""

    rows: list[Literal["global", "mapped", "text"]] = Field(default=["global", "mapped", "text"], min_length=1)


class Mapping(Strict):
    """The mapping layer, a BERT layer. heads, width (of its feed-forward): null takes the text tower's."""

    heads: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    def resolved(self, trunk) -> Mapping:
        """With the text trunk's values where it leaves them open. trunk: its Hugging Face config."""
        heads, width = self.heads or trunk.num_attention_heads, self.width or trunk.intermediate_size
        return self.model_copy(update={"heads": heads, "width": width})


class Config(visual.Config):
    """``model`` section for ``name: mire_preflmr``."""

    name: Literal["mire_preflmr"] = "mire_preflmr"
    num_tokens: int = Field(32, ge=1)
    mapping: Mapping = Mapping()
    train: Stage = Stage()
    valid: Stage | None = None
    eval: Stage = Stage()


class MirePreFLMR(visual.VisualColBERT):
    """Shows no relevance: its attention mixes patches before the question is read."""

    Config = Config
    kinds = ("global", "mapped")

    def make_head(self, config, text, vision, pixels) -> MappedPatches:
        mapping = config.mapping.resolved(text.trunk.config)
        if text.hidden_size % mapping.heads:
            raise UserError(
                f"model.mapping.heads is {mapping.heads}, which does not divide the text tower's width "
                f"{text.hidden_size}; give a number that does."
            )
        shape = (vision.hidden_size, text.hidden_size, config.dim, config.num_tokens)
        return MappedPatches(*shape, mapping.heads, mapping.width, mapping.dropout)

    def resolved(self, config: Config) -> Config:
        return config.model_copy(update={"mapping": config.mapping.resolved(self.text.trunk.config)})

    def fuse(self, features: VisualBatch, text: visual.Question):
        mapped = self.fusion.mapped_rows(
            features.patches, text.states, text.mask, exclude_masked=self.config.mask_policy == "clean"
        )
        return {"global": self.fusion.global_rows(features.global_), "mapped": mapped}, {}

    def head_options(self) -> dict:
        return {"heads": self.fusion.heads}


def build(config: Config, root: str | Path | None = None) -> MirePreFLMR:
    """Build with pretrained towers. ``root``: folder in which relative tower names are looked up first."""
    return visual.build(MirePreFLMR, config, root)


Retriever = MirePreFLMR
