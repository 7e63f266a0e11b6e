"""FLMR and PreFLMR beyond the golden numbers: the released layout in all its spellings, and the config."""

# ruff: noqa: F811 (fixtures that come by import)

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from core.config import check
from core.errors import UserError
from models import artifacts, flmr_files, originals
from models.flmr import FLMR, Config
from models.flmr_head import Mapping
from models.keys import flmr as keys
from models.towers.folders import read_weights
from tests import tiny
from tests.flmr_cases import FOLDERS, HUB, folder, same_vectors, variant  # noqa: F401

# ---- the published models

TEXT = {"architectures": ["BertForMaskedLM"], "gradient_checkpointing": False, "use_cache": True}
PRE = {
    "separate_query_and_context_text_encoder": True, "use_transformer_mapping_network": True,
    "transformer_mapping_config_base": "bert-base-uncased", "transformer_mapping_num_hidden_layers": 1,
    "mask_instruction_token": ":",
}  # fmt: skip
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
         "patch_size": 14, "projection_dim": 768}  # fmt: skip
GIANT = {"hidden_act": "gelu", "hidden_size": 1664, "intermediate_size": 8192, "num_attention_heads": 16,
         "num_hidden_layers": 48, "patch_size": 14, "projection_dim": 1280}  # fmt: skip
PUBLISHED = {  # name: (config.json without what is the default, parameters, tensors on disk)
    "FLMR": ({"text_config": {**TEXT, "vocab_size": 30531}, "vision_config": {"dropout": 0.0}}, 207_011_072, 403),
    "PreFLMR_ViT-B": ({**PRE, "text_config": TEXT, "vision_config": {"dropout": 0.0}}, 326_725_504, 633),
    "PreFLMR_ViT-L": ({**PRE, "text_config": TEXT, "vision_config": LARGE}, 543_170_176, 825),
    "PreFLMR_ViT-G": ({**PRE, "text_config": TEXT, "vision_config": GIANT}, 2_084_569_984, 1209),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_exactly_their_parameters(name):
    raw, parameters, tensors = PUBLISHED[name]
    words, settings = flmr_files.read_tokenizers(HUB)
    with torch.device("meta"):
        model = flmr_files.skeleton(FLMR, {"model_type": "flmr", **raw}, Path("nowhere"), words, settings)
    assert sum(p.numel() for p in model.parameters()) == parameters
    stored = [artifacts.portable_name(model, n) for n in model.state_dict()]
    config = model.config
    names = {keys.to_hub(n, config.separate_text, config.separate_vision)[0] for n in stored}
    assert len(names) == len(stored) == tensors
    if name != "FLMR":
        assert {n.split(".")[0] for n in names} == {
            "context_text_encoder", "query_text_encoder", "context_text_encoder_linear", "query_text_encoder_linear",
            "query_vision_encoder", "query_vision_projection", "transformer_mapping_input_linear",
            "transformer_mapping_network", "transformer_mapping_output_linear",
        }  # fmt: skip


# ---- the released layout


def settled(raw: dict, text_maxlen: int) -> dict:
    """A config.json with the defaults filled in and without what says nothing about the model."""
    full = {k: raw.get(k, v) for k, v in flmr_files.TOP.items()}
    text = {"query_maxlen": text_maxlen, **flmr_files.TEXT, **raw["text_config"]}
    full["text_config"] = {k: text[k] for k in (*flmr_files.TEXT, "query_maxlen")}
    full["vision_config"] = {k: {**flmr_files.VISION, **raw["vision_config"]}[k] for k in flmr_files.VISION}
    if not full["use_vision_encoder"]:
        for key in ("mapping_network_prefix_length", "query_concat_output_from_vision_encoder"):
            full.pop(key)
    return full


@pytest.mark.parametrize("source", FOLDERS, ids=lambda p: p.parent.name)
def test_written_back_the_folder_says_the_same(source, tmp_path):
    model = FLMR.from_pretrained(source)
    model.save_pretrained(tmp_path / "out", {"by": "test"}, layout="hub")
    before, after = read_weights(source), read_weights(tmp_path / "out")
    assert sorted(before) == sorted(after) and all(torch.equal(before[n], after[n]) for n in before)
    raws = [json.loads((p / "config.json").read_text()) for p in (source, tmp_path / "out")]
    length = model.config.eval.query_maxlen
    assert settled(raws[0], length) == settled(raws[1], length)
    for side in ("query", "context"):
        files = [p / f"{side}_tokenizer" for p in (source, tmp_path / "out")]
        words = [(f / "vocab.txt").read_text().split("\n") for f in files]
        assert [w for w in words[0] if w] == [w for w in words[1] if w]
        said = [json.loads((f / "tokenizer_config.json").read_text()) for f in files]
        for key in said[1]:
            assert said[0].get(key) == said[1][key] or key == "model_max_length", key
    again = FLMR.from_pretrained(tmp_path / "out")
    assert again.config.model_copy(update={"text_tower": ""}) == model.config.model_copy(update={"text_tower": ""})
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert again.provenance["by"] == "test"


def test_large_files_are_split(tmp_path):
    model = FLMR.from_pretrained(HUB)
    flmr_files.save(model, tmp_path / "out", shard_bytes=200_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) >= 3 and sorted({*index["weight_map"].values()}) == files
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in model.state_dict().values())
    again = FLMR.from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def renamed(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({new: t.clone() for n, t in tensors.items() for new in change(n)}, folder / "model.safetensors")


SPELLINGS = {
    "one vision level": lambda n: [n.replace("vision_model.vision_model.", "vision_model.")],
    "text_model": lambda n: [n.replace("bert_model", "text_model")],
    "mixed": lambda n: [n.replace("context_text_encoder.bert_model", "context_text_encoder.text_model")],
    "shared under context": lambda n: [n.replace("query_vision_", "context_vision_")],
    "both copies": lambda n: [n, n.replace("query_vision_", "context_vision_")] if "query_vision_" in n else [n],
    "buffers": lambda n: [n, n.replace("word_embeddings.weight", "position_ids")] if "word_embeddings" in n else [n],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_the_names_loads(spelling, folder):
    before = FLMR.from_pretrained(folder).state_dict()
    names = sorted(load_file(folder / "model.safetensors"))
    renamed(folder, SPELLINGS[spelling])
    assert sorted(load_file(folder / "model.safetensors")) != names
    after = FLMR.from_pretrained(folder).state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_weights_that_do_not_fit_are_one_sentence(folder):
    tensors = load_file(folder / "model.safetensors")
    lost = "query_vision_encoder.vision_model.vision_model.pre_layrnorm.weight"

    def loading(changed: dict, match: str) -> None:
        save_file({n: t.clone() for n, t in changed.items()}, folder / "model.safetensors")
        with pytest.raises(UserError, match=match):
            FLMR.from_pretrained(folder)

    loading({n: t for n, t in tensors.items() if n != lost}, r"1 missing \['vision.trunk.*pre_layrnorm.weight'\]")
    loading({**tensors, "query_text_encoder.head.weight": tensors[lost]}, "1 not understood .*head.weight")
    loading({**tensors, lost.replace("query_", "context_"): tensors[lost] + 1}, "two versions of one weight")
    loading({**tensors, lost: tensors[lost][:3]}, "pre_layrnorm.weight' is")


def test_folders_that_lack_something_are_one_sentence(folder):
    shutil.move(folder / "context_tokenizer", folder / "elsewhere")
    with pytest.raises(UserError, match=r"has no context_tokenizer/vocab\.txt.*copy them"):
        FLMR.from_pretrained(folder)
    shutil.move(folder / "elsewhere", folder / "context_tokenizer")
    words = (folder / "context_tokenizer" / "vocab.txt").read_text()
    (folder / "context_tokenizer" / "vocab.txt").write_text(words + "more\n")
    with pytest.raises(UserError, match=r"vocabularies of the two tokenizer folders .* differ"):
        FLMR.from_pretrained(folder)
    (folder / "context_tokenizer" / "vocab.txt").write_text(words)
    raw = json.loads((folder / "config.json").read_text())
    for name in ("context_tokenizer/tokenizer_config.json", "mapping_config/config.json", "config.json"):
        kept = (folder / name).read_text()
        (folder / name).write_text("[1]")
        with pytest.raises(UserError, match=r"holds a list, not an object of keys"):
            FLMR.from_pretrained(folder)
        (folder / name).write_text(kept)
    for change, match in [
        ({"text_config": {**raw["text_config"], "text_encoder_base_model": "xlm-roberta-base"}}, "'xlm-roberta-base'"),
        ({"query_concat_output_from_vision_encoder": False, "query_concat_output_from_text_encoder": False}, "both"),
        ({"transformer_mapping_config_base": "bert-base-uncased"}, "is 768 wide, the text encoder 24"),
        ({"text_config": {**raw["text_config"], "vocab_size": 1100}}, "know 1201 words, .* vocab_size of 1100"),
        ({"dim": "16"}, "config.json' .* has a value that makes no model .*dim"),
        ({"text_config": None}, "makes no model .TypeError"),
        ({"vision_config": {**raw["vision_config"], "hidden_act": "none"}}, "makes no model .KeyError"),
    ]:
        (folder / "config.json").write_text(json.dumps({**raw, **change}))
        with pytest.raises(UserError, match=match):
            FLMR.from_pretrained(folder)


def test_the_mapping_network_follows_its_own_config(folder):
    """Heads, activation and eps cannot be read off the weights."""
    path = folder / "mapping_config" / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "num_attention_heads": 2, "hidden_act": "relu", "layer_norm_eps": 1e-3}))
    model, plain = FLMR.from_pretrained(folder), FLMR.from_pretrained(HUB)
    layer = model.fusion.mapping["layer"][0]
    assert layer.attention.heads == 2 and {m.eps for m in layer.modules() if hasattr(m, "eps")} == {1e-3}
    assert torch.equal(layer.activation(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    patches, states = torch.randn(1, 5, 32), torch.randn(1, 6, 24)
    assert not torch.allclose(model.fusion.mapped_rows(patches, states), plain.fusion.mapped_rows(patches, states))
    model.save_pretrained(folder.parent / "out", layout="hub")
    assert FLMR.from_pretrained(folder.parent / "out").config.mapping == model.config.mapping


def test_a_mapping_network_may_be_spelt_out(tmp_path):
    """run.init: what a config leaves to the text tower is the same as its numbers, and not the same as others."""
    model = variant(tmp_path)
    spelt = [model.config.model_copy(update={"mapping": Mapping(heads=heads, width=64)}) for heads in (2, 4)]
    left_open, same, other = (model.resolved(c) for c in (model.config, *spelt))
    artifacts.check_compatible(left_open, same)
    with pytest.raises(UserError, match=r"model\.mapping\.heads: 2 there, 4 now"):
        artifacts.check_compatible(left_open, other)
    plain = variant(tmp_path, variant="flmr")
    assert plain.resolved(plain.config) is plain.config


def test_separate_vision_encoders(tmp_path):
    model = variant(tmp_path, separate_vision=True)
    with torch.no_grad():
        for p in model.document_vision.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(tmp_path / "hub", layout="hub")
    model.save_pretrained(tmp_path / "own")
    sides = {n.split(".")[0] for n in load_file(tmp_path / "hub" / "model.safetensors")}
    assert {f"{s}_vision_{part}" for s in ("query", "context") for part in ("encoder", "projection")} <= sides
    documents = tiny.mixed_documents(tmp_path)
    with torch.no_grad():
        wanted = model.encode_documents(model.collate_documents(documents)).embeddings
        for name in ("hub", "own"):
            again = models.from_pretrained(tmp_path / name)
            assert again.config.separate_vision and same_vectors(model, again, tmp_path)
            assert torch.equal(again.encode_documents(again.collate_documents(documents)).embeddings, wanted)
        model.document_vision.load_state_dict(model.vision.state_dict())
        assert not torch.allclose(model.encode_documents(model.collate_documents(documents)).embeddings, wanted)


@pytest.mark.parametrize("name", ["flmr", "preflmr"])
def test_layouts_convert_into_each_other(name, tmp_path):
    model = variant(tmp_path, variant=name)
    originals.save_original(model, tmp_path / "hub")
    there = originals.load_original(tmp_path / "hub")
    there.save_pretrained(tmp_path / "own")
    back = models.from_pretrained(tmp_path / "own")
    assert type(back) is FLMR and back.config.variant == name and same_vectors(model, back, tmp_path)


def test_what_the_released_layout_cannot_say(tmp_path):
    vision = {"tower": str(tiny.vision_tower(tmp_path / "v")), "grid": 1}
    for changes, match in [({"query_marker": "fish"}, "other markers"), ({"vision": vision}, "other layers or a grid")]:
        with pytest.raises(UserError, match=match):
            variant(tmp_path, **changes).save_pretrained(tmp_path / "hub", layout="hub")
    assert not (tmp_path / "hub").exists()


# ---- config


def test_a_variant_sets_what_is_not_said():
    plain, pre = check(Config, {}, "model"), check(Config, {"variant": "preflmr"}, "model")
    assert (plain.separate_text, plain.mapping, plain.instruction_separator) == (False, None, None)
    assert pre.separate_text and pre.mapping.layers == 1 and pre.instruction_separator == ":"
    mixed = check(Config, {"variant": "preflmr", "separate_text": False, "mapping": None}, "model")
    assert not mixed.separate_text and mixed.mapping is None and mixed.instruction_separator == ":"
    with pytest.raises(UserError, match="vision is null, so mapping must be null"):
        check(Config, {"variant": "preflmr", "vision": None}, "model")
    with pytest.raises(UserError, match=r"rows \['mapped'\] leave nothing"):
        check(Config, {"train": {"rows": ["mapped"]}}, "model")


def test_without_vision_it_is_colbert(tmp_path):
    model = variant(tmp_path, variant="flmr", vision=None)
    other = tiny.retriever("colbert", tmp_path / "towers")
    asked = tiny.queries(tmp_path, images=False)
    with torch.no_grad():
        pairs = [m.encode_queries(m.collate_queries(asked)).embeddings for m in (model, other)]
    assert torch.equal(*pairs) and model.identity() == other.identity()
    with pytest.raises(UserError, match="reads text only"):
        model.collate_queries(tiny.queries(tmp_path))
