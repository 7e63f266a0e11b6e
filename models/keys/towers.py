"""Tower weight names. transformers renames modules in memory between releases; files keep the hub's names.

``canonical`` takes either style to the hub's style, so two name sets are matched by comparing canonical forms.
"""

from __future__ import annotations

import re

DINO = [
    (re.compile(r"\.attention\.q_proj\."), ".attention.attention.query."),
    (re.compile(r"\.attention\.k_proj\."), ".attention.attention.key."),
    (re.compile(r"\.attention\.v_proj\."), ".attention.attention.value."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
]

LAYER_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""BERT files converted from TensorFlow."""

IGNORED = re.compile(
    r"(^|\.)position_ids$|^(text_model|text_projection|visual_projection|logit_scale|logit_bias)(\.|$)"
)
"""Buffers of old releases, and the text half of a full CLIP/SigLIP file."""


def canonical(family: str, name: str) -> str:
    """Hub-style name of a vision or text tower weight.

    family: ``config.model_type`` of the tower. CLIP and SigLIP have the prefix ``vision_model.`` in files and, since
    transformers 5.x, not in memory; DINOv2's projections were renamed; BERT's LayerNorm was.
    """
    if family.startswith(("clip", "siglip")):
        return name if name.startswith(("vision_model.", "text_model.")) else f"vision_model.{name}"
    if family.startswith("dinov2"):
        name = name.removeprefix("dinov2.")
        for pattern, hub in DINO:
            name = pattern.sub(hub, name)
    for old, hub in LAYER_NORM.items():
        if name.endswith(old):
            name = name.removesuffix(old) + hub
    return name


def match(family: str, own: list[str], foreign: list[str], prefix: str = "") -> tuple[dict[str, str], list[str]]:
    """own name -> foreign name, and the foreign names nobody took. ``prefix`` is cut off foreign names first."""
    table = {}
    for name in foreign:
        if name.startswith(prefix):
            bare = name[len(prefix) :]
            if not IGNORED.search(bare):
                table[canonical(family, bare)] = name
    names = {k: table[canonical(family, k)] for k in own if canonical(family, k) in table}
    return names, sorted(set(table.values()) - set(names.values()))
