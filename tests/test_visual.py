"""What every retriever with images promises beyond the contract, and the released layouts of them all."""

from __future__ import annotations

import json

import pytest
import torch

import models
from core import foreign
from core.errors import UserError
from core.records import Query
from core.store import write_store
from core.visual import StoredVisual
from models import artifacts, originals, visual
from tests import tiny, tiny_towers
from training.losses import contrastive

NAMES = [name for name in models.names() if issubclass(models.module(name).Retriever, visual.VisualColBERT)]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name, tmp_path):
    return tiny.retriever(name, tmp_path / "towers")


def test_the_families_are_found():
    assert {"mire", "ret_xknow", "mire_preflmr"} <= set(NAMES)


def cache(model, queries, folder) -> StoredVisual:
    """A feature store of the queries' images, in float32 so that it says exactly what the tower does."""
    refs = [q.images[0] for q in queries if q.images]
    features = model.visual_features(model.pixel_source().fetch(refs))
    rows = torch.cat([features.global_[:, None], features.patches], 1).numpy()
    items = [(ref.key, ref.key, item) for ref, item in zip(refs, rows, strict=True)]
    return StoredVisual(write_store(folder, model.visual_spec("float32"), items))


def test_stored_features_give_what_pixels_give(model, tmp_path):
    queries = tiny.queries(tmp_path)
    source = cache(model, queries, tmp_path / "cache")
    with torch.no_grad():
        pixels = model.encode_queries(model.collate_queries(queries))
        stored = model.encode_queries(model.collate_queries(queries, source))
        other = model.encode_queries(model.collate_queries([Query("x", queries[0].text, queries[2].images)], source))
    assert torch.equal(pixels.mask, stored.mask) and torch.allclose(pixels.embeddings, stored.embeddings, atol=1e-6)
    assert not torch.allclose(other.embeddings[0], stored.embeddings[0], atol=1e-3)  # another image, other rows


def test_visual_rows_alone_and_text_alone(model, name, tmp_path):
    """Phase A's rows: of an item with an image its visual rows, of a question alone its text."""
    model.config.eval.rows = list(model.kinds)
    with torch.no_grad():
        tokens = model.encode_queries(model.collate_queries(tiny.queries(tmp_path)))
    kinds = [{k for k, kept in zip(tokens.rows.kind, row) if kept} for row in tokens.mask.tolist()]
    assert kinds == [set(model.kinds), {"text"}, set(model.kinds), set(model.kinds)]


@pytest.mark.parametrize("policy", ["legacy", "train", "clean"])
def test_training_on_stored_states_is_training_on_the_trunk(name, policy, tmp_path):
    """The loss and every gradient are those of the live, frozen trunk, whatever the head reads of its states."""
    frozen = ["vision", "text"]
    model = tiny.retriever(name, tmp_path / "towers", mask_policy=policy, frozen=frozen)
    if hasattr(model.fusion, "transformer_mapping_network"):
        model = tiny.retriever(name, tmp_path / "towers", mask_policy=policy, frozen=frozen, mapping={"dropout": 0.0})
    model.stage = "train"
    model.train()

    class States:
        def get(self, side, texts):
            return [model.text_states(side, [t])[0] for t in texts]

    def step(states):
        model.zero_grad()
        q = model.encode_queries(model.collate_queries(tiny.queries(tmp_path), states=states))
        d = model.encode_documents(model.collate_documents(tiny.documents(), states=states))
        loss = contrastive(q, d, nways=1, temperature=1.0)["loss"]
        loss.backward()
        return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    live, stored = step(None), step(States())
    assert live[0] == pytest.approx(stored[0], abs=1e-4) and live[1].keys() == stored[1].keys()
    assert any(n.startswith("fusion.") for n in live[1])
    for n, gradient in live[1].items():
        assert torch.allclose(gradient, stored[1][n], atol=1e-4), n


def test_an_index_of_images_names_head_and_tower(model, name):
    text, images = model.identity(), model.identity(images=True)
    assert text["retriever"] == "colbert" and images["retriever"] == name
    for module, key in ((model.fusion, "fusion"), (model.vision, "visual")):
        with torch.no_grad():
            next(module.parameters()).add_(0.1)
        assert model.identity() == text  # text documents do not see images
        now = model.identity(images=True)
        assert {k for k in images if images[k] != now[k]} == {key}
        images = now


# ---- released layouts


def perturbed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def test_a_released_file_gives_the_same_queries(name, tmp_path):
    """There and back: not the weights alone but all that decides what they mean."""
    changes = {"mire_preflmr": {"mapping": {"heads": 4, "width": 40, "dropout": 0.2}}, "ret_xknow": {"kernel_size": 4}}
    model = perturbed(tiny.retriever(name, tmp_path / "towers", **changes.get(name, {})))
    file = originals.save_original(model, tmp_path / "original")
    loaded = originals.load_original(file)
    assert type(loaded) is type(model)
    queries = tiny.queries(tmp_path)
    for retriever in (model, loaded):
        retriever.config.eval.query_maxlen = 12
    with torch.no_grad():
        rows = [m.encode_queries(m.collate_queries(queries)).embeddings for m in (model, loaded)]
    assert torch.equal(*rows)
    names = set(foreign.load(file)["model"])
    assert {n.split(".")[0] for n in names} == {"model", "vision_tower", "query_fusion"}
    assert len(names) == len(artifacts.portable_state(model))
    if name == "mire_preflmr":
        assert loaded.config.mapping.model_dump() == {"heads": 4, "width": 40, "dropout": 0.2}


def test_a_fusion_only_file_goes_onto_towers(name, tmp_path):
    model = tiny.retriever(name, tmp_path / "towers")
    file = originals.save_original(model, tmp_path / "original")
    fusion = {k: v + 0.5 for k, v in foreign.load(file)["model"].items() if k.startswith("query_fusion.")}
    torch.save({"model": fusion}, file)
    loaded = originals.load_original(file)
    for k, v in model.fusion.state_dict().items():
        assert torch.equal(loaded.fusion.state_dict()[k], v + 0.5)


def edit(folder, **changes):
    """config.json of a released folder with keys changed; None removes one."""
    file = folder / "config.json"
    block = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in block.items() if v is not None}))


def test_what_a_config_must_say(tmp_path):
    file = originals.save_original(tiny.retriever("ret_xknow", tmp_path / "towers"), tmp_path / "original")
    for changes, told in (
        ({"short_name": "vista"}, r"says short_name 'vista'; .* of short_name mire, sent_mire, xknow, preflmr"),
        ({"short_name": None}, "says short_name 'None'"),
        ({"short_name": "mire"}, "says short_name 'mire' and has no num_heads"),
        ({"short_name": "xknow", "num_tokens": None}, "and has no num_tokens"),
        ({"num_tokens": 3, "kernel_size": 3}, "says kernel_size 3, but the weights have 5"),
    ):
        edit(tmp_path / "original", **changes)
        with pytest.raises(UserError, match=told):
            originals.load_original(file)
    edit(tmp_path / "original", kernel_size=None)  # the weights know it
    assert originals.load_original(file).config.kernel_size == 5


def test_the_first_form_of_ret_xknow_is_told_apart(tmp_path):
    file = originals.save_original(tiny.retriever("ret_xknow", tmp_path / "towers"), tmp_path / "original")
    payload = foreign.load(file)
    del payload["model"]["query_fusion.k_state.weight"]
    torch.save({"model": payload["model"]}, file)
    with pytest.raises(UserError, match="first form of Ret-XKnow"):
        originals.load_original(file)


def test_what_the_released_layout_cannot_say_is_refused(name, tmp_path):
    section = tiny.model_section(name, tmp_path / "towers")
    for changes, told in (({"grid": 7}, "grid"), ({"patch_layer": -1}, "patch_layer")):
        model = tiny.retriever(name, tmp_path / "towers", vision={**section["vision"], **changes})
        with pytest.raises(UserError, match=f"cannot say .*{told}"):
            originals.save_original(model, tmp_path / "original")
        assert not (tmp_path / "original").exists()


def test_the_mapping_layer_without_its_base_config_is_the_text_towers(tmp_path):
    import shutil

    model = perturbed(tiny.retriever("mire_preflmr", tmp_path / "towers"))
    file = originals.save_original(model, tmp_path / "original")
    shutil.rmtree(tmp_path / "original" / originals.MAPPING_BASE)
    loaded = originals.load_original(file)
    assert loaded.config.mapping.heads == model.text.trunk.config.num_attention_heads
    odd = tmp_path / "base" / originals.MAPPING_BASE
    odd.mkdir(parents=True)
    (odd / "config.json").write_text('{"hidden_act": "relu"}')
    with pytest.raises(UserError, match="hidden_act 'relu'"):
        originals.load_original(file, root=tmp_path / "base")


@pytest.mark.parametrize("trunk", ["modernbert", "bert"])
def test_sentmire_keeps_its_text_tower(tmp_path, trunk):
    """``model.*`` without prefix and ``dense.weight``; tokenizer and conventions come from the PyLate folder."""
    tower = tiny_towers.pylate(tmp_path / "pylate", trunk, skiplist_words=[",", "."])
    model = perturbed(tiny.retriever("mire", tmp_path / "towers", text_tower=str(tower)))
    file = originals.save_original(model, tmp_path / "original")
    assert file.name == "sent_mire.pth"
    names = set(foreign.load(file)["model"])
    assert "dense.weight" in names and not any(n.startswith(("model.bert.", "model.linear.")) for n in names)
    for own_files in (True, False):  # as we write it, and as the original does: everything else is in the base folder
        if not own_files:
            keep = {"config.json", "artifact.metadata", file.name}
            for other in [f for f in file.parent.iterdir() if f.name not in keep]:
                other.unlink()
        loaded = originals.load_original(file)
        before, after = artifacts.portable_state(model), artifacts.portable_state(loaded)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
        loaded.config.eval.query_maxlen, loaded.config.eval.doc_maxlen = 12, 24
        model.config.eval.mask_punctuation = loaded.config.eval.mask_punctuation = True
        with torch.no_grad():
            for side, records in (("queries", tiny.queries(tmp_path)), ("documents", tiny.documents())):
                rows = [
                    getattr(m, f"encode_{side}")(getattr(m, f"collate_{side}")(records)).embeddings
                    for m in (model, loaded)
                ]
                assert torch.equal(*rows)


def test_layouts_of_a_bert_refuse_other_text_towers(tmp_path):
    tower = str(tiny_towers.pylate(tmp_path / "pylate"))
    for name in ("colbert", "ret_xknow", "mire_preflmr"):
        with pytest.raises(UserError, match=f"original layout of '{name}' holds a BERT"):
            originals.save_original(tiny.retriever(name, tmp_path / name, text_tower=tower), tmp_path / "out")
