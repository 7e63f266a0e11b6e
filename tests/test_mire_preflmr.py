"""The PreFLMR baseline's own promises: what its mapping layer reads, and in which direction."""

from __future__ import annotations

import pytest
import torch

from core.errors import UserError
from models.fusion import MappedPatches
from tests import tiny


@pytest.fixture
def head():
    """v 6, h 8, dim 4, T 3, two heads, every parameter moved."""
    torch.manual_seed(0)
    made = MappedPatches(6, 8, 4, 3, heads=2, width=10, dropout=0.0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def mapped(head, patches, states, mask=None, clean=False):
    mask = torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else mask
    with torch.no_grad():
        return head.mapped_rows(patches, states, mask, exclude_masked=clean)


def test_patches_attend_to_each_other_in_both_directions(head):
    patches, states = torch.randn(1, 9, 6), torch.randn(1, 5, 8)
    rows = mapped(head, patches, states)
    order = torch.randperm(9)
    assert torch.allclose(mapped(head, patches[:, order], states), rows[:, order], atol=1e-5)
    for patch in (0, 8):  # the first row sees the last patch, and the last the first
        moved = patches.clone()
        moved[0, patch] += 1
        assert (mapped(head, moved, states) - rows).abs().amax(-1).min() > 1e-4


def test_only_the_first_32_text_rows_are_read(head):
    patches, states = torch.randn(2, 9, 6), torch.randn(2, 40, 8)
    rows = mapped(head, patches, states)
    beyond, within = states.clone(), states.clone()
    beyond[:, 32:] += 1
    within[:, 31] += 1
    assert torch.equal(mapped(head, patches, beyond), rows)
    assert not torch.allclose(mapped(head, patches, within), rows, atol=1e-4)


def test_masked_text_is_read_as_published_and_left_out_when_clean(head):
    patches, states = torch.randn(2, 9, 6), torch.randn(2, 40, 8)
    mask = torch.arange(40)[None] < torch.tensor([[4], [40]])
    assert torch.equal(mapped(head, patches, states, mask), mapped(head, patches, states))
    clean = mapped(head, patches, states, mask, clean=True)
    assert torch.allclose(clean[:1], mapped(head, patches[:1], states[:1, :4]), atol=1e-6)
    assert torch.allclose(clean[1], mapped(head, patches, states)[1], atol=1e-6)
    assert not torch.allclose(clean[0], mapped(head, patches, states)[0], atol=1e-3)


def test_the_mapping_layer_takes_the_text_towers_shape_unless_told(tmp_path):
    plain = tiny.retriever("mire_preflmr", tmp_path / "towers").fusion
    trunk = tiny.retriever("colbert", tmp_path / "towers").text.trunk.config
    assert (plain.heads, plain.width) == (trunk.num_attention_heads, trunk.intermediate_size)
    told = tiny.retriever("mire_preflmr", tmp_path / "towers", mapping={"heads": 8, "width": 20}).fusion
    layer = told.transformer_mapping_network["layer"][0]
    assert layer.crossattention.heads == 8 and layer.intermediate["dense"].out_features == 20
    with pytest.raises(UserError, match=r"model\.mapping\.heads is 5, which does not divide .* 32"):
        tiny.retriever("mire_preflmr", tmp_path / "towers", mapping={"heads": 5})


def test_dropout_acts_in_training_only(tmp_path):
    model = tiny.retriever("mire_preflmr", tmp_path / "towers", mapping={"dropout": 0.5}, frozen=["vision", "text"])
    batch = model.collate_queries(tiny.queries(tmp_path))
    with torch.no_grad():
        first = model.encode_queries(batch).embeddings
        assert torch.equal(model.encode_queries(batch).embeddings, first)
        model.train()
        assert not torch.allclose(model.encode_queries(batch).embeddings, first, atol=1e-3)


def test_rows_and_nothing_to_show(tmp_path):
    model = tiny.retriever("mire_preflmr", tmp_path / "towers")
    with torch.no_grad():
        tokens = model.encode_queries(model.collate_queries(tiny.queries(tmp_path)), return_relevance=True)
    assert [tokens.rows.kind.count(k) for k in ("global", "mapped", "text")] == [3, 9, 12]
    assert tokens.extras == {}
