"""What mire_plus adds to MIRe: weights of kinds of rows, a layout for the global rows, register rows."""

from __future__ import annotations

import pytest
import torch

from core.errors import UserError
from models.mire_plus import KINDS, Layout, Registers, Weighting
from tests import tiny


def test_with_everything_off_it_is_mire(tmp_path):
    plain, plus = (tiny.retriever(name, tmp_path / "towers", mask_policy="clean") for name in ("mire", "mire_plus"))
    assert plain.fusion.state_dict().keys() == plus.fusion.state_dict().keys()
    plus.load_state_dict(plain.state_dict())
    asked = tiny.queries(tmp_path)
    with torch.no_grad():
        a, b = (m.encode_queries(m.collate_queries(asked)) for m in (plain, plus))
    assert torch.equal(a.embeddings, b.embeddings) and a.rows.kind == b.rows.kind


def test_weights_average_to_one_over_the_rows_that_count():
    rows, kinds = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=-1), torch.tensor([0, 0, 1, 3, 3])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]).bool()
    weighting = Weighting(8, question=False)
    assert torch.equal(weighting(rows, mask, kinds), mask.float())  # untrained: all alike
    with torch.no_grad():
        weighting.log_weights[KINDS.index("text")] = 2.0
        weights = weighting(rows, mask, kinds)
    assert torch.allclose(weights.sum(1), mask.sum(1).float())
    assert weights[0, 3] / weights[0, 0] == pytest.approx(2.718281828**2, rel=1e-5)
    assert weights[1].tolist() == pytest.approx([0, 0, 0, 1, 1])  # text alone weighs what it always did


def test_the_question_moves_the_weights():
    weighting = Weighting(4, question=True)
    with torch.no_grad():
        weighting.question.weight[KINDS.index("global"), 0] = 1.0
    kinds, mask = torch.tensor([0, 3]), torch.ones(2, 2, dtype=torch.bool)
    rows = torch.tensor([[[0.0, 1, 0, 0], [1.0, 0, 0, 0]], [[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]])
    about, against = weighting(rows, mask, kinds)[:, 0].tolist()
    assert about > 1 > against  # only the text row speaks: the visual one is the same direction in the second item


def test_the_layout_knows_where_a_patch_is():
    torch.manual_seed(0)
    layout = Layout(v=6, dim=4, tokens=2, side=2)
    global_, patches = torch.randn(1, 6), torch.randn(1, 16, 6)
    turned = patches.flip(1)  # the same patches elsewhere
    assert layout(global_, patches).shape == (1, 2, 4)
    assert not torch.allclose(layout(global_, patches), layout(global_, turned), atol=1e-4)
    with pytest.raises(UserError, match=r"model\.layout 2 needs a square grid"):
        layout(global_, patches[:, :15])


def test_registers_see_patches_and_text_but_no_masked_text():
    torch.manual_seed(0)
    registers = Registers(v=6, dim=8, count=3)
    patches, text, mask = torch.randn(1, 9, 6), torch.randn(1, 4, 8), torch.tensor([[True, True, True, False]])
    rows = registers(patches, text, mask)
    assert rows.shape == (1, 3, 8)
    for change, matters in ((3, False), (1, True)):
        other = text.clone()
        other[0, change] += 1
        assert torch.allclose(rows, registers(patches, other, mask), atol=1e-6) != matters
    assert not torch.allclose(rows, registers(patches + 1 + patches.flip(-1), text, mask), atol=1e-4)
