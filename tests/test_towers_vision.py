"""Vision towers of every family against transformers' own layers, by hooks that know nothing of ``hidden_states``."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import UserError
from models.artifacts import portable_name
from models.keys.towers import canonical, match
from models.towers.vision import VisionConfig, VisionTower, load_vision_tower, vision_trunk_config
from tests import tiny, tiny_towers

FAMILIES = ["clip", "clip_both_halves", "siglip", "siglip_both_halves", "dinov2", "dinov2_registers"]
FRONT = {"clip": 1, "siglip": 0, "dinov2": 1}  # tokens before the patches, without registers
PIXELS = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def layers_of(model, pixels=PIXELS):
    """What enters the first encoder layer, then what leaves each: seen by hooks on the transformers model."""
    half = getattr(model, "vision_model", model)
    stack = next(m for n, m in half.named_modules() if re.search(r"(^|\.)(layers|layer)$", n))
    seen = []

    def entering(_, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    stack[0].register_forward_pre_hook(entering, with_kwargs=True)
    for layer in stack:
        layer.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        out = half(pixel_values=pixels)
    return seen, out


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_of_transformers(family, tmp_path):
    model = tiny_towers.vision_model(family)
    model.save_pretrained(tmp_path)
    seen, out = layers_of(model)
    assert len(seen) == 4
    front = FRONT[re.split("_", family)[0]] + (2 if family == "dinov2_registers" else 0)
    top = 2 if family.startswith("siglip") else -1
    for global_, patch in [(-1, -2), (-1, -1), (-1 if top == 2 else 1, 0), (-1 if top == 2 else -3, 2)]:
        config = VisionConfig(tower=str(tmp_path), global_layer=global_, patch_layer=patch)
        tower, missing, _ = load_vision_tower(config)
        assert not missing
        found_global, found_patches = tower(PIXELS)
        assert torch.equal(found_patches, seen[patch][:, front:]) and found_patches.shape == (2, 9, 24)
        wanted = out.pooler_output if family.startswith("siglip") else seen[global_][:, 0]
        # The head's attention takes another kernel where nothing needs a gradient: rounding differs.
        torch.testing.assert_close(found_global, wanted, rtol=0, atol=2e-6 if family.startswith("siglip") else 0)
        assert found_global.shape == (2, tower.hidden_size)


@pytest.mark.parametrize("family", FAMILIES)
def test_final_norm(family, tmp_path):
    model = tiny_towers.vision_model(family)
    model.save_pretrained(tmp_path)
    seen, out = layers_of(model)
    half = getattr(model, "vision_model", model)
    tower, _, _ = load_vision_tower(VisionConfig(tower=str(tmp_path), patch_layer=-1, norm=True))
    global_, patches = tower(PIXELS)
    norm = half.layernorm if family.startswith("dinov2") else half.post_layernorm
    with torch.no_grad():
        wanted = norm(seen[-1])
    assert torch.equal(patches, wanted[:, -9:]) and not torch.equal(patches, seen[-1][:, -9:])
    if not family.startswith("siglip"):
        assert torch.equal(global_, wanted[:, 0])
    torch.testing.assert_close(global_, out.pooler_output)  # all three pool the normed last layer


def test_siglips_global_vector_is_its_attention_pooling(tmp_path):
    model = tiny_towers.vision_model("siglip")
    model.save_pretrained(tmp_path)
    half = getattr(model, "vision_model", model)
    seen, _ = layers_of(model)
    head = half.head
    with torch.no_grad():
        states = half.post_layernorm(seen[-1])
        pooled = head.attention(head.probe.repeat(2, 1, 1), states, states)[0]
        pooled = (pooled + head.mlp(head.layernorm(pooled)))[:, 0]
    torch.testing.assert_close(load_vision_tower(VisionConfig(tower=str(tmp_path)))[0](PIXELS)[0], pooled)


def test_cnn_gives_its_cells_and_their_mean(tmp_path):
    model = tiny_towers.cnn(tmp_path)
    tower, missing, _ = load_vision_tower(VisionConfig(tower=str(tmp_path), patch_layer=-1))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        grid = model(pixels)
    global_, patches = tower(pixels)
    assert not missing and grid.shape == (2, 24, 4, 4) and patches.shape == (2, 16, 24)
    assert torch.equal(patches[:, 6], grid[:, :, 1, 2])  # reading order
    torch.testing.assert_close(global_, grid.mean((2, 3)))
    pooled = load_vision_tower(VisionConfig(tower=str(tmp_path), patch_layer=-1, grid=2))[0](pixels)[1]
    torch.testing.assert_close(pooled[:, 1], grid[:, :, :2, 2:].mean((2, 3)))


def test_cnn_layers_are_what_they_say():
    """One block by hand: expansion, depthwise with TensorFlow's padding, projection, shortcut."""
    from torch.nn.functional import conv2d, pad, relu6

    from models.towers.cnn import _Block

    torch.manual_seed(0)
    block = _Block(4, 6, 3, 2, 2, 1e-3).eval()
    x = torch.randn(1, 4, 8, 8)

    def step(x, layer, **options):
        x, norm = conv2d(x, layer.conv.weight, **options), layer.norm
        scale = norm.weight / torch.sqrt(norm.running_var + 1e-3)
        return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    with torch.no_grad():
        wide = relu6(step(x, block.expand))
        deep = relu6(step(pad(wide, (0, 1, 0, 1)), block.depthwise, stride=2, groups=8))
        torch.testing.assert_close(block(x), step(deep, block.project))
        same = _Block(4, 4, 5, 1, 1, 1e-3).eval()
        inner = relu6(step(pad(x, (2, 2, 2, 2)), same.depthwise, groups=4))
        torch.testing.assert_close(same(x), x + step(inner, same.project))


@pytest.mark.parametrize(("family", "changes", "message"), [
    ("cnn", {}, "patch_layer is -2, but a 'efficientnet_lite' tower gives its last layer only; set it to -1"),
    ("cnn", {"patch_layer": -1, "global_layer": 2}, "global_layer is 2"),
    ("cnn", {"patch_layer": -1, "norm": True}, "has no final norm; set it to false"),
    ("siglip", {"global_layer": -2}, "global_layer is -2, but a 'siglip_vision_model'"),
    ("clip", {"patch_layer": 4}, "patch_layer is 4, but this tower's layers are -4 to 3"),
    ("dinov2", {"global_layer": -5}, "global_layer is -5"),
])  # fmt: skip
def test_layers_that_do_not_exist(family, changes, message, tmp_path):
    if family == "cnn":
        tiny_towers.cnn(tmp_path)
    else:
        tiny_towers.vision_model(family).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        load_vision_tower(VisionConfig(tower=str(tmp_path), **changes))


def test_towers_that_are_refused(tmp_path):
    from transformers import Siglip2Config, SiglipVisionConfig, ViTConfig

    Siglip2Config().save_pretrained(tmp_path / "naflex")
    with pytest.raises(UserError, match=r"naflex\) are not supported; use one of fixed resolution"):
        load_vision_tower(VisionConfig(tower=str(tmp_path / "naflex")))
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="towers of type 'vit' are not supported"):
        load_vision_tower(VisionConfig(tower=str(tmp_path / "vit")))
    SiglipVisionConfig(vision_use_head=False, **tiny_towers.SIZES).save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match="no attention-pooled head"):
        load_vision_tower(VisionConfig(tower=str(tmp_path / "headless")))


# ---- names: transformers renames modules in memory between releases, and files of both styles are about

PREFIXED = """embeddings.patch_embedding.weight encoder.layers.3.self_attn.q_proj.bias post_layernorm.bias
encoder.layers.0.layer_norm1.weight encoder.layers.0.mlp.fc1.weight""".split()  # noqa: SIM905 (reads better so)
DINO = [("query.weight", "q_proj.weight"), ("key.bias", "k_proj.bias"), ("value.weight", "v_proj.weight")]
NAMES = {  # family -> (in files on the hub, in memory since some 5.x)
    "clip_vision_model": [(f"vision_model.{n}", n) for n in [*PREFIXED, "embeddings.class_embedding",
                                                             "pre_layrnorm.weight"]],
    "siglip_vision_model": [(f"vision_model.{n}", n) for n in [*PREFIXED, "head.probe", "head.attention.in_proj_weight",
                                                               "head.layernorm.bias", "head.mlp.fc2.weight"]],
    "dinov2": [
        *((f"encoder.layer.2.attention.attention.{a}", f"encoder.layer.2.attention.{b}") for a, b in DINO),
        ("encoder.layer.2.attention.output.dense.bias", "encoder.layer.2.attention.o_proj.bias"),
        ("encoder.layer.2.layer_scale1.lambda1", "encoder.layer.2.layer_scale1.lambda1"),
        ("embeddings.cls_token", "embeddings.cls_token"), ("layernorm.weight", "layernorm.weight"),
        ("embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.projection.weight"),
    ],
    "efficientnet_lite": [(n, n) for n in ("stem.conv.weight", "blocks.3.depthwise.norm.running_var")],
}  # fmt: skip
NAMES["dinov2_with_registers"] = [*NAMES["dinov2"], ("embeddings.register_tokens", "embeddings.register_tokens")]


@pytest.mark.parametrize("family", NAMES)
def test_names_both_ways(family):
    files, memory = map(list, zip(*NAMES[family]))
    for hub, new in NAMES[family]:
        assert canonical(family, hub) == canonical(family, new) == hub
    assert match(family, memory, files) == (dict(zip(memory, files)), [])
    assert match(family, files, memory) == (dict(zip(files, memory)), [])


def new_style(family, name):
    """A hub name as the newest releases have it in memory."""
    if family.startswith(("clip", "siglip")):
        return name.removeprefix("vision_model.")
    for old, new in [("attention.attention.query", "attention.q_proj"), ("attention.attention.key", "attention.k_proj"),
                     ("attention.attention.value", "attention.v_proj"),
                     ("attention.output.dense", "attention.o_proj")]:  # fmt: skip
        name = name.replace(old, new) if family.startswith("dinov2") else name
    return name


@pytest.mark.parametrize("style", ["hub", "new"])
@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "dinov2_registers"])
def test_files_of_both_styles_load(family, style, tmp_path):
    model = tiny_towers.vision_model(family)
    model.save_pretrained(tmp_path)
    wanted = load_vision_tower(VisionConfig(tower=str(tmp_path)))[0](PIXELS)
    kind = vision_trunk_config(tmp_path).model_type
    hub = {canonical(kind, k): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    named = hub if style == "hub" else {new_style(kind, k): v for k, v in hub.items()}
    assert len(named) == len(hub)
    changed = {k: v.clone() for k, v in named.items()} | {"vision_model.embeddings.position_ids": torch.arange(3)}
    save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tower, missing, _ = load_vision_tower(VisionConfig(tower=str(tmp_path)))
    assert not missing
    for found, expected in zip(tower(PIXELS), wanted):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["cnn", "siglip", "dinov2_registers"])
def test_checkpoints_with_other_towers(family, tmp_path):
    """A retriever on each tower is saved under hub names and comes back the same."""
    import json

    import models

    if family == "cnn":
        tiny_towers.cnn(tmp_path / "v")
    else:
        tiny_towers.vision_model(family).save_pretrained(tmp_path / "v")
    processor = (tiny.vision_tower(tmp_path / "clip") / "preprocessor_config.json").read_text()
    (tmp_path / "v" / "preprocessor_config.json").write_text(processor)
    section = {"tower": str(tmp_path / "v"), **({"patch_layer": -1} if family == "cnn" else {})}
    model = tiny.retriever("mire", tmp_path, vision=section)
    batch = model.collate_queries(tiny.queries(tmp_path))
    with torch.no_grad():
        wanted = model.encode_queries(batch).embeddings
    model.save_pretrained(tmp_path / "saved")
    again = models.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.encode_queries(batch).embeddings, wanted)
    assert again.visual_spec() == model.visual_spec()
    kind = json.loads((tmp_path / "saved" / "vision" / "config.json").read_text())["model_type"]
    for name in load_file(tmp_path / "saved" / "model.safetensors"):
        if name.startswith("vision.trunk."):
            assert portable_name(model, name) == name and canonical(kind, name.removeprefix("vision.trunk.")) in name


def test_a_tower_never_trains_and_its_key_names_the_layers(tmp_path):
    tiny_towers.cnn(tmp_path)
    config = VisionConfig(tower=str(tmp_path), patch_layer=-1)
    tower = VisionTower(vision_trunk_config(tmp_path), config).train()
    assert not any(m.training for m in tower.modules()) and not any(p.requires_grad for p in tower.parameters())
    key = tower.fingerprint({"size": 3})
    assert (key["patch_layer"], key["global_layer"], key["norm"], key["grid"]) == (-1, -1, False, None)
    with torch.no_grad():
        tower.trunk.stem.norm.running_mean += 1
    assert tower.fingerprint({"size": 3})["weights"] != key["weights"]
