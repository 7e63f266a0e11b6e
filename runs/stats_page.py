"""The page of ``runs.dataset_stats``: numbers, histograms and samples with their images, in one file that needs no
other. Not a command of its own."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, BARS = 480, 120, 30

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.15rem .8rem;border-bottom:1px solid #ddd}
td,th{text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.card{display:flex;gap:1rem;border-top:1px solid #ccc;padding:1rem 0}
.card img{width:200px;height:auto;align-self:flex-start}.none{width:200px;color:#777}
dt{font-weight:600}dd{margin:0 0 .5rem}
svg{display:block;margin:.3rem 0 1rem}rect{fill:#4878a8}figcaption,small{color:#666}"""


def histogram(lengths: Sequence[int], what: str) -> str:
    """Bars of equal width from 0 to the 99th percentile; what is longer stands in the last one."""
    if not lengths:
        return ""
    ordered = sorted(lengths)
    top = max(1, ordered[int(0.99 * (len(ordered) - 1))])
    counts = [0] * BARS
    for value in lengths:
        counts[min(BARS - 1, value * BARS // (top + 1))] += 1
    most, wide = max(counts), WIDTH / BARS
    bars = "".join(
        f'<rect x="{i * wide:.1f}" y="{HEIGHT - HEIGHT * n / most:.1f}" width="{wide - 1:.1f}" '
        f'height="{HEIGHT * n / most:.1f}"><title>{i * (top + 1) // BARS} to '
        f"{((i + 1) * (top + 1) - 1) // BARS} words: {n}</title></rect>"
        for i, n in enumerate(counts)
    )
    middle = ordered[len(ordered) // 2]
    caption = f"{html.escape(what)}: median {middle} words, 99th percentile {top}, longest {ordered[-1]}"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{caption}">{bars}</svg><figcaption>{caption}</figcaption></figure>'
    )


def rows(values: dict[str, Any], prefix: str = "") -> str:
    """A table of (possibly nested) numbers; lists and texts are left to the JSON file."""
    out = []
    for key, value in values.items():
        if isinstance(value, dict):
            out.append(rows(value, f"{prefix}{key}: "))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            out.append(f'<tr><td>{html.escape(prefix + key)}</td><td class="n">{shown}</td></tr>')
    return "".join(out)


def card(record: dict[str, Any], thumbnail: str | None) -> str:
    """One sample: its picture and its fields."""
    name = html.escape(str(record.get("image")))
    picture = f'<img src="{thumbnail}" alt="{name}">' if thumbnail else f'<div class="none">no image: {name}</div>'
    fields = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(record[key]))}</dd>"
        for key in ("id", "question", "answer", "document", "kb_ids", "kb_scores", "filter_rank")
        if key in record
    )
    return f'<div class="card">{picture}<dl>{fields}</dl></div>'


def render(title: str, report: dict[str, Any], lengths: dict[str, Sequence[int]], cards: Sequence[str]) -> str:
    tables = "".join(
        f"<h2>{html.escape(name)}</h2><table>{rows(part)}</table>"
        for name, part in report.items()
        if isinstance(part, dict)
    )
    figures = "".join(histogram(values, name) for name, values in lengths.items())
    near = "".join(
        f"<tr><td class=n>{pair['similarity']:.2f}</td><td>{html.escape(pair['first'])}</td>"
        f"<td>{html.escape(pair['second'])}</td></tr>"
        for pair in report.get("near-duplicates", {}).get("samples", [])
    )
    near = f"<h2>Near-duplicates, samples</h2><table>{near}</table>" if near else ""
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
        f"<h1>{name}</h1>{tables}<h2>Lengths</h2>{figures}{near}"
        f"<h2>{len(cards)} random samples</h2>{''.join(cards)}</html>\n"
    )


def thumbnail(image: str, image_dir: str | None) -> str | None:
    """A picture as a data URI; None when it is missing, broken or outside the folder."""
    from core.records import ImageRef
    from dataset.conversations import escapes
    from runs.leaving import picture

    if image_dir is None or not image or escapes(image) or not os.path.isfile(Path(image_dir) / image):
        return None
    return picture(ImageRef(image, path=str(Path(image_dir) / image)))["thumbnail"]
