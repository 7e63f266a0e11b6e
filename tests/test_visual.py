"""What every retriever with images promises beyond the contract, and the released layouts of them all."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import models
from core import foreign
from core.config import check
from core.errors import UserError
from core.records import Query
from core.store import write_store
from core.visual import StoredVisual
from models import artifacts, mire, originals, visual
from runs.training import build_retriever
from tests import tiny, tiny_towers
from tests.golden_runners.visual import names_and_shapes
from training.losses import contrastive

NAMES = [name for name in models.names() if issubclass(models.module(name).Retriever, visual.VisualColBERT)]
RELEASED = [name for name in NAMES if name in {released.family for released in originals.RELEASED.values()}]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name, tmp_path):
    return tiny.retriever(name, tmp_path / "towers")


def test_the_families_are_found():
    assert {"mire", "ret_xknow", "mire_preflmr"} == set(RELEASED)


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


@pytest.mark.parametrize("grid", [0, -1])
def test_a_grid_has_at_least_one_cell(tmp_path, grid):
    with pytest.raises(
        UserError, match=rf"model\.vision\.grid: got {grid}; input should be greater than or equal to 1"
    ):
        tiny.retriever("mire", tmp_path / "towers", vision={"tower": "x", "grid": grid})


def test_a_grid_finer_than_the_towers_is_refused(tmp_path):
    section = tiny.model_section("mire", tmp_path / "towers")
    for grid, fits in ((3, True), (4, False)):
        model = tiny.retriever("mire", tmp_path / "towers", vision={**section["vision"], "grid": grid})
        batch = model.collate_queries(tiny.queries(tmp_path))
        if fits:
            assert model.visual_features(batch.images).patches.shape[1] == 9
            continue
        with pytest.raises(UserError, match=r"model\.vision\.grid is 4, but this tower gives 3 x 3 patches"):
            model.encode_queries(batch)


def test_a_kind_of_row_is_named_once(name, tmp_path):
    stage = {"query_maxlen": 12, "doc_maxlen": 24, "rows": ["global", "global"]}
    with pytest.raises(UserError, match=r"model\.train\.rows: .*'global' is named more than once"):
        tiny.retriever(name, tmp_path / "towers", train=stage)


# ---- released layouts


def perturbed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@pytest.mark.parametrize("name", RELEASED)
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


@pytest.mark.parametrize("name", RELEASED)
def test_a_fusion_only_file_goes_onto_towers(name, tmp_path):
    model = tiny.retriever(name, tmp_path / "towers")
    file = originals.save_original(model, tmp_path / "original")
    fusion = {k: v + 0.5 for k, v in foreign.load(file)["model"].items() if k.startswith("query_fusion.")}
    torch.save({"model": fusion}, file)
    loaded = originals.load_original(file)
    for k, v in model.fusion.state_dict().items():
        assert torch.equal(loaded.fusion.state_dict()[k], v + 0.5)


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("written_out", [False, True])
def test_training_starts_from_a_released_file(name, written_out, tmp_path):
    """A YAML that leaves the mapping layer to the text tower, and one that says the same in numbers."""
    changes = {"mapping": {"heads": 2, "width": 64}} if written_out and name == "mire_preflmr" else {}
    section = tiny.model_section(name, tmp_path / "towers", **changes)
    source = perturbed(tiny.retriever(name, tmp_path / "towers"))
    file = originals.save_original(source, tmp_path / "original")
    config = check(models.module(name).Config, section, "model")
    cfg = SimpleNamespace(run=SimpleNamespace(init=str(file)), model=config)
    started = build_retriever(cfg)
    assert started.config is config
    batch = source.collate_queries(tiny.queries(tmp_path))
    with torch.no_grad():
        assert torch.equal(started.encode_queries(batch).embeddings, source.encode_queries(batch).embeddings)
    if name == "mire_preflmr":
        cfg.model = check(models.module(name).Config, {**section, "mapping": {"heads": 4}}, "model")
        with pytest.raises(UserError, match=r"model\.mapping\.heads: 2 there, 4 now\)"):
            build_retriever(cfg)


@pytest.mark.parametrize("stage", ["train", "eval"])
@pytest.mark.parametrize("init", [False, True])
def test_lengths_beyond_the_text_towers_positions_are_refused_before_training(tmp_path, stage, init):
    source = tiny.retriever("mire", tmp_path / "towers")
    source.save_pretrained(tmp_path / "init")
    section = tiny.model_section("mire", tmp_path / "towers")
    cfg = SimpleNamespace(run=SimpleNamespace(init=str(tmp_path / "init") if init else None))
    for length, fits in ((128, True), (129, False)):
        cfg.model = check(mire.Config, {**section, stage: {"query_maxlen": length, "doc_maxlen": 24}}, "model")
        if fits:
            build_retriever(cfg)
            continue
        with pytest.raises(UserError, match=rf"model\.{stage}\.query_maxlen is 129, but .* has 128 positions"):
            build_retriever(cfg)
        source.config.eval.query_maxlen = length  # as a command that sets lengths of its own does
        with pytest.raises(UserError, match=r"a text has 129 tokens, .* has 128 positions"):
            source.encode_queries(source.collate_queries(tiny.queries(tmp_path)))


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
        ({"kernel_size": "5"}, "says kernel_size '5', but the weights have 5"),
        ({"kernel_size": 5, "short_name": ["xknow"]}, r"says short_name '\['xknow'\]'"),
        (
            {"short_name": "xknow", "num_tokens": "x"},
            r"config\.json'\.num_tokens: got 'x'; input should be a valid int",
        ),
        ({"num_tokens": 3, "vision_model_name": ["x"]}, r"config\.json'\.vision\.tower: got \['x'\]"),
    ):
        edit(tmp_path / "original", **changes)
        with pytest.raises(UserError, match=told):
            originals.load_original(file)
    edit(tmp_path / "original", kernel_size=None, vision_model_name=str(tmp_path / "towers" / "vision"))
    assert originals.load_original(file).config.kernel_size == 5  # the weights know it


@pytest.mark.parametrize("sidecar", ["config.json", "artifact.metadata"])
def test_a_sidecar_that_is_no_object_is_named(tmp_path, sidecar):
    file = originals.save_original(tiny.retriever("mire", tmp_path / "towers"), tmp_path / "original")
    (tmp_path / "original" / sidecar).write_text("[]")
    with pytest.raises(UserError, match=f"{sidecar}' holds a list, not an object"):
        originals.load_original(file)


@pytest.mark.parametrize("name", ["colbert", "ret_xknow"])
def test_a_length_that_is_no_number_is_named(name, tmp_path):
    originals.save_original(tiny.retriever(name, tmp_path / "towers"), tmp_path / "original")
    facts = tmp_path / "original" / "artifact.metadata"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "query_maxlen": "x"}))
    with pytest.raises(UserError, match=r"artifact\.metadata.*query_maxlen: got 'x'"):
        originals.load_original(tmp_path / "original")


@pytest.mark.parametrize(("payload", "told"), [
    ({"model": None}, "holds no weights"),
    ({"model": {"a": 1}}, "holds no weights"),
    ({"model": {"query_fusion.k_state.weight": torch.ones(2, 2)}}, "hold no convolution of Ret-XKnow"),
])  # fmt: skip
def test_a_file_without_the_weights_is_not_another_model(tmp_path, payload, told):
    file = originals.save_original(tiny.retriever("ret_xknow", tmp_path / "towers"), tmp_path / "original")
    torch.save(payload, file)
    with pytest.raises(UserError, match=told):
        originals.load_original(file)


def test_a_tokenizer_that_is_not_beside_the_file_is_the_base_models(tmp_path):
    model = tiny.retriever("mire", tmp_path / "towers")
    file = originals.save_original(model, tmp_path / "original")
    for other in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (tmp_path / "original" / other).unlink(missing_ok=True)
    edit(tmp_path / "original", colbert_checkpoint="text")
    assert originals.load_original(file, tmp_path / "towers").tokenizer.digest == model.tokenizer.digest
    edit(tmp_path / "original", colbert_checkpoint="ckpts/gone")
    with pytest.raises(
        UserError, match=r"no tokenizer \(tokenizer\.json or vocab\.txt\) is in .*'ckpts/gone' does not"
    ):
        originals.load_original(file)


@pytest.mark.parametrize(("name", "pretraining", "lengths"), [
    ("ret_xknow", True, (32, 180)),
    ("ret_xknow", False, (32, 180)),
    ("mire_preflmr", True, (40, 400)),
    ("mire", True, (40, 400)),
])  # fmt: skip
def test_lengths_without_colberts_settings_are_the_trainers(tmp_path, name, pretraining, lengths):
    file = originals.save_original(tiny.retriever(name, tmp_path / "towers"), tmp_path / "original")
    edit(tmp_path / "original", pretraining=pretraining)
    (tmp_path / "original" / "artifact.metadata").unlink()
    train = originals.load_original(file).config.train
    assert (train.query_maxlen, train.doc_maxlen) == lengths


def test_the_first_form_of_ret_xknow_is_told_apart(tmp_path):
    file = originals.save_original(tiny.retriever("ret_xknow", tmp_path / "towers"), tmp_path / "original")
    payload = foreign.load(file)
    del payload["model"]["query_fusion.k_state.weight"]
    torch.save({"model": payload["model"]}, file)
    with pytest.raises(UserError, match="first form of Ret-XKnow"):
        originals.load_original(file)


@pytest.mark.parametrize(("name", "changes"), [
    *((name, {"vision": {"grid": 7}}) for name in RELEASED),
    *((name, {"vision": {"patch_layer": -1}}) for name in RELEASED),
    *((name, {"mask_policy": "clean"}) for name in RELEASED),
    ("mire", {"residual": True}),
    ("ret_xknow", {"cells": "best"}),
])  # fmt: skip
def test_what_the_released_layout_cannot_say_is_refused(name, changes, tmp_path):
    section = tiny.model_section(name, tmp_path / "towers")
    told = {key: {**section["vision"], **value} if key == "vision" else value for key, value in changes.items()}
    model = tiny.retriever(name, tmp_path / "towers", **told)
    with pytest.raises(UserError, match=f"cannot say .*{next(iter(changes.get('vision', changes)))}"):
        originals.save_original(model, tmp_path / "original")
    assert not (tmp_path / "original").exists()


@pytest.mark.parametrize("name", [*RELEASED, "colbert"])
def test_each_key_of_inference_that_is_lost_has_a_note(name, tmp_path, capsys):
    originals.save_original(tiny.retriever(name, tmp_path / "towers"), tmp_path / "a")
    visual_keys = ["query_maxlen: 64 there, 12", "doc_maxlen: 384 there, 24", "mask_punctuation: False there, True"]
    out = capsys.readouterr().out
    assert [key in out for key in visual_keys] == [name != "colbert"] * 3 and out.count("cannot say") == out.count("\n")
    stage = {"query_maxlen": 9, "doc_maxlen": 24}
    originals.save_original(tiny.retriever(name, tmp_path / "towers", eval=stage), tmp_path / "b")
    assert (
        f"cannot say model.eval.query_maxlen: {12 if name == 'colbert' else 64} there, 9 now" in capsys.readouterr().out
    )
    loaded = originals.load_original(tmp_path / "a")
    originals.save_original(loaded, tmp_path / "c")
    assert "note" not in capsys.readouterr().out  # nothing is lost of what came from such files


def test_a_family_of_our_own_has_no_released_layout(tmp_path):
    with pytest.raises(UserError, match="no original layout of 'mire_plus'"):
        originals.save_original(tiny.retriever("mire_plus", tmp_path / "towers"), tmp_path / "original")


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
    assert names == set(names_and_shapes(model, originals.RELEASED["sent_mire"].prefixes))
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
