"""Ret-XKnow's own promises: kernels and their cells, the best cell, which cells a stage has, what relevance is."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from core.errors import UserError
from core.records import Query
from models import ret_xknow
from models.fusion import QuerySampler
from tests import tiny

CELLS = [(3, 7, 3), (3, 12, 5), (4, 16, 3), (4, 12, 2), (4, 8, 1), (5, 7, 2), (5, 16, 6)]
"""kernel, side of the patch grid, side of the cell grid."""


@pytest.fixture
def model(tmp_path):
    return tiny.retriever("ret_xknow", tmp_path / "towers")


def head(kernel: int, side: int, images: int = 2):
    """v 6, h 8, dim 4, T 3, every parameter moved; patches [images, side^2, 6], states [images, 5, 8]."""
    torch.manual_seed(0)
    made = QuerySampler(6, 8, 4, 3, kernel, side * side)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made, torch.randn(images, side * side, 6), torch.randn(images, 5, 8)


def all_and_best(made: QuerySampler, patches, states, mask=None):
    mask = torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else mask
    rows = [made.cell_rows(patches, states, mask, best, exclude_masked=False) for best in (False, True)]
    return rows[0][0].unflatten(1, (-1, 4)), rows[1][0], rows[0][1], rows[0][2]


def test_the_head_has_the_published_number_of_parameters():
    with torch.device("meta"):
        made = QuerySampler(768, 768, 128, 16, kernel=5, patches=49)
    assert sum(p.numel() for p in made.parameters()) == 34_386_688


@pytest.mark.parametrize(("kernel", "side", "cells"), CELLS)
def test_cells_while_training_and_the_best_one_of_them(kernel, side, cells):
    made, patches, states = head(kernel, side, images=6)
    everything, best, relevance, chosen = all_and_best(made, patches, states)
    assert everything.shape == (6, cells * cells, 4, 4) and best.shape == (6, 4, 4) and relevance.shape == (6, side**2)
    assert bool(((chosen >= 0) & (chosen < cells * cells)).all())
    # The convolution of one cell and of all of them may round differently.
    assert torch.allclose(best, everything[torch.arange(6), chosen], atol=1e-6)
    if cells > 1:
        assert len(set(chosen.tolist())) > 1 and not torch.allclose(best, everything[:, 0], atol=1e-3)
    everything.sum().backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for n, p in made.named_parameters() if "split" not in n
    )


@pytest.mark.parametrize(("kernel", "side", "cells"), CELLS)
def test_a_cell_is_judged_by_the_patches_that_its_convolution_sees(kernel, side, cells):
    """The gradient of a cell names its patches; the most relevant patch must lie in the cell chosen."""
    made, patches, states = head(kernel, side, images=1)
    torch.nn.init.zeros_(made.k_state.weight)  # no way around the convolution: relevance does not follow the patches
    for norm in [m for m in made.modules() if isinstance(m, torch.nn.LayerNorm) and len(m.normalized_shape) == 3]:
        norm.forward = lambda x: x  # nor through a norm over the whole grid
    patches.requires_grad_()
    everything, *_ = all_and_best(made, patches, states)
    fields = []
    for cell in range(cells * cells):
        (gradient,) = torch.autograd.grad(everything[0, cell].sum(), patches, retain_graph=True)
        fields.append(gradient[0].abs().sum(-1) > 0)
    assert len(fields) == cells * cells
    for patch in range(side * side):
        relevance = torch.zeros(1, side * side)
        relevance[0, patch] = 1.0
        seen_by = [cell for cell, field in enumerate(fields) if field[patch]]
        # Equal maxima: the first cell in row order. A patch that an even grid leaves over makes all cells equal.
        assert made.best_cell(relevance).item() == (seen_by[0] if seen_by else 0)


def test_of_equally_relevant_cells_the_first_in_row_order_wins():
    made, _, _ = head(5, 7)
    relevance = torch.zeros(4, 7, 7)
    relevance[1, 3, 3] = 1  # in all four windows
    relevance[2, 3, 6] = 1  # in both right ones
    relevance[3, 6, 3] = 1  # in both lower ones
    assert made.best_cell(relevance.flatten(1)).tolist() == [0, 0, 1, 2]
    assert made.best_cell(torch.full((1, 49), -0.5)).tolist() == [0]


def test_relevance_is_the_best_similarity_to_a_word():
    made, patches, states = head(3, 7)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    with torch.no_grad():
        keys = made.k_state(made.proj(patches))
        similarity = cosine_similarity(keys[:, :, None], states[:, None], dim=-1)  # [N, P, L]
        legacy = made.cell_rows(patches, states, mask, True, exclude_masked=False)[1]
        clean = made.cell_rows(patches, states, mask, True, exclude_masked=True)[1]
    assert torch.allclose(clean[0], similarity[0, :, :2].amax(-1), atol=1e-6)
    assert torch.allclose(legacy[0], similarity[0, :, :2].amax(-1).clamp(min=0), atol=1e-6)  # masked words count as 0
    assert torch.allclose(legacy[1], clean[1]) and torch.allclose(clean[1], similarity[1].amax(-1), atol=1e-6)
    assert (clean[0] < 0).any()  # the two policies had something to differ in


@pytest.mark.parametrize(("kernel", "patches", "told"), [
    (3, 4, "at least 3 x 3 patches, but the vision tower gives 2 x 2"),
    (4, 49, "at least 8 x 8 patches, but the vision tower gives 7 x 7"),
    (5, 16, "at least 5 x 5 patches, but the vision tower gives 4 x 4"),
    (5, 50, "at least 5 x 5 patches, but the vision tower gives 50 patches, which are no square"),
])  # fmt: skip
def test_a_grid_that_does_not_fit_is_named(kernel, patches, told):
    with pytest.raises(UserError, match=f"kernel_size {kernel} needs a square grid of {told}"):
        QuerySampler(6, 8, 4, 3, kernel, patches)


def test_the_grid_is_what_the_tower_gives_behind_its_preprocessing(tmp_path):
    section = tiny.model_section("ret_xknow", tmp_path / "towers", kernel_size=3)
    assert tiny.retriever("ret_xknow", tmp_path / "towers", kernel_size=3).fusion.conv[1].normalized_shape[1:] == (5, 5)
    pooled = tiny.retriever("ret_xknow", tmp_path / "towers", kernel_size=3, vision={**section["vision"], "grid": 7})
    assert pooled.fusion.conv[1].normalized_shape[1:] == (3, 3)
    with pytest.raises(UserError, match=r"gives 4 x 4 patches; set model\.vision\.grid"):
        tiny.retriever("ret_xknow", tmp_path / "towers", vision={**section["vision"], "grid": 4})


@pytest.mark.parametrize(("cells", "rows"), [
    ("legacy", {"train": 64, "valid": 4, "eval": 4}),
    ("all", {"train": 64, "valid": 64, "eval": 64}),
    ("best", {"train": 4, "valid": 4, "eval": 4}),
])  # fmt: skip
def test_which_cells_a_stage_has(tmp_path, model, cells, rows):
    model.config.cells = cells
    model.config.mask_policy = "train"  # the stages differ in nothing else
    query = [Query("q", "what is the climate", (tiny.image(tmp_path),))]
    out = {}
    with torch.no_grad():
        for stage, wanted in rows.items():
            model.stage = stage
            tokens = model.encode_queries(model.collate_queries(query), return_relevance=True)
            out[stage] = tokens.embeddings[:, tokens.rows.select("cell")]
            assert out[stage].shape[1] == wanted
            assert tokens.extras["relevance"].shape == (1, 144) and tokens.extras["cell"].shape == (1,)
    assert torch.equal(out["valid"], out["eval"])
    if cells != "legacy":
        assert torch.equal(out["train"], out["eval"])


def test_relevance_belongs_to_the_images_in_order(tmp_path, model):
    queries = tiny.queries(tmp_path)
    with torch.no_grad():
        tokens = model.encode_queries(model.collate_queries(queries), return_relevance=True)
        alone = model.encode_queries(model.collate_queries([queries[3]]), return_relevance=True)
    assert tokens.extras["relevance"].shape == (3, 144)  # three of four queries have an image
    assert torch.allclose(tokens.extras["relevance"][2], alone.extras["relevance"][0], atol=1e-6)
    assert tokens.extras["cell"][2] == alone.extras["cell"][0]


def test_an_index_of_images_names_the_cells_in_use(model):
    best = model.identity(images=True)
    model.config.cells = "all"
    now = model.identity(images=True)
    assert {k for k in best if best[k] != now[k]} == {"cells"} and model.identity()["retriever"] == "colbert"


def test_kernels_and_cells_are_under_the_contract():
    variants = [{"kernel_size": 5, "cells": "legacy", **changes} for changes in tiny.VARIANTS["ret_xknow"]]
    for key in ("kernel_size", "cells"):
        allowed = set(ret_xknow.Config.model_fields[key].annotation.__args__)
        assert {variant[key] for variant in variants} == allowed
