"""What every retriever in ``models/`` must do. A new family is picked up by its file name."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import models
from core.config import check
from core.errors import UserError
from core.records import Document, Query
from core.tokens import TokenBatch
from tests import tiny

NAMES = models.names()


CASES = [(name, changes) for name in NAMES for changes in tiny.VARIANTS.get(name, [{}])]


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())]))
def case(request):
    return request.param


@pytest.fixture
def name(case):
    return case[0]


@pytest.fixture
def model(case, tmp_path):
    return tiny.retriever(case[0], tmp_path / "towers", **case[1])


def sees_images(model) -> bool:
    return hasattr(model, "pixel_source")


def encode_all(model, tmp_path) -> tuple[TokenBatch, TokenBatch]:
    with torch.no_grad():
        queries = model.encode_queries(model.collate_queries(tiny.queries(tmp_path, sees_images(model))))
        documents = model.encode_documents(model.collate_documents(tiny.documents()))
    return queries, documents


def test_families_are_found():
    assert {"colbert", "mire", "ret_xknow", "mire_preflmr", "flmr"} <= set(NAMES)
    assert not {"visual", "fusion", "mapping", "flmr_head", "flmr_files"} & set(NAMES)


def test_shapes_masks_and_unit_rows(model, tmp_path):
    for tokens in encode_all(model, tmp_path):
        assert tokens.embeddings.ndim == 3 and tokens.dim == model.config.dim
        norms = tokens.embeddings.norm(dim=-1)
        assert torch.allclose(norms[tokens.mask], torch.ones(int(tokens.mask.sum())), atol=1e-5)
        assert bool((norms[~tokens.mask] == 0).all())
        if tokens.rows is not None:
            assert len(tokens.rows.kind) == tokens.mask.shape[1] == len(tokens.rows.source)


def test_determinism(model, tmp_path):
    first, second = encode_all(model, tmp_path), encode_all(model, tmp_path)
    assert all(torch.equal(a.embeddings, b.embeddings) for a, b in zip(first, second))


def test_select_then_encode_is_encode_then_select(model, tmp_path):
    batch = model.collate_queries(tiny.queries(tmp_path, sees_images(model)))
    rows = [1, 0] if len(batch) == 2 else [2, 0, 3, 1]
    with torch.no_grad():
        whole = model.encode_queries(batch)
        parts = [model.encode_queries(batch.select([r])).unpad()[0] for r in rows]
    for part, row in zip(parts, rows):
        assert torch.allclose(part, whole.unpad()[row], atol=1e-5)


def test_companions_do_not_change_an_encoding(model, tmp_path):
    asked = tiny.queries(tmp_path, sees_images(model))
    with torch.no_grad():
        together = model.encode_queries(model.collate_queries(asked)).unpad()
        for query, expected in zip(asked, together):
            alone = model.encode_queries(model.collate_queries([query])).unpad()[0]
            assert alone.shape == expected.shape, query.id
            assert torch.allclose(alone, expected, atol=1e-5), query.id
        for documents in [tiny.documents()] + [tiny.mixed_documents(tmp_path)] * sees_images(model):
            together = model.encode_documents(model.collate_documents(documents)).unpad()
            for document, expected in zip(documents, together, strict=True):
                alone = model.encode_documents(model.collate_documents([document])).unpad()[0]
                assert alone.shape == expected.shape and torch.allclose(alone, expected, atol=1e-5), document.id


def test_save_and_load_after_perturbing(model, tmp_path):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    before = encode_all(model, tmp_path)
    model.save_pretrained(tmp_path / "saved", {"data": "tiny"})
    loaded = models.from_pretrained(tmp_path / "saved")
    assert loaded.stage == "eval" and not loaded.training
    for a, b in zip(before, encode_all(loaded, tmp_path)):
        assert torch.equal(a.embeddings, b.embeddings) and torch.equal(a.mask, b.mask)
    facts = json.loads((tmp_path / "saved" / "provenance.json").read_text())
    assert facts["data"] == "tiny" and facts["versions"]["torch"] == torch.__version__


def test_gradient_reaches_exactly_the_trainable_set(model, tmp_path):
    parts = sorted(model.parts())
    fixed = {"vision"} & set(parts)
    for frozen in [fixed, fixed | {"text"}, set(parts) - {parts[0]} | fixed]:
        model.freeze(sorted(frozen))
        model.train()
        model.stage = "train"
        model.zero_grad(set_to_none=True)
        q = model.encode_queries(model.collate_queries(tiny.queries(tmp_path, sees_images(model))))
        d = model.encode_documents(model.collate_documents(tiny.documents()))
        if not q.embeddings.requires_grad and not d.embeddings.requires_grad:
            assert not any(p.requires_grad for p in model.parameters())
            continue
        weights = torch.linspace(-1, 1, q.embeddings.numel()).view_as(q.embeddings)
        ((q.embeddings * weights).sum() + (d.embeddings * d.embeddings.detach().roll(1, -1)).sum()).backward()
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        reached = {n for n, p in model.named_parameters() if p.grad is not None}
        assert reached == trainable, f"frozen {sorted(frozen)}"
        for part in frozen:
            module = model.parts()[part]
            assert not any(p.requires_grad for p in module.parameters())
            assert not any(m.training for m in module.modules()), f"{part} is frozen but in training mode"


def test_an_empty_query_is_an_error(model):
    with pytest.raises(UserError, match="'nothing'"):
        model.collate_queries([Query("nothing", "  ")])


def test_one_token_document_and_empty_document(model):
    with torch.no_grad():
        rows = model.encode_documents(model.collate_documents([Document("a", "fish"), Document("b", "")])).unpad()
    assert len(rows[0]) >= 1 and torch.isfinite(torch.cat(rows)).all()


def test_stages_have_their_own_temperature(model):
    model.stage = "train"
    assert model.temperature() == 0.5
    model.stage = "eval"
    assert model.temperature() == 1.0


def test_frozen_states_give_the_same_vectors(model, tmp_path):
    class States:
        def get(self, side, texts):
            return [s.half() for s in model.text_states(side, texts)]

    if model.frozen_text_key("document") is None:
        model.freeze([*model.config.frozen, "text"])
    assert model.frozen_text_key("document") != model.frozen_text_key("query")
    with torch.no_grad():
        plain = model.encode_documents(model.collate_documents(tiny.documents()))
        stored = model.encode_documents(model.collate_documents(tiny.documents(), states=States()))
        assert torch.equal(plain.mask, stored.mask)
        assert torch.allclose(plain.embeddings, stored.embeddings, atol=5e-3)
        asked = tiny.queries(tmp_path, sees_images(model))
        plain = model.encode_queries(model.collate_queries(asked))
        stored = model.encode_queries(model.collate_queries(asked, states=States()))
        assert torch.equal(plain.mask, stored.mask)
        assert torch.allclose(plain.embeddings, stored.embeddings, atol=5e-3)


def test_documents_that_nothing_trains_are_stored_as_their_rows(model):
    class States:
        def get(self, side, texts):
            return [s.half() for s in model.text_states(side, texts)]

    model.freeze([*model.config.frozen, "text"])
    states = model.frozen_text_key("document")
    model.freeze([*model.config.frozen, "text", "linear"])
    key = model.frozen_text_key("document")
    assert key != states and model.frozen_text_key("query") != key
    records = tiny.documents()
    with torch.no_grad():
        batch = model.collate_documents(records, states=States())
        stored, plain = model.encode_documents(batch), model.encode_documents(model.collate_documents(records))
        again = model.encode_documents(batch.select([2, 0]))
    assert "ids" not in batch and batch["rows"].shape[-1] == model.config.dim
    for a, b in zip(stored.unpad(), plain.unpad(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)
    assert torch.equal(again.embeddings, stored.embeddings[[2, 0]])
    with torch.no_grad():
        model.text.linear.weight.mul_(1.5)
    assert model.frozen_text_key("document") != key


def test_a_checkpoint_of_another_family_is_refused(model, name, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    for other in set(NAMES) - {name}:
        with pytest.raises(UserError, match=f"belongs to '{name}'"):
            models.module(other).Retriever.from_pretrained(tmp_path / "saved")


def test_a_damaged_checkpoint_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        models.from_pretrained(tmp_path / "saved")


def test_identity_follows_the_weights_that_make_documents(model):
    before = copy.deepcopy(model.identity())
    assert model.identity() == before
    with torch.no_grad():
        model.text.linear.weight.mul_(1.5)
    assert model.identity() != before


def changed_vocabulary(folder):
    """The same tower with two words of its vocabulary exchanged: the same weights, other vectors."""
    for file in (folder / "vocab.txt", folder / "tokenizer.json"):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            if file.suffix == ".json":
                data = json.loads(text)
                vocabulary = data["model"]["vocab"]
                vocabulary["fish"], vocabulary["fox"] = vocabulary["fox"], vocabulary["fish"]
                text = json.dumps(data)
            else:
                words = text.split("\n")
                a, b = words.index("fish"), words.index("fox")
                words[a], words[b] = words[b], words[a]
                text = "\n".join(words)
            file.write_text(text, encoding="utf-8")


def test_keys_follow_the_tokenizer_and_the_markers(name, tmp_path):
    def keys(model):
        model.freeze([*model.config.frozen, "text"])
        return [model.identity(), model.frozen_text_key("document"), model.frozen_text_key("query")]

    section = tiny.model_section(name, tmp_path / "towers")
    module = models.module(name)

    def built(**changes):
        return module.build(check(module.Config, {**section, **changes}, "model"))

    plain, again = keys(built()), keys(built())
    assert plain == again
    swapped = keys(built(query_marker="[unused1]", doc_marker="[unused0]"))
    assert all(a != b for a, b in zip(plain, swapped))
    changed_vocabulary(tmp_path / "towers" / "text")
    assert all(a != b for a, b in zip(plain, keys(built())))


def test_a_checkpoint_remembers_where_it_came_from(model, tmp_path):
    model.save_pretrained(tmp_path / "first", {"data": "tiny"})
    models.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second", {"data": "more"})
    facts = json.loads((tmp_path / "second" / "provenance.json").read_text())
    assert facts["data"] == "more" and facts["source"]["data"] == "tiny"
