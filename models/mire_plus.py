"""MIRe with what was tried to better it (docs/fusions.md says what helped). With everything off it is MIRe.

MaxSim adds up what each query row finds, so MIRe's image weighs as much as it has rows, whatever is asked. And its
pooled rows forget where in the image a patch was. The options below change one of these each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from core.batch import Batch
from core.errors import UserError
from core.tokens import TokenBatch
from models import colbert, mire, visual
from models.fusion import QueryGuidedAttentivePooling, global_mlp, start_linears

KINDS = ("global", "pooled", "register", "text")


class Stage(colbert.Stage):
    """rows: which kinds form the query. "register" exists with ``registers`` only."""

    rows: list[Literal["global", "pooled", "register", "text"]] = Field(default=[*KINDS], min_length=1)


class Config(mire.Config):
    """``model`` section for ``name: mire_plus``.

    weighting: learned weights of query rows, one per kind; "kind" the same for every query, "question" moved by the
    question. Weights of a query average to 1, so that no score scale is learned along; its rows are no unit vectors.
    layout: side of a coarse grid of patches that the global rows see beside the global vector, each cell in its place.
    registers: rows from learned queries that attend to patches and text together (text flows into these).
    """

    name: Literal["mire_plus"] = "mire_plus"  # type: ignore[assignment]
    weighting: Literal["none", "kind", "question"] = "none"
    layout: int | None = Field(None, ge=2)
    registers: int = Field(0, ge=0)
    train: Stage = Stage()  # type: ignore[assignment]
    valid: Stage | None = None  # type: ignore[assignment]
    eval: Stage = Stage()  # type: ignore[assignment]


class Registers(nn.Module):
    """R learned queries, one layer of cross-attention to patches and text rows."""

    def __init__(self, v: int, dim: int, count: int, heads: int = 4) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, dim) * dim**-0.5)
        self.patches = nn.Sequential(nn.LayerNorm(v), nn.Linear(v, dim), nn.GELU())
        self.text = nn.Linear(dim, dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        start_linears(self)

    def forward(self, patches: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """patches [N, P, v], text [N, L, dim], mask [N, L] bool -> [N, R, dim]. Masked text is not attended."""
        memory = torch.cat([self.patches(patches), self.text(text)], 1)
        ignored = torch.cat([mask.new_zeros(patches.shape[:2]), ~mask], 1)
        queries = self.queries.expand(len(patches), -1, -1)
        found, _ = self.attention(queries, memory, memory, key_padding_mask=ignored, need_weights=False)
        return self.out(queries + found)


class Layout(nn.Module):
    """Global rows that also know a coarse grid of patches, cell by cell."""

    def __init__(self, v: int, dim: int, tokens: int, side: int) -> None:
        super().__init__()
        self.side, self.tokens, self.dim = side, tokens, dim
        self.cells = nn.Sequential(nn.LayerNorm(v), nn.Linear(v, dim), nn.GELU())
        self.mlp = global_mlp(v + side * side * dim, dim, tokens)
        start_linears(self)

    def forward(self, global_: Tensor, patches: Tensor) -> Tensor:
        """[N, v], [N, P, v] of a square grid -> [N, T, dim]."""
        side = round(patches.shape[1] ** 0.5)
        if side * side != patches.shape[1] or side < self.side:
            raise UserError(
                f"model.layout {self.side} needs a square grid of at least {self.side} x {self.side} patches, the "
                f"vision tower gives {patches.shape[1]}; lower it, or set model.vision.grid."
            )
        grid = patches.transpose(1, 2).unflatten(2, (side, side))
        cells = self.cells(adaptive_avg_pool2d(grid, self.side).flatten(2).transpose(1, 2))
        return self.mlp(torch.cat([global_, cells.flatten(1)], -1)).view(-1, self.tokens, self.dim)


class Weighting(nn.Module):
    """A weight for each kind of row; zero parameters weigh all rows alike."""

    def __init__(self, dim: int, question: bool) -> None:
        super().__init__()
        self.log_weights = nn.Parameter(torch.zeros(len(KINDS)))
        self.question = nn.Linear(dim, len(KINDS), bias=False) if question else None
        if self.question is not None:
            nn.init.zeros_(self.question.weight)

    def forward(self, rows: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        """Unit rows [B, T, dim], mask [B, T], kind of each row [T] int64 -> weights [B, T], averaging 1 where unmasked.

        What the question says is the direction of its rows' sum.
        """
        logits = self.log_weights.expand(len(rows), -1)
        if self.question is not None:
            text = rows * (kinds == KINDS.index("text"))[:, None]
            logits = logits + self.question(normalize(text.sum(1), dim=-1))
        weights = logits[:, kinds].exp() * mask
        return weights * mask.sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1e-6)


class Head(QueryGuidedAttentivePooling):
    """MIRe's head and the parts that the config adds."""

    def __init__(self, config: Config, v: int) -> None:
        super().__init__(v, config.dim, config.num_tokens, config.num_heads, config.residual)
        self.layout = self.registers = self.weighting = None
        if config.layout is not None:
            self.layout = Layout(v, config.dim, config.num_tokens, config.layout)
            del self.split_mlp
        if config.registers:
            self.registers = Registers(v, config.dim, config.registers)
        if config.weighting != "none":
            self.weighting = Weighting(config.dim, config.weighting == "question")


class MIRePlus(mire.MIRe):
    """``extras["relevance"]`` as MIRe's."""

    Config = Config

    @property
    def kinds(self) -> tuple[str, ...]:  # type: ignore[override]
        return KINDS[:3] if self.config.registers else KINDS[:2]

    def make_head(self, config, text, vision, pixels) -> Head:
        return Head(config, vision.hidden_size)

    def fuse(self, features: visual.VisualBatch, text: visual.Question):
        head = self.fusion
        pooled, attention = head.pooled_rows(
            features.patches, text.rows, text.mask, exclude_masked=self.config.mask_policy == "clean"
        )
        see = (
            head.global_rows(features.global_)
            if head.layout is None
            else head.layout(features.global_, features.patches)
        )
        rows = {"global": see, "pooled": pooled}
        if head.registers is not None:
            rows["register"] = head.registers(features.patches, text.rows, text.mask)
        return rows, {"relevance": attention}

    def encode_queries(self, batch: Batch, return_relevance: bool = False) -> TokenBatch:
        """As MIRe; with ``weighting`` rows have the length of their weight."""
        out = super().encode_queries(batch, return_relevance)
        if self.fusion.weighting is None:
            return out
        kinds = torch.tensor([KINDS.index(kind) for kind in out.rows.kind], device=out.embeddings.device)
        weights = self.fusion.weighting(out.embeddings, out.mask, kinds)
        return TokenBatch(out.embeddings * weights.unsqueeze(-1), out.mask, out.rows, out.extras)


def build(config: Config, root: str | Path | None = None) -> MIRePlus:
    """Build with pretrained towers. ``root``: folder in which relative tower names are looked up first."""
    return visual.build(MIRePlus, config, root)


Retriever = MIRePlus
