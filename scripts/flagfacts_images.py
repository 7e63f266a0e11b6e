"""Flag pictures for FlagFacts: vector or bitmap artwork to small 224 px PNG files, and which flags look the same."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.errors import UserError
from scripts.flagfacts_sources import ICONS, ISO_FLAGS
from scripts.packages import archive, deb_files, icon_files

SIDE = 224
ARTWORKS = [package.name for package in (*ICONS, ISO_FLAGS)]
# Two flags differ by the mean over the 2 % of a 56 px thumbnail's pixels that differ most, in grey levels of 255: a
# small emblem counts, a soft edge does not.
SAME, NEAR = 20.0, 60.0
# Pictures that show another flag than their name says (seen on contact sheets), and why they are left out.
WRONG = {
    **{("circle-flags", code): "the sign of a language with the same code" for code in ("ar", "ie", "io", "la")},
    **{("flagpack", code): "a blue ensign without its badge" for code in ("fk", "ms", "sh", "tc", "vg")},
    ("flag", "sh"): "the flag of the United Kingdom",
    ("iso-flags", "cc"): "the flag of Australia",
    ("iso-flags", "mf"): "the flag of Sint Maarten",
    ("iso-flags", "tk"): "the flag of New Zealand",
    ("iso-flags", "vi"): "the flag of the British Virgin Islands",
}


def svg(icons: Mapping[str, Any], name: str) -> str | None:
    """The SVG of an Iconify icon (aliases followed), or None if the set has no such icon."""
    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    default = {"left": 0, "top": 0, "width": 16, "height": 16}
    left, top, width, height = (icon.get(key, icons.get(key, value)) for key, value in default.items())
    box = f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {spaces} {box}>{icon['body']}</svg>"


def rasterise(drawing: str) -> Image.Image:
    """Draw an SVG so that its width is ``SIDE`` px."""
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("drawing icons needs resvg-py: pip install resvg-py==0.5.0.") from error
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=drawing, width=SIDE))))


def canvas(image: Image.Image) -> Image.Image:
    """The picture, aspect kept, in the middle of a white ``SIDE`` x ``SIDE`` RGB square."""
    image = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    scale = SIDE / max(flat.size)
    if scale != 1:
        flat = flat.resize([round(scale * length) for length in flat.size], Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(flat, ((SIDE - flat.width) // 2, (SIDE - flat.height) // 2))
    return square


def draw_all(folder: Path, codes: Sequence[str]) -> dict[str, dict[str, Image.Image]]:
    """``{artwork: {code: picture}}`` for the codes that an artwork has."""
    pictures: dict[str, dict[str, Image.Image]] = {}
    for package in ICONS:
        files = icon_files(archive(folder, package))
        drawings = {code: svg(files["icons"], _icon_name(package.name, code, files["chars"])) for code in codes}
        pictures[package.name] = {code: canvas(rasterise(text)) for code, text in drawings.items() if text}
    flags = {Path(p).stem: raw for p, raw in deb_files(archive(folder, ISO_FLAGS)).items() if p.endswith(".png")}
    pictures[ISO_FLAGS.name] = {c: canvas(Image.open(io.BytesIO(flags[c]))) for c in codes if c in flags}
    return {art: {c: p for c, p in found.items() if (art, c) not in WRONG} for art, found in pictures.items()}


def _icon_name(artwork: str, code: str, chars: Mapping[str, str]) -> str:
    """What an artwork calls a country's flag; emoji sets know it by the pair of regional indicator letters."""
    if artwork == "twemoji":
        return chars.get("-".join(f"{0x1F1E6 + ord(letter) - ord('a'):x}" for letter in code), "")
    if artwork == "flagpack" and code == "gb":
        return "gb-ukm"  # plain gb is England's cross there
    return f"{code}-4x3" if artwork == "flag" else code


def lookalikes(pictures: Mapping[str, Mapping[str, Image.Image]]) -> tuple[list[tuple[str, str, str]], ...]:
    """Pairs (code, code, artworks) that are the same, and that are nearly the same, in at least one artwork."""
    closest: dict[tuple[str, str], dict[str, float]] = {}
    for artwork, images in pictures.items():
        small = {c: np.asarray(i.resize((56, 56), Image.Resampling.BOX), np.float32) for c, i in images.items()}
        for a, b in combinations(sorted(small), 2):
            gap = np.abs(small[a] - small[b]).max(axis=-1).ravel()
            if gap.mean() >= NEAR:  # then the worst 2 % are no better; spares the sorting
                continue
            if (difference := float(np.sort(gap)[-len(gap) // 50 :].mean())) < NEAR:
                closest.setdefault((a, b), {})[artwork] = difference
    same, near = [], []
    for (a, b), differences in sorted(closest.items()):
        equal = [artwork for artwork, difference in differences.items() if difference < SAME]
        (same if equal else near).append((a, b, ", ".join(equal or differences)))
    return same, near


def save_png(image: Image.Image, path: Path) -> int:
    """Write a palette PNG with as few colours as the eye allows; the size in bytes.

    Flags are flat areas with soft edges: few colours are enough as long as no area changes its hue. A palette is
    accepted when the mean error is below 1 and 99.9 % of all values are off by at most 20 grey levels of 255.
    """
    original = np.asarray(image, np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    for colours in (16, 24, 32, 48, 64, 96, 128, 192, 256):
        small = image.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE)
        error = np.abs(np.asarray(small.convert("RGB"), np.int16) - original)
        if colours == 256 or (error.mean() < 1 and np.quantile(error, 0.999) <= 20):
            small.save(path, optimize=True)
            return path.stat().st_size
    raise AssertionError("unreachable: 256 colours are always accepted")
