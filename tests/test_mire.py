"""MIRe's own promises: mask policies, the fusion head's size, images in queries and documents, what an index names."""

from __future__ import annotations

import pytest
import torch

from core.records import Document, Query
from models import mire
from models.fusion import QueryGuidedAttentivePooling
from models.visual import Question
from tests import tiny

POLICIES = ("legacy", "train", "clean")


@pytest.fixture
def model(tmp_path):
    return tiny.retriever("mire", tmp_path / "towers")


def head(residual: bool = False):
    """v 24, dim 16, T 3, H 2, and inputs [2 images, 9 patches], [2, 5 text rows] with random, not zero, biases."""
    torch.manual_seed(0)
    fusion = QueryGuidedAttentivePooling(24, 16, 3, 2, residual)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return fusion, torch.randn(2, 9, 24), torch.randn(2, 5, 16)


def kinds_of(tokens) -> list[set[str]]:
    return [{k for k, kept in zip(tokens.rows.kind, row) if kept} for row in tokens.mask.tolist()]


@pytest.mark.parametrize(("v", "count"), [(768, 14_704_512), (1024, 15_753_600), (1152, 16_278_144)])
def test_the_head_has_the_published_number_of_parameters(v, count):
    with torch.device("meta"):
        fusion = QueryGuidedAttentivePooling(v, 128, 16, 12)
    assert sum(p.numel() for p in fusion.parameters()) == count


def test_policies_agree_when_nothing_is_masked(tmp_path, model):
    """A question that fills query_maxlen has no padding, so the policies have nothing to differ in."""
    query = Query("q", "a of what which is in this country climate capital red green", (tiny.image(tmp_path),))
    short = Query("s", "red", query.images)
    rows = {}
    with torch.no_grad():
        for policy in POLICIES:
            model.config.mask_policy = policy
            batch = model.collate_queries([query])
            assert bool(batch["mask"].all()) and batch["mask"].shape[1] == 12
            rows[policy] = model.encode_queries(batch).embeddings
            rows[policy, "short"] = model.encode_queries(model.collate_queries([short])).embeddings[:, :5]
    assert torch.allclose(rows["legacy"], rows["clean"], atol=1e-6)
    assert torch.allclose(rows["legacy"], rows["train"], atol=1e-6)
    for a, b in [("legacy", "clean"), ("legacy", "train"), ("clean", "train")]:  # the test can fail
        assert not torch.allclose(rows[a, "short"], rows[b, "short"], atol=1e-4)


def test_legacy_adds_uniform_attention_of_masked_rows():
    """y_legacy = y_clean + ((L - n) / n) * mean_p U_p: a masked row attends uniformly and the divisor counts n rows."""
    fusion, patches, text = head()
    seen = []
    fusion.o_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    counts = torch.tensor([3, 1])
    mask = torch.arange(5)[None] < counts[:, None]
    text = text * mask.unsqueeze(-1)
    with torch.no_grad():
        for exclude in (False, True):
            fusion.pooled_rows(patches, text, mask, exclude_masked=exclude)
        values = fusion.v_state(fusion.proj(patches)).unflatten(-1, (2, 16)).transpose(1, 2)  # U [N, H, P, dim]
    legacy, clean = seen
    extra = ((5 - counts) / counts)[:, None, None] * values.mean(2)
    assert torch.allclose(legacy, clean + extra, atol=1e-5)
    assert extra.abs().max() > 0.1


def test_the_first_public_version_adds_text_to_the_rows():
    fusion, patches, text = head()
    first, _, _ = head(residual=True)
    first.load_state_dict(fusion.state_dict())
    mask = torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        plain, _ = fusion.pooled_rows(patches, text, mask, False)
        with_text, _ = first.pooled_rows(patches, text, mask, False)
    assert plain.shape == with_text.shape and not torch.allclose(plain, with_text, atol=1e-3)


def test_relevance_is_one_attention_map_per_image_and_head(tmp_path, model):
    batch = model.collate_queries(tiny.queries(tmp_path))
    with torch.no_grad():
        tokens = model.encode_queries(batch, return_relevance=True)
        attention = tokens.extras["relevance"]
        assert attention.shape == (3, 2, 12, 9)  # three of four queries have an image; H = 2, L = 12, P = 9
        assert torch.allclose(attention.sum(-1), torch.ones(3, 2, 12), atol=1e-5)
        assert "relevance" not in model.encode_queries(batch).extras


@pytest.mark.parametrize("policy", POLICIES)
def test_which_rows_a_query_has(tmp_path, model, policy):
    model.config.mask_policy = policy
    with torch.no_grad():
        kinds = kinds_of(model.encode_queries(model.collate_queries(tiny.queries(tmp_path))))
    everything = {"global", "pooled", "text"}
    assert kinds[0] == kinds[3] == everything and kinds[1] == {"text"}
    # As published, an empty text is still [CLS] [Q] [SEP]; the clean policy leaves it out.
    assert kinds[2] == ({"global", "pooled"} if policy == "clean" else everything)


def test_where_only_image_rows_are_asked_for_a_question_alone_keeps_its_text(tmp_path, model):
    model.config.eval.rows = ["global", "pooled"]
    with torch.no_grad():
        kinds = kinds_of(model.encode_queries(model.collate_queries(tiny.queries(tmp_path))))
    assert kinds == [{"global", "pooled"}, {"text"}, {"global", "pooled"}, {"global", "pooled"}]


def test_which_rows_a_document_has(tmp_path, model):
    documents = tiny.mixed_documents(tmp_path)
    with torch.no_grad():
        tokens = model.encode_documents(model.collate_documents(documents))
        bare = model.encode_documents(model.collate_documents([Document("empty", "")])).unpad()[0]
    assert kinds_of(tokens) == [{"text"}, {"global", "pooled"}, {"global", "pooled", "text"}, {"text"}]
    assert torch.allclose(tokens.unpad()[3], bare, atol=1e-6) and len(bare) == 3  # [CLS] [D] [SEP]


def test_noise_on_features_acts_in_training_only(tmp_path):
    quiet = tiny.retriever("mire", tmp_path / "towers")
    noisy = tiny.retriever("mire", tmp_path / "towers", visual_noise=0.5)
    noisy.load_state_dict(quiet.state_dict())
    images = quiet.collate_queries(tiny.queries(tmp_path)).images
    text = Question(torch.randn(3, 12, 32), torch.randn(3, 12, 16), torch.ones(3, 12, dtype=torch.bool))
    with torch.no_grad():
        expected = quiet.visual_rows(images, text)[0]["pooled"]
        assert torch.equal(noisy.visual_rows(images, text)[0]["pooled"], expected)
        noisy.train()
        assert not torch.allclose(noisy.visual_rows(images, text)[0]["pooled"], expected, atol=1e-3)
        quiet.train()
        assert torch.equal(quiet.visual_rows(images, text)[0]["pooled"], expected)


def test_every_policy_is_under_the_contract():
    assert set(mire.Config.model_fields["mask_policy"].annotation.__args__) == set(POLICIES)
    assert {v.get("mask_policy", "legacy") for v in tiny.VARIANTS["mire"]} == set(POLICIES)
