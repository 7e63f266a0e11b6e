"""State-dict names of the ``.pth`` files of MIRe, Ret-XKnow and their PreFLMR, and of HF ColBERT folders, both ways."""

from __future__ import annotations

from models.keys.towers import IGNORED, canonical

PREFIXES = [
    ("model.bert.", "text.trunk."),
    ("model.linear.", "text.linear."),
    ("vision_tower.vision_tower.", "vision.trunk."),
    ("query_fusion.", "fusion."),
]
"""(Their prefix, ours). Tower names behind the prefix are the hub's on both sides."""

SENT_PREFIXES = [("model.", "text.trunk."), ("dense.", "text.linear."), *PREFIXES[2:]]
"""SentMIRe: a bare transformer and the Dense layer of its sentence-transformers folder."""

COLBERT_PREFIXES = [("bert.", "text.trunk."), ("linear.", "text.linear.")]


def to_ours(name: str, prefixes: list[tuple[str, str]] = PREFIXES) -> str | None:
    """Our portable name of a foreign weight; None for buffers of old releases (``position_ids``)."""
    name = name.removeprefix("module.")
    for theirs, ours in prefixes:
        if name.startswith(theirs):
            bare = name[len(theirs) :]
            if IGNORED.search(bare):
                return None
            family = "clip_vision_model" if ours == "vision.trunk." else "bert"
            return ours + canonical(family, bare)
    return f"?{name}"


def to_theirs(name: str, prefixes: list[tuple[str, str]] = PREFIXES) -> str:
    """The foreign name of a portable name of ours."""
    for theirs, ours in prefixes:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    raise KeyError(name)
