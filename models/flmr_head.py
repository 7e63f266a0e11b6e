"""The part of FLMR that turns an image into query rows: an MLP on its global vector, and PreFLMR's mapping network.

v: visual width; h: width of the text trunk; dim: late-interaction width; T: rows per image; N images of P patches.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from core.config import Strict
from core.errors import UserError
from models.fusion import global_mlp
from models.mapping import EPS, MappingLayer

STD = 0.02
"""Standard deviation of new weights, as BERT's."""


class Mapping(Strict):
    """PreFLMR's mapping network: BERT layers in which every patch reads the question.

    heads, width (of the feed-forward): null takes the text tower's. text_rows: how many rows of the question are read,
    from the first on: instruction, [SEP] and [MASK] padding included, as published.
    """

    layers: int = Field(1, ge=1)
    heads: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    activation: str = "gelu"
    eps: float = Field(EPS, gt=0)
    text_rows: int = Field(32, ge=1)

    def resolved(self, trunk) -> Mapping:
        """With the text trunk's values where it leaves them open. trunk: its Hugging Face config."""
        heads, width = self.heads or trunk.num_attention_heads, self.width or trunk.intermediate_size
        return self.model_copy(update={"heads": heads, "width": width})


class ImageRows(nn.Module):
    """projection: [N, v] -> [N, T, dim]. mapping: patches and text states -> [N, P, dim], where there is one."""

    def __init__(
        self, v: int, text_config, dim: int, tokens: int, mapping: Mapping | None, separate_documents: bool
    ) -> None:
        """text_config: the text trunk's. separate_documents: documents' images have a projection of their own."""
        super().__init__()
        self.dim, self.tokens = dim, tokens
        self.projection = global_mlp(v, dim, tokens)
        self.document_projection = global_mlp(v, dim, tokens) if separate_documents else None
        self.options = mapping
        if mapping is not None:
            h, mapping = text_config.hidden_size, mapping.resolved(text_config)
            if h % mapping.heads:
                raise UserError(
                    f"model.mapping.heads is {mapping.heads}, which does not divide the text tower's width {h}; "
                    "give a number that does."
                )
            layer = (h, mapping.heads, mapping.width, mapping.dropout)
            self.mapping_input = nn.Linear(v, h)
            self.mapping = nn.ModuleDict(
                {
                    "layer": nn.ModuleList(
                        [MappingLayer(*layer, mapping.activation, mapping.eps) for _ in range(mapping.layers)]
                    )
                }
            )
            self.mapping_output = nn.Linear(h, dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=STD)
                nn.init.zeros_(module.bias)

    def global_rows(self, global_: Tensor) -> Tensor:
        """[N, v] -> [N, T, dim]: rows of a query's images."""
        return self._rows(self.projection, global_)

    def document_rows(self, global_: Tensor) -> Tensor:
        """[N, v] -> [N, T, dim]: rows of a document's images; the mapping network is for questions."""
        return self._rows(self.projection if self.document_projection is None else self.document_projection, global_)

    def _rows(self, projection: nn.Sequential, global_: Tensor) -> Tensor:
        return projection(global_.to(projection[0].weight.dtype)).view(-1, self.tokens, self.dim)

    def mapped_rows(self, patches: Tensor, states: Tensor, seen: Tensor | None = None) -> Tensor:
        """patches [N, P, v], trunk states of the questions [N, L, h] -> [N, P, dim].

        Patches see each other in both directions, and of the first ``text_rows`` states those that are ``seen``
        ([N, L] bool; None: all).
        """
        rows = self.mapping_input(patches.to(self.mapping_input.weight.dtype))
        first = slice(self.options.text_rows)
        text, seen = states[:, first].to(rows.dtype), None if seen is None else seen[:, first]
        for layer in self.mapping["layer"]:
            rows = layer(rows, text, seen)
        return self.mapping_output(rows)
