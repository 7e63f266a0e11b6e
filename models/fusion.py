"""MIRe's fusion-free head: visual query vectors that text steers but does not flow into (Ju et al. 2025, section 3)."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn


class QueryGuidedAttentivePooling(nn.Module):
    """Global rows from the CLS vector, and one pooled row per head from the patches.

    v: visual width; dim: late-interaction width; tokens T, heads H. ``residual`` is the first public version, which
    added the text vector to each attention output and the pooled vector after ``o_proj`` (same parameters).
    """

    def __init__(self, v: int, dim: int, tokens: int, heads: int, residual: bool = False) -> None:
        super().__init__()
        self.dim, self.tokens, self.heads, self.residual = dim, tokens, heads, residual
        inner = heads * dim
        self.proj = nn.Sequential(nn.LayerNorm(v), nn.Linear(v, 2 * inner), nn.GELU())
        self.k_state = nn.Linear(2 * inner, inner, bias=False)
        self.v_state = nn.Linear(2 * inner, inner, bias=False)
        self.o_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.split_mlp = nn.Sequential(
            nn.Linear(v, tokens * dim // 2),
            nn.Tanh(),
            nn.Linear(tokens * dim // 2, tokens * dim),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def global_rows(self, global_: Tensor) -> Tensor:
        """[N, v] -> [N, T, dim]."""
        return self.split_mlp(global_).view(-1, self.tokens, self.dim)

    def pooled_rows(self, patches: Tensor, text: Tensor, mask: Tensor, exclude_masked: bool) -> tuple[Tensor, Tensor]:
        """patches [N, P, v], text [N, L, dim] (projected, not normalised, masked rows zero), mask [N, L] bool.

        Returns rows [N, H, dim] and attention [N, H, L, P]. A masked text row attends uniformly. Published weights
        count such rows in the sum while the divisor counts unmasked rows only; ``exclude_masked`` leaves them out.
        """
        x = self.proj(patches)
        keys = self.k_state(x).unflatten(-1, (self.heads, self.dim)).transpose(1, 2)  # [N, H, P, dim]
        values = self.v_state(x).unflatten(-1, (self.heads, self.dim)).transpose(1, 2)
        logits = torch.einsum("nld,nhpd->nhlp", text, keys) / sqrt(self.dim)
        logits = logits.masked_fill(~mask[:, None, :, None], -9999.0)
        attention = logits.softmax(-1)
        counted = attention * mask[:, None, :, None] if exclude_masked else attention
        # Summing the attention before it meets the values gives the same rows without an [N, H, L, dim] tensor.
        count = mask.sum(1)[:, None, None] + 1e-15
        pooled = counted.sum(2, keepdim=True) @ values
        pooled = pooled.squeeze(2)
        if self.residual:
            pooled = pooled + text.sum(1, keepdim=True)
        pooled = pooled / count
        rows = self.o_proj(pooled)
        return (rows + pooled if self.residual else rows), attention
