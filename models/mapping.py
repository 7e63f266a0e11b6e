"""One BERT layer that reads text across: patches attend to each other in both directions, then to text states.

The parameters carry the names of a ``BertLayer`` with cross-attention, as the released checkpoints do. It is written
out here because the published one ran with no self-attention mask at all, which libraries may turn into a causal one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

EPS = 1e-12
"""BERT's layer norm."""


class Attention(nn.Module):
    """Multi-head attention of rows x [N, P, h] over a context [N, L, h], with BERT's residual and layer norm."""

    def __init__(self, h: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.add_module("self", nn.ModuleDict({name: nn.Linear(h, h) for name in ("query", "key", "value")}))
        self.output = _output(h, h)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [N, L] bool: context rows that are seen; None: all."""
        linear = self._modules["self"]
        query, key, value = (
            linear[name](rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name, rows in (("query", x), ("key", context), ("value", context))
        )
        seen = None if mask is None else mask[:, None, None]
        dropout = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
        return _add(self, mixed.transpose(1, 2).flatten(2), x)


class MappingLayer(nn.Module):
    """rows [N, P, h], text [N, L, h] -> [N, P, h]. width, activation: the feed-forward's. eps: the layer norms'."""

    def __init__(
        self, h: int, heads: int, width: int, dropout: float, activation: str = "gelu", eps: float = EPS
    ) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        self.dropout, self.activation = dropout, ACT2FN[activation]
        self.attention = Attention(h, heads, dropout)
        self.crossattention = Attention(h, heads, dropout)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(h, width)})
        self.output = _output(width, h)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # BERT's start
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.eps = eps

    def forward(self, rows: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = self.crossattention(self.attention(rows, rows), text, mask)
        return _add(self, self.activation(self.intermediate["dense"](rows)), rows)


def _output(width: int, h: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(width, h), "LayerNorm": nn.LayerNorm(h, eps=EPS)})


def _add(layer: Attention | MappingLayer, update: Tensor, rows: Tensor) -> Tensor:
    """BERT's output block: project, drop, add, normalise."""
    update = torch.dropout(layer.output["dense"](update), layer.dropout, layer.training)
    return layer.output["LayerNorm"](update + rows)
