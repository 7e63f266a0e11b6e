"""Images and checkpoints that are broken, strange or hostile."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from core import foreign
from core.errors import UserError
from core.records import Document, ImageRef, Query
from core.store import write_store
from core.visual import StoredVisual
from models import artifacts, colbert, originals
from models.keys.mire import COLBERT_PREFIXES, to_ours, to_theirs
from models.keys.towers import canonical, match
from models.towers.images import PixelSource, decode, read_bytes
from models.towers.text import load_text_tower
from models.towers.vision import VisionConfig, load_vision_tower
from tests import tiny


def encoded(image: Image.Image, format_: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format=format_, **options)
    return out.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.linspace(0, 255, 20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)).convert(mode)


# ---- images


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_every_mode_becomes_rgb(mode):
    format_ = "JPEG" if mode == "CMYK" else "PNG"
    image = decode(ImageRef("x", data=encoded(picture(mode), format_)))
    assert image.mode == "RGB" and image.size == (30, 20)


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.linspace(0, 65535, 20 * 30).reshape(20, 30).astype(np.uint16)
    image = decode(ImageRef("x", data=encoded(Image.fromarray(values), "PNG")))
    assert np.abs(np.asarray(image)[..., 0].astype(int) - values // 257).max() <= 1


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(ImageRef("x", data=encoded(clear, "PNG"))).getpixel((0, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(ImageRef("x", data=data)).getpixel((0, 0)) == (255, 0, 0)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(ImageRef("x", data=encoded(picture(), "JPEG", exif=exif))).size == (20, 30)


@pytest.mark.parametrize("spoil", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"not an image at all"])
@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_broken_images_are_named(tmp_path, spoil, format_):
    (tmp_path / "bad.img").write_bytes(spoil(encoded(picture().resize((300, 200)), format_)))
    with pytest.raises(UserError, match=r"'picture-7' cannot be decoded .*bad\.img"):
        decode(ImageRef("picture-7", path=str(tmp_path / "bad.img")))


def test_a_picture_that_a_processor_would_blow_up_is_refused():
    decode(ImageRef("x", data=encoded(Image.new("L", (1, 1000)), "PNG")))
    with pytest.raises(UserError, match="'thread' is 1x1001 pixels"):
        decode(ImageRef("thread", data=encoded(Image.new("L", (1, 1001)), "PNG")))


def test_missing_images_are_named(tmp_path):
    with pytest.raises(UserError, match=r"'a' is missing: no file '.*gone\.png'"):
        read_bytes(ImageRef("a", path=str(tmp_path / "gone.png")))
    with pytest.raises(UserError, match="is the folder"):
        read_bytes(ImageRef("a", path=str(tmp_path)))


def test_base64_lines_of_a_tsv(tmp_path):
    import base64

    data = encoded(picture(), "PNG")
    (tmp_path / "imgs.tsv").write_bytes(b"1\t!!!\n2\t" + base64.b64encode(data) + b"\n")
    assert read_bytes(ImageRef("2", tsv=(str(tmp_path / "imgs.tsv"), 6))) == data
    with pytest.raises(UserError, match="'1' is not valid base64"):
        read_bytes(ImageRef("1", tsv=(str(tmp_path / "imgs.tsv"), 0)))


def test_regions_are_cropped_and_checked():
    data = encoded(picture(), "PNG")
    assert decode(ImageRef("x", data=data, box=(5, 5, 15, 12))).size == (10, 7)
    with pytest.raises(UserError, match="does not lie within 30x20"):
        decode(ImageRef("x", data=data, box=(5, 5, 40, 12)))


# ---- pickles


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class HostileCall:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w')",)


@pytest.mark.parametrize("kind", [Hostile, HostileCall])
def test_a_malicious_pickle_does_not_execute(tmp_path, kind):
    marker = tmp_path / "executed"
    torch.save({"model": {"w": torch.ones(2)}, "config": kind(marker)}, tmp_path / "evil.pth")
    try:
        loaded = foreign.load(tmp_path / "evil.pth")
    except UserError as error:
        assert "evil.pth' is refused" in str(error)
    else:
        assert isinstance(loaded["config"], foreign.Stub)
    assert not marker.exists()
    # The same file does execute where nothing restrains it, so the test can fail.
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert marker.exists()


def test_unknown_classes_become_stubs_and_configs_resolve(tmp_path):
    from omegaconf import OmegaConf

    config = OmegaConf.create({"a": {"b": 3, "c": "${a.b}x"}, "d": [1, None]})
    torch.save({"config": config, "w": torch.arange(3)}, tmp_path / "x.pth")
    loaded = foreign.load(tmp_path / "x.pth")
    assert isinstance(loaded["config"], foreign.Stub) and loaded["w"].tolist() == [0, 1, 2]
    assert foreign.resolve_config(loaded["config"]) == {"a": {"b": 3, "c": "3x"}, "d": [1, None]}


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"a": 1})])
def test_unreadable_checkpoints(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pth'"):
        foreign.load(tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not exist"):
        foreign.load(tmp_path / "y.pth")


# ---- key maps and layouts


def test_tower_names_map_both_ways():
    new = ["embeddings.class_embedding", "encoder.layers.0.self_attn.q_proj.weight"]
    old = [f"vision_model.{n}" for n in new]
    for own, foreign_names in ((new, old), (old, new), (new, new), (old, old)):
        names, left = match("clip_vision_model", own, foreign_names)
        assert names == dict(zip(own, foreign_names)) and not left
    full = [*old, "text_model.embeddings.token_embedding.weight", "logit_scale", "vision_model.embeddings.position_ids"]
    assert match("clip_vision_model", new, full)[1] == []
    dino = {"encoder.layer.3.attention.q_proj.bias": "encoder.layer.3.attention.attention.query.bias",
            "encoder.layer.3.attention.o_proj.weight": "encoder.layer.3.attention.output.dense.weight"}  # fmt: skip
    for new_name, hub in dino.items():
        assert canonical("dinov2", new_name) == hub == canonical("dinov2", hub)
        assert match("dinov2", [hub], [f"dinov2.{new_name}"]) == ({hub: f"dinov2.{new_name}"}, [])


def test_original_names_map_both_ways():
    theirs = {
        "model.bert.pooler.dense.bias": "text.trunk.pooler.dense.bias",
        "model.linear.weight": "text.linear.weight",
        "vision_tower.vision_tower.vision_model.pre_layrnorm.bias": "vision.trunk.vision_model.pre_layrnorm.bias",
        "query_fusion.split_mlp.2.weight": "fusion.split_mlp.2.weight",
    }
    for name, ours in theirs.items():
        assert to_ours(name) == to_ours(f"module.{name}") == ours and to_theirs(ours) == name
    assert to_ours("model.bert.embeddings.position_ids") is None
    assert to_ours("something.else") == "?something.else"
    assert to_theirs("text.linear.weight", COLBERT_PREFIXES) == "linear.weight"


@pytest.mark.parametrize("name", ["colbert", "mire", "ret_xknow", "mire_preflmr"])
def test_conversion_there_and_back(tmp_path, name):
    from runs.convert_checkpoint import run as convert

    model = tiny.retriever(name, tmp_path / "towers")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(tmp_path / "ours")
    convert([str(tmp_path / "ours"), str(tmp_path / "original"), "--to", "original"])
    convert([str(tmp_path / "original"), str(tmp_path / "again")])
    import models

    again = models.from_pretrained(tmp_path / "again")
    before, after = artifacts.portable_state(model), artifacts.portable_state(again)
    assert set(before) == set(after) and all(torch.equal(before[k], after[k]) for k in before)
    with pytest.raises(UserError, match="exists; give a folder that does not"):
        convert([str(tmp_path / "ours"), str(tmp_path / "again")])
    with pytest.raises(UserError, match="already has that layout"):
        convert([str(tmp_path / "ours"), str(tmp_path / "x"), "--to", "ours"])


def test_a_fusion_only_checkpoint_goes_onto_towers(tmp_path):
    model = tiny.retriever("mire", tmp_path / "towers")
    file = originals.save_original(model, tmp_path / "original")
    payload = foreign.load(file)
    fusion = {k: v + 0.5 for k, v in payload["model"].items() if k.startswith("query_fusion.")}
    torch.save({"model": fusion}, file)
    loaded = originals.load_original(file)
    assert torch.equal(loaded.fusion.k_state.weight, model.fusion.k_state.weight + 0.5)
    assert torch.equal(loaded.text.linear.weight, model.text.linear.weight)
    del fusion["query_fusion.k_state.weight"]
    torch.save({"model": fusion}, file)
    with pytest.raises(UserError, match=r"missing \['k_state.weight'\]"):
        originals.load_original(file)


def test_a_whole_checkpoint_needs_no_base_models(tmp_path, capsys):
    """Without the vision tower's folder its shape is read off the weights."""
    model = tiny.retriever("mire", tmp_path / "towers")
    file = originals.save_original(model, tmp_path / "original")
    (tmp_path / "towers").rename(tmp_path / "elsewhere")
    loaded = originals.load_original(file)
    assert "shape is read off the weights" in capsys.readouterr().out
    name = "vision.trunk.vision_model.embeddings.class_embedding"
    assert torch.equal(artifacts.portable_state(loaded)[name], artifacts.portable_state(model)[name])


# ---- weights left at init


def test_fresh_weights_must_be_declared(tmp_path):
    section = tiny.model_section("colbert", tmp_path / "a", text_tower=str(tiny.text_tower(tmp_path / "p", False)))
    import models
    from core.config import check

    module = models.module("colbert")
    with pytest.raises(UserError, match=r"would stay random: text\.linear\.weight"):
        module.build(check(module.Config, section, "model"))
    module.build(check(module.Config, {**section, "fresh": ["linear"]}, "model"))
    with pytest.raises(UserError, match=r"model\.fresh names \['linear'\], but .* contains these weights"):
        tiny.retriever("colbert", tmp_path / "b", fresh=["linear"])


def test_fresh_names_are_whole_components():
    missing = ["text.trunk.encoder.weight", "fusion.k_state.weight"]
    for fresh in (["t", "f"], ["text.tr", "fusion"], ["ext", "fusion"]):
        with pytest.raises(UserError, match=r"would stay random: text\.trunk"):
            artifacts.settle_fresh(missing, fresh, "x")
    artifacts.settle_fresh(missing, ["trunk", "fusion.k_state"], "x")


def test_weights_of_another_structure_are_refused(tmp_path):
    from models import mire

    def config(**changes):
        return mire.Config(vision={"tower": "a", **changes.pop("vision", {})}, **changes)

    there = config()
    same = config(vision={"tower": "b"}, mask_policy="clean", visual_noise=0.1, frozen=["vision", "text"], fresh=[],
                  text_tower="elsewhere", train={"rows": ["global"], "query_maxlen": 40})  # fmt: skip
    artifacts.check_compatible(there, same)
    wanted = config(num_heads=3, residual=True, dim=64, doc_marker="[unused7]", vision={"grid": 4, "norm": True})
    with pytest.raises(UserError) as error:
        artifacts.check_compatible(there, wanted)
    for line in ("model.num_heads: 12 there, 3 now", "model.residual", "model.dim: 128", "model.doc_marker",
                 "model.vision.grid: null there, 4 now", "model.vision.norm"):  # fmt: skip
        assert line in str(error.value)
    with pytest.raises(UserError, match=r"model\.name: 'mire' there, 'colbert' now"):
        artifacts.check_compatible(there, colbert.Config())
    with pytest.raises(UserError, match=r"model\.attend_to_mask_tokens"):
        artifacts.check_compatible(colbert.Config(), colbert.Config(attend_to_mask_tokens=True))


def test_old_bert_names_are_read(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny.text_tower(tmp_path / "old")
    state = load_file(folder / "model.safetensors")
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v + 0.25
        for k, v in state.items()
    }
    assert set(old) != set(state)
    save_file(old, folder / "model.safetensors")
    tower, missing, _ = load_text_tower(str(folder), 16)
    assert not missing
    name = "embeddings.LayerNorm.weight"
    assert torch.equal(tower.trunk.state_dict()[name], state[f"bert.{name}"] + 0.25)
    assert to_ours(f"model.bert.{name}".replace("weight", "gamma")) == f"text.trunk.{name}"


def test_broken_towers_are_user_errors(tmp_path):
    folder = tiny.text_tower(tmp_path / "text")
    content = (folder / "config.json").read_text()
    wrong_type = content.replace('"hidden_size": 32', '"hidden_size": "x"')
    for spoiled in (content[:20], "[1]", '{"model_type": "martian"}', wrong_type):
        (folder / "config.json").write_text(spoiled)
        with pytest.raises(UserError, match=r"config\.json' does not describe a tower|cannot be built"):
            load_text_tower(str(folder), 16)
    (folder / "config.json").write_text(content)
    for data in (b"", b"garbage", None):
        (folder / "model.safetensors").unlink(missing_ok=True)
        torch.save({"a": torch.ones(500)}, folder / "pytorch_model.bin")
        whole = (folder / "pytorch_model.bin").read_bytes()
        (folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2] if data is None else data)
        with pytest.raises(UserError, match=r"pytorch_model\.bin' cannot be read"):
            load_text_tower(str(folder), 16)
    vision = tiny.vision_tower(tmp_path / "vision")
    (vision / "config.json").write_text('{"model_type": "martian"}')
    with pytest.raises(UserError, match="does not describe a tower"):
        load_vision_tower(VisionConfig(tower=str(vision)))


def test_what_load_original_takes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"the checkpoint '.*gone\.pth' does not exist"):
        originals.load_original(tmp_path / "gone.pth")
    folder = tiny.text_tower(tmp_path / "colbert-ir" / "colbertv2.0")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path / name))
    assert originals.load_original("colbert-ir/colbertv2.0").config.text_tower == "colbert-ir/colbertv2.0"
    with pytest.raises(UserError, match="is a single file"):
        originals.load_original(folder / "model.safetensors")
    (folder / "artifact.metadata").write_text('{"similarity": "l2"}')
    with pytest.raises(UserError, match="similarity 'l2'; only 'cosine'"):
        originals.load_original(folder)


def test_conversions_keep_the_sources_provenance(tmp_path):
    import json

    import models

    tiny.retriever("colbert", tmp_path / "towers").save_pretrained(tmp_path / "ours", {"data": "tiny"})
    originals.save_original(models.from_pretrained(tmp_path / "ours"), tmp_path / "original")
    facts = json.loads((tmp_path / "original" / "provenance.json").read_text())
    assert facts["source"]["data"] == "tiny" and facts["versions"]["torch"]
    originals.load_original(tmp_path / "original").save_pretrained(tmp_path / "again")
    facts = json.loads((tmp_path / "again" / "provenance.json").read_text())
    assert facts["source"]["source"]["data"] == "tiny"


def test_a_processors_description_is_the_same_in_every_release(tmp_path):
    source = PixelSource(tiny.vision_tower(tmp_path))
    assert source.describe() == {
        "crop_size": {"height": 24, "width": 24}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3,
        "rescale_factor": 1 / 255, "size": {"shortest_edge": 24},
    }  # fmt: skip


def test_a_feature_cache_of_another_tower_is_refused(tmp_path):
    model = tiny.retriever("mire", tmp_path / "towers")
    ref = tiny.image(tmp_path, "a.png")
    good, bad = model.visual_spec(), {**model.visual_spec(), "weights": "0123"}
    rows = np.zeros((10, 24), np.float16)
    query = Query("q", "what", (ref,))
    model.collate_queries([query], StoredVisual(write_store(tmp_path / "good", good, [("a.png", "d", rows)])))
    with pytest.raises(UserError, match=r"made by another tower \(differing: weights\)"):
        model.collate_queries([query], StoredVisual(write_store(tmp_path / "bad", bad, [("a.png", "d", rows)])))


def test_several_images_are_refused(tmp_path):
    model = tiny.retriever("mire", tmp_path / "towers")
    ref = tiny.image(tmp_path, "a.png")
    with pytest.raises(UserError, match="'q' has 2 images; mire takes one"):
        model.collate_queries([Query("q", "what", (ref, ref))])
    with pytest.raises(UserError, match="has an image, but 'colbert' reads text only"):
        tiny.retriever("colbert", tmp_path / "c").collate_documents([Document("d", "x", (ref,))])


@pytest.mark.parametrize(("text_tower", "message"), [
    ("ckpts/nothing", "does not exist; put the model there"),
    ("nobody/nothing-of-this-name", "neither a local folder nor reachable"),
])  # fmt: skip
def test_missing_towers(tmp_path, monkeypatch, text_tower, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        tiny.retriever("colbert", tmp_path, text_tower=text_tower)
