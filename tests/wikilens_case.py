"""A tiny WikiLens: the builder's own code on invented leads and coloured squares instead of packages."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from scripts.build_wikilens import SCENES, write
from scripts.wikilens_sources import HELD_OUT, Concept

KINDS = {
    "animal": "cat dog ant bee cow hen",
    "food": "pie pear fig nut bun jam",
    "plant": "oak elm fir ivy fern rose",
    "vehicle": "bus car tram ship van cab",
    "tool": "axe saw nail file hoe vice",
    "sport": "golf polo judo chess darts squash",
}
CONCEPTS = [
    Concept(kind, title, f"{'first' if i > 3 else 'second'} group of {kind}" if i % 2 else "", (title,), ())
    for kind, titles in KINDS.items()
    for i, title in enumerate(titles.split())
]
SMALL = {split: 6 for split in SCENES}


def tiny_wikilens(out: Path, photos: bool = False) -> dict:
    """Write it to ``out``; the manifest."""
    leads = {t: f"The {t} is a thing." for c in CONCEPTS for t in (c.title, c.group, f"other {c.title}") if t}
    styles = ["flat", "outline", "painted", "pixel", HELD_OUT]
    emoji = {c.title: {s: _square(c.title, s) for s in styles} for c in CONCEPTS}
    taken = {c.title: {"one": _square(c.title, "one")} for c in CONCEPTS} if photos else {}
    return write(out, CONCEPTS, dict(sorted(leads.items())), emoji, taken, SMALL)


def _square(title: str, style: str) -> Image.Image:
    seed = sum((i + 1) * ord(c) for i, c in enumerate(title + style))
    return Image.new("RGB", (40, 30), (seed * 37 % 200, seed * 71 % 200, seed * 113 % 200))
