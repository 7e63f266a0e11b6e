"""The heads: modules that turn an image's global vector and patches, and the question, into query vectors.

v: visual width; h: width of the text trunk; dim: late-interaction width; T: global rows; N images of P patches.
"""

from __future__ import annotations

from math import isqrt, sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, normalize

from core.errors import UserError
from models.mapping import MappingLayer


def global_mlp(v: int, dim: int, tokens: int) -> nn.Sequential:
    """[N, v] -> [N, T * dim]."""
    half = tokens * dim // 2
    return nn.Sequential(nn.Linear(v, half), nn.Tanh(), nn.Linear(half, tokens * dim))


def start_linears(head: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, as published."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class QueryGuidedAttentivePooling(nn.Module):
    """MIRe's fusion-free head (Ju et al. 2025, section 3): text steers the rows but does not flow into them.

    Global rows from the CLS vector, and one pooled row per head from the patches. ``residual`` is the first public
    version, which added the text vector to each attention output and the pooled vector after ``o_proj`` (same
    parameters).
    """

    def __init__(self, v: int, dim: int, tokens: int, heads: int, residual: bool = False) -> None:
        super().__init__()
        self.dim, self.tokens, self.heads, self.residual = dim, tokens, heads, residual
        inner = heads * dim
        self.proj = nn.Sequential(nn.LayerNorm(v), nn.Linear(v, 2 * inner), nn.GELU())
        self.k_state = nn.Linear(2 * inner, inner, bias=False)
        self.v_state = nn.Linear(2 * inner, inner, bias=False)
        self.o_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.split_mlp = global_mlp(v, dim, tokens)
        start_linears(self)

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
        logits = torch.einsum("nld,nhpd->nhlp", text, keys) / sqrt(self.dim)
        logits = logits.masked_fill(~mask[:, None, :, None], -9999.0)
        attention = logits.softmax(-1)
        counted = attention * mask[:, None, :, None] if exclude_masked else attention
        # Sums are linear: attention summed over the text rows before it meets the patches, and patches summed before
        # the value projection, give the same rows without an [N, H, L, dim] tensor and with one projection for P.
        count = mask.sum(1)[:, None, None] + 1e-15
        pooled = torch.einsum("nhk,hdk->nhd", counted.sum(2) @ x, self.v_state.weight.unflatten(0, (self.heads, -1)))
        if self.residual:
            pooled = pooled + text.sum(1, keepdim=True)
        pooled = pooled / count
        rows = self.o_proj(pooled)
        return (rows + pooled if self.residual else rows), attention


class QuerySampler(nn.Module):
    """Ret-XKnow's head (Ju et al. 2024): a convolution over the patch grid and a channel that says how relevant each
    patch is to the question, so that its cells, four rows each, lean towards what was asked.

    kernel 3 and 5 are one convolution with stride 2. Kernel 4 is two (4, then 3) with the relevance map resized in
    between. The layer norms of 3 and 4 have the shape of the grid, so the head belongs to one number of patches.
    """

    KERNELS = {3: (3,), 4: (4, 3), 5: (5,)}
    STRIDE = 2
    ROWS = 4
    """Rows per cell."""

    def __init__(self, v: int, h: int, dim: int, tokens: int, kernel: int, patches: int) -> None:
        super().__init__()
        self.dim, self.tokens, self.kernel = dim, tokens, kernel
        first, *second = self._sides(patches)
        self.proj = nn.Sequential(nn.LayerNorm(v), nn.Linear(v, h), nn.GELU())
        self.k_state = nn.Linear(h, h, bias=False)

        def conv(width: int, size: int, side: int, activation: nn.Module) -> nn.Sequential:
            layers = [nn.Conv2d(width + 1, 2 * h, size, stride=self.STRIDE), nn.LayerNorm([2 * h, side, side])]
            return nn.Sequential(*layers[: 1 if kernel == 5 else 2], activation)

        if second:
            self.conv1 = conv(h, 4, first, nn.GELU())
            self.conv2 = conv(2 * h, 3, second[0], nn.Tanh())
        else:
            self.conv = conv(h, kernel, first, nn.Tanh())
        self.linear = nn.Linear(2 * h, self.ROWS * dim)
        self.split_mlp = global_mlp(v, dim, tokens)
        start_linears(self)

    def _sides(self, patches: int) -> list[int]:
        """Side of the grid behind each convolution."""
        side, sizes = isqrt(patches), self.KERNELS[self.kernel]
        sides = [side]
        for size in sizes:
            sides.append((sides[-1] - size) // self.STRIDE + 1)
        if side * side != patches or min(sides) < 1:
            least = {3: 3, 4: 8, 5: 5}[self.kernel]
            grid = f"{side} x {side} patches" if side * side == patches else f"{patches} patches, which are no square"
            raise UserError(
                f"model.kernel_size {self.kernel} needs a square grid of at least {least} x {least} patches, but the "
                f"vision tower gives {grid}; set model.vision.grid to a fitting side such as 7 (kernel 3 and 5) or "
                "16 (kernel 4), or choose another kernel."
            )
        return sides[1:]

    def global_rows(self, global_: Tensor) -> Tensor:
        """[N, v] -> [N, T, dim]."""
        return self.split_mlp(global_).view(-1, self.tokens, self.dim)

    def cell_rows(
        self, patches: Tensor, states: Tensor, mask: Tensor, best: bool, exclude_masked: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """patches [N, P, v], trunk states [N, L, h], mask [N, L] bool -> rows, relevance [N, P], best cell [N], and the
        similarity of patches and text rows [N, P, L] whose maxima the relevance is.

        Rows are [N, 4 C, dim] of all C cells in row order, or [N, 4, dim] of the ``best``. A masked text row counts as
        relevance 0 in published weights; ``exclude_masked`` leaves it out.
        """
        x = self.proj(patches)
        similarity = normalize(self.k_state(x), dim=-1) @ normalize(states.to(x.dtype), dim=-1).transpose(1, 2)
        seen = mask[:, None]
        similarity = similarity.masked_fill(~seen, -1.0) if exclude_masked else similarity * seen
        relevance = similarity.amax(-1)
        side = isqrt(patches.shape[1])
        grid = x.transpose(1, 2).unflatten(2, (side, side))
        cells = self._convolved(grid, relevance.view(-1, 1, side, side)).flatten(2).transpose(1, 2)
        chosen = self.best_cell(relevance)
        if best:
            cells = cells[torch.arange(len(cells), device=cells.device), chosen][:, None]
        return self.linear(cells).view(len(cells), -1, self.dim), relevance, chosen, similarity

    def _convolved(self, grid: Tensor, relevance: Tensor) -> Tensor:
        """[N, h, side, side] and [N, 1, side, side] -> cells [N, 2 h, s, s]."""
        first = torch.cat([grid, relevance], 1)
        if self.kernel != 4:
            return self.conv(first)
        middle = self.conv1(first)
        resized = interpolate(relevance, middle.shape[2:], mode="bilinear", align_corners=True)
        return self.conv2(torch.cat([middle, resized], 1))

    def best_cell(self, relevance: Tensor) -> Tensor:
        """[N, P] -> [N]: the cell that sees the most relevant patch; of equal ones the first in row order.

        The map is pooled through the same windows as the convolutions, one after the other, so that it has exactly
        their cells. (Windows overlap: a patch often lies in several cells, and ties are common.)
        """
        side = isqrt(relevance.shape[1])
        pooled = relevance.view(-1, 1, side, side)
        for size in self.KERNELS[self.kernel]:
            pooled = max_pool2d(pooled, size, self.STRIDE)
        return pooled.flatten(1).argmax(1)

    def window(self, cell: int, patches: int) -> list[int]:
        """The patches that a cell sees, of so many in reading order."""
        side, field, step = isqrt(patches), 1, 1
        for size in self.KERNELS[self.kernel]:
            field, step = field + (size - 1) * step, step * self.STRIDE
        cells = (side - field) // step + 1
        top, left = cell // cells * step, cell % cells * step
        return [(top + y) * side + left + x for y in range(field) for x in range(field)]


class MappedPatches(nn.Module):
    """The PreFLMR baseline's head: every patch becomes a row, after a BERT layer in which it reads the question.

    Text values flow into the visual rows here, which is what MIRe does without.
    """

    TEXT_ROWS = 32
    """The layer reads the first rows of the question only."""

    def __init__(self, v: int, h: int, dim: int, tokens: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dim, self.tokens, self.heads, self.width = dim, tokens, heads, width
        self.context_vis_proj = nn.ModuleDict({"model": global_mlp(v, dim, tokens)})
        self.transformer_mapping_input_linear = nn.Linear(v, h)
        self.transformer_mapping_output_linear = nn.Linear(h, dim)
        start_linears(self)
        self.transformer_mapping_network = nn.ModuleDict(
            {"layer": nn.ModuleList([MappingLayer(h, heads, width, dropout)])}
        )

    def global_rows(self, global_: Tensor) -> Tensor:
        """[N, v] -> [N, T, dim]."""
        return self.context_vis_proj["model"](global_).view(-1, self.tokens, self.dim)

    def mapped_rows(self, patches: Tensor, states: Tensor, mask: Tensor, exclude_masked: bool) -> Tensor:
        """patches [N, P, v], trunk states [N, L, h], mask [N, L] bool -> rows [N, P, dim].

        Published weights read masked text rows like any other; ``exclude_masked`` leaves them out.
        """
        rows = self.transformer_mapping_input_linear(patches)
        text, seen = states[:, : self.TEXT_ROWS].to(rows.dtype), mask[:, : self.TEXT_ROWS]
        for layer in self.transformer_mapping_network["layer"]:
            rows = layer(rows, text, seen if exclude_masked else None)
        return self.transformer_mapping_output_linear(rows)
