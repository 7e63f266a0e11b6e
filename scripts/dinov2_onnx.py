"""DINOv2 ViT-S/14 out of an exported ONNX graph, under the key names that the hub's checkpoints use."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_json

DINOV2_CONFIG = {
    "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12,
    "num_attention_heads": 6, "mlp_ratio": 4, "patch_size": 14, "image_size": 518, "num_channels": 3,
    "hidden_act": "gelu", "layer_norm_eps": 1e-6, "layerscale_value": 1.0, "qkv_bias": True, "use_swiglu_ffn": False,
}  # fmt: skip
DINOV2_PREPROCESSOR = {
    # 224 and not the usual 256 -> 224: a square picture keeps its rim.
    "image_processor_type": "BitImageProcessor", "do_convert_rgb": True,
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


def matmul_key(node_name: str) -> str:
    """``/backbone/encoder/layer.0/mlp/fc1/MatMul`` -> ``encoder.layer.0.mlp.fc1.weight``."""
    return ".".join(node_name.strip("/").removeprefix("backbone/").removesuffix("/MatMul").split("/")) + ".weight"


def backbone_state(initializers: Mapping[str, Any], matmuls: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Hub-named arrays of the ViT in an exported graph.

    ``initializers`` maps names to float arrays; ``matmuls`` are pairs (node name, name of its second operand).
    The export keeps the names of biases, norms and convolutions (``backbone.<key>``), but stores each linear weight
    transposed ``[in, out]`` under a number, so that only the node tells which layer it is; the position embedding
    ``[1, 1 + N, D]`` is cut into its class row and its patch rows. Raises UserError when a piece is not there.
    """
    import numpy as np

    state = {k.removeprefix("backbone."): v for k, v in initializers.items() if k.startswith("backbone.")}
    state |= {matmul_key(node): initializers[weight].T for node, weight in matmuls if weight in initializers}
    if "embeddings.cls_token" not in state:
        raise UserError("the ONNX graph holds no backbone.embeddings.cls_token: it is not the expected DINOv2 export.")
    width = state["embeddings.cls_token"].shape[-1]
    loose = [v for k, v in initializers.items() if k.startswith("onnx::") and v.ndim == 3 and v.shape[-1] == width]
    rows = sorted(loose, key=lambda v: v.shape[1])
    if len(rows) != 2 or rows[0].shape[1] != 1:
        raise UserError(f"expected a class row and patch rows of positions, found shapes {[v.shape for v in rows]}.")
    state["embeddings.position_embeddings"] = np.concatenate(rows, axis=1)
    state["embeddings.mask_token"] = np.zeros((1, width), np.float32)  # only used in pre-training, absent from exports
    return {k: np.ascontiguousarray(v) for k, v in sorted(state.items())}


def write_dinov2(archive: zipfile.ZipFile, inside: str, out: Path) -> None:
    """Turn the exported graph's backbone into config.json, model.safetensors and preprocessor_config.json."""
    try:
        import onnx
    except ImportError as error:
        raise UserError("reading the DINOv2 graph needs onnx: pip install 'onnx>=1.16'.") from error
    from safetensors.numpy import save

    graph = onnx.load_model_from_string(archive.read(inside)).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    matmuls = [(n.name, n.input[1]) for n in graph.node if n.op_type == "MatMul"]
    weights = save(backbone_state(arrays, matmuls), metadata={"format": "pt"})
    (out / "model.safetensors").write_bytes(weights)
    write_json(out / "config.json", DINOV2_CONFIG)
    write_json(out / "preprocessor_config.json", DINOV2_PREPROCESSOR)
