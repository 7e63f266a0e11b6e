"""FLMR and PreFLMR on what they are given: masks, images, the original's methods, bad calls."""

from __future__ import annotations

import pytest
import torch

from compat.flmr_model import FLMRModelForRetrieval
from core.errors import UserError
from core.records import Document, ImageRef, Query
from tests import tiny
from tests.flmr_cases import FOLDERS, HUB, variant

# ---- masks


def test_rows_of_the_instruction_are_zero(tmp_path, capsys):
    model = variant(tmp_path)
    asked = [
        Query("a", "what: is the climate", instruction="describe the image"),
        Query("b", "what is the climate", instruction="describe :"),
        Query("c", "describe the image: what is it"),
        Query("d", "what is it"),
        Query("e", "fish", instruction=" ".join(["river"] * 20)),
    ]
    with torch.no_grad():
        found = model.encode_queries(model.collate_queries(asked))
    # [CLS] and marker, then the instruction up to the separator
    assert [(~m).nonzero().flatten().tolist() for m in found.mask] == [[2, 3, 4, 5], [2, 3], [2, 3, 4, 5], [], []]
    assert bool((found.embeddings[~found.mask] == 0).all())
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "query 'd' has no instruction that ends in ':'" in told


def test_an_instruction_that_is_cut_off_is_told(tmp_path, capsys):
    model = variant(tmp_path)
    model.collate_queries([Query("long", "fish", instruction=" ".join(["river"] * 20))])
    assert "query 'long' has no ':' within 12 tokens" in capsys.readouterr().err


def test_a_separator_must_be_one_entry(tmp_path):
    with pytest.raises(UserError, match=r"instruction_separator 'fish fox' is not one entry"):
        variant(tmp_path, instruction_separator="fish fox")


def test_patches_see_each_other_in_both_directions(tmp_path):
    model = variant(tmp_path)
    patches, states = torch.randn(1, 9, 24), torch.randn(1, 12, 32)
    with torch.no_grad():
        rows = model.fusion.mapped_rows(patches, states)
        for moved in (0, 8):
            other = patches.clone()
            other[:, moved] += 1
            assert (model.fusion.mapped_rows(other, states) - rows).abs().amax(-1).min() > 1e-5
        beyond = torch.cat([states, torch.randn(1, 40, 32)], 1)
        first = model.fusion.mapped_rows(patches, beyond[:, :32])
        assert torch.equal(model.fusion.mapped_rows(patches, beyond), first)
        assert not torch.allclose(first, rows, atol=1e-6)


# ---- images


@pytest.mark.parametrize("name", ["flmr", "preflmr"])
def test_several_images_per_query(name, tmp_path):
    """Regions are boxes. Rows of an item are those that its images have alone, image by image."""
    model = variant(tmp_path, variant=name)
    whole = tiny.image(tmp_path, "whole.png", (10, 120, 200))
    region = ImageRef("whole.png", path=whole.path, box=(5, 5, 30, 25))
    asked = [Query(n, "what is it", refs) for n, refs in [("0", ()), ("2", (whole, region)), ("1", (region,))]]
    with torch.no_grad():
        found = model.encode_queries(model.collate_queries(asked))
        alone = [
            model.encode_queries(model.collate_queries([Query("x", "what is it", (ref,))])) for ref in (whole, region)
        ]
    each = {"global": 3} | ({"mapped": 9} if name == "preflmr" else {})
    assert {k: found.rows.kind.count(k) for k in each} == {k: 2 * n for k, n in each.items()}
    assert found.mask.sum(1).tolist() == [12 + n * sum(each.values()) for n in (0, 2, 1)]
    for kind, n in each.items():
        rows = found.embeddings[:, found.rows.select(kind)]
        wanted = [a.embeddings[0, a.rows.select(kind)] for a in alone]
        torch.testing.assert_close(rows[1], torch.cat(wanted), atol=1e-5, rtol=0)
        torch.testing.assert_close(rows[2, :n], wanted[1], atol=1e-5, rtol=0)
        assert bool((rows[0] == 0).all()) and bool((rows[2, n:] == 0).all())


def test_images_of_documents(tmp_path):
    model = variant(tmp_path)
    pictures = tuple(tiny.image(tmp_path, f"{i}.png", (90 * i, 10, 60)) for i in range(2))
    records = [Document("two", "the climate", pictures), Document("none", "fish"), Document("image", "", pictures[:1])]
    with torch.no_grad():
        found = model.encode_documents(model.collate_documents(records))
        text = model.encode_documents(model.collate_documents([Document("t", "the climate")]))
    assert found.rows.kind[:6] == ("global",) * 6 and set(found.rows.kind[6:]) == {"text"}
    assert found.mask[:, :6].sum(1).tolist() == [6, 0, 3] and found.mask[2, 6:].sum() == 0
    torch.testing.assert_close(found.unpad()[0][6:], text.unpad()[0], atol=1e-5, rtol=0)
    told = variant(tmp_path, eval={"query_maxlen": 12, "doc_maxlen": 24, "document_rows": ["text"]})
    with pytest.raises(UserError, match=r"'two' has an image.*document_rows: \[global, text\]"):
        told.collate_documents(records)


def test_image_documents_have_an_identity_of_their_own(tmp_path):
    model = variant(tmp_path)
    plain, seen = model.identity(), model.identity(images=True)
    with torch.no_grad():
        model.fusion.projection[0].weight.mul_(1.1)
        assert model.identity() == plain and model.identity(images=True) != seen
        seen = model.identity(images=True)
        model.fusion.mapping_input.weight.mul_(1.1)  # queries' alone
        model.query_text.linear.weight.mul_(1.1)
    assert model.identity(images=True) == seen


def test_a_trainable_tower_gets_a_gradient_everywhere_but_in_its_last_norm(tmp_path):
    model = variant(tmp_path, frozen=[])
    model.encode_queries(model.collate_queries(tiny.queries(tmp_path))).embeddings[..., 0].sum().backward()
    without = [n for n, p in model.vision.named_parameters() if p.grad is None]
    assert without and all("post_layernorm" in n for n in without)
    assert all(p.requires_grad == (n not in without) for n, p in model.vision.named_parameters())


def test_stored_features_are_refused_where_they_would_be_wrong(tmp_path):
    class Stored:
        fingerprint = {"kind": "visual"}

    with pytest.raises(UserError, match="the vision tower trains"):
        model = variant(tmp_path, frozen=[])
        model.stage = "train"
        model.collate_queries(tiny.queries(tmp_path), Stored())
    with pytest.raises(UserError, match="documents have a tower of their own"):
        variant(tmp_path, separate_vision=True).collate_documents(tiny.mixed_documents(tmp_path), Stored())


# ---- the original's methods, where it crashes


@pytest.fixture
def original():
    return FLMRModelForRetrieval.from_pretrained(HUB)


def inputs(model, texts, images=2):
    ids, mask = model.tokenize("query", texts)
    torch.manual_seed(0)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(len(texts), images, 3, 24, 24)}


def test_what_is_not_given_is_left_out(original):
    given = inputs(original, ["describe it: a bird", "what: a fish"])
    pixels = given.pop("pixel_values")
    with torch.no_grad():
        text = original.query(**given)
        assert text.late_interaction_output.shape == (2, 32, 16)
        image = original.query(pixel_values=pixels)
        assert image.late_interaction_output.shape == (2, 2 * (6 + 16), 16)
        empty = original.query(**inputs(original, ["", ""]), concat_output_from_text_encoder=False)
    assert torch.allclose(image.late_interaction_output, empty.late_interaction_output, atol=1e-6)


def test_features_stand_for_pixels(original):
    given = inputs(original, ["describe it: a bird", "what: a fish"])
    with torch.no_grad():
        wanted = original.query(**given).late_interaction_output
        cls, patches = original.vision(given.pop("pixel_values").flatten(0, 1))
        features = torch.cat([cls[:, None], patches], 1).unflatten(0, (2, 2))
        both = original.query(**given, image_features=features).late_interaction_output
        single = original.query(**given, image_features=features[:, 0]).late_interaction_output
    torch.testing.assert_close(both, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(single[:, 32:38], wanted[:, 32:38], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"image_features is \(2, 32\).*CLS, then patches"):
        original.query(**given, image_features=features[:, 0, 0])


def test_documents_as_a_list(original):
    ids, mask = original.tokenize("document", ["the bird, a fish.", "fish"])
    with torch.no_grad():
        padded, listed = original.doc(ids, mask), original.doc(ids, mask, keep_dims=False, return_mask=False)
    assert listed.context_mask is None
    assert [len(r) for r in listed.late_interaction_output] == padded.context_mask.sum((1, 2)).tolist()
    packed = torch.cat(listed.late_interaction_output)
    assert torch.equal(packed, padded.late_interaction_output[padded.context_mask[..., 0]])


def test_gathering_without_a_process_group(original):
    given = {f"query_{k}": v for k, v in inputs(original, ["describe it: a bird", "what: a fish"]).items()}
    ids, mask = original.tokenize("document", ["the bird", "fish", "fish and chips", "river"])
    for in_batch in (True, False):
        pair = [
            original(
                **given, context_input_ids=ids, context_attention_mask=mask, use_in_batch_negatives=in_batch,
                in_batch_negatives_from_all_gpus=gather,
            )
            for gather in (True, False)
        ]  # fmt: skip
        assert torch.equal(pair[0].loss, pair[1].loss) and torch.equal(pair[0].scores, pair[1].scores)


def test_results_are_read_as_the_originals_are(original):
    """By attribute, name or place, or with ``return_dict=False`` as a tuple."""
    given = {f"query_{k}": v for k, v in inputs(original, ["describe it: a bird", "what: a fish"]).items()}
    ids, mask = original.tokenize("document", ["the bird", "fish", "fish and chips", "river"])
    given |= {"context_input_ids": ids, "context_attention_mask": mask, "use_in_batch_negatives": False}
    with torch.no_grad():
        out, plain = original(**given), original(**given, return_dict=False)
    assert out["loss"] is out.loss is out[0] and out.in_batch_negative_loss is None and len(out.to_tuple()) == 4
    assert len(plain) == 5 and plain[2] is None and torch.equal(plain[1], out.scores)
    document = original.doc(ids, mask)
    assert document["late_interaction_output"] is document[1] and len(document[:]) == 3
    with pytest.raises(KeyError):
        out["vectors"]


def test_bad_calls_are_one_sentence(original):
    given = inputs(original, ["describe it: a bird", "what: a fish"])
    text = {k: given[k] for k in ("input_ids", "attention_mask")}
    pixels, on = given["pixel_values"], [True, True]
    for call, match in [
        ({**text, "pixel_values": pixels[:1]}, "images for 1 and texts for 2"),
        ({**text, "pixel_values": torch.randn(2, 3, 32, 32)}, "32 x 32 pixels.*wants 24 x 24"),
        ({**text, "pixel_values": pixels[0, 0]}, r"pixel_values is \(3, 24, 24\)"),
        ({**text, "pixel_values": pixels[:, 0, :1]}, r"pixel_values is \(2, 1, 24, 24\)"),
        ({**given, "image_features": pixels}, "both given"),
        ({**text, "concat_output_from_vision_encoder": True}, "no image is given"),
        ({"pixel_values": pixels, "concat_output_from_text_encoder": True}, "no text is given"),
        ({**given, "concat_output_from_vision_encoder": on}, "two lists of 2 bools"),
        ({**given, "concat_output_from_vision_encoder": on, "concat_output_from_text_encoder": [True]}, "two lists"),
        ({**text, "concat_output_from_text_encoder": False}, "neither text nor image"),
        ({"input_ids": text["input_ids"]}, "attention_mask is missing"),
        ({}, "needs input_ids or an image"),
        ({**text, "output_attentions": True}, "are not kept"),
    ]:
        with pytest.raises(UserError, match=match):
            original.query(**call)
    with pytest.raises(UserError, match="2 documents do not make 2 for each of 2 queries"):
        original(**{f"query_{k}": v for k, v in given.items()}, context_input_ids=text["input_ids"],
                 context_attention_mask=text["attention_mask"])  # fmt: skip
    colbert = FLMRModelForRetrieval.from_pretrained(FOLDERS[-1])
    with pytest.raises(UserError, match="reads text only"):
        colbert.query(**text, pixel_values=pixels)
