"""An Explanation as one PNG: a heat map per word, and for each passage the rows that made its score."""

from __future__ import annotations

import base64
import io
import textwrap
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import UserError
from core.files import atomic_file
from evaluation.explain import Explanation, Passage, received

TILES = 6
"""Heat maps per line."""

BARS = 48
"""Query rows drawn per passage; of more, the strongest."""

WRAP = 74
"""Letters per line of a passage."""

LETTERS = 7.5
"""Their size in points; a letter of the monospaced font is 0.602 times as wide."""

LINES = 12
"""Lines of a passage that are shown."""

TEXT, VISUAL = "#1f62b5", ["#b8560f", "#e08e45", "#8a6d3b"]
STOPS = ["#000004", "#57106e", "#bc3754", "#f98e09", "#fcffa4"]
"""Dark to bright, as in ``why.js``."""


def draw(explanation: Explanation, path: str | Path) -> None:
    """Write the PNG atomically."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError:
        raise UserError("pictures need matplotlib; install it with: pip install matplotlib") from None
    tiles, passages = _tiles(explanation), explanation.passages
    lines = ceil(len(tiles) / TILES)
    bars = max((min(len(p.matches), BARS) for p in passages), default=0)
    text = max((min(len(_wrapped(p)), LINES) for p in passages), default=0)
    heights = ([2.3 * lines] if tiles else []) + ([0.2 * text + 0.5, 0.19 * bars + 0.8] if passages else [])
    width = max(2.1 * min(len(tiles), TILES) + 0.5, 5.4 * len(passages), 6.5)
    head = 0.5 + 0.22 * len(explanation.notes)
    # Without any part there is still the question and what the notes say.
    figure = Figure(figsize=(width, sum(heights) + head + 0.3), dpi=110, facecolor="white", layout="constrained")
    total = sum(heights) + head + 0.3
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - head / total))
    figure.text(
        0.012,
        1 - 0.2 / total,
        _plain(explanation.question or "(an image alone)"),
        fontsize=13,
        weight="bold",
        va="center",
    )
    for number, note in enumerate(explanation.notes):
        figure.text(0.012, 1 - (0.45 + 0.22 * number) / total, _plain(note), fontsize=9, color="#555555", va="center")
    parts = (
        iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]) if heights else iter(())
    )
    if tiles:
        _draw_tiles(next(parts), explanation, tiles)
    if passages:
        columns = next(parts).subplots(1, len(passages), squeeze=False)[0]
        for axes, passage in zip(columns, passages):
            _draw_text(axes, passage, text)
        for axes, passage in zip(next(parts).subplots(1, len(passages), squeeze=False)[0], passages):
            _draw_bars(axes, explanation, passage)
        figure.draw_without_rendering()  # the layout decides how wide a column is, and so how many letters it holds
        for axes in columns:
            inches = axes.get_window_extent().width / figure.dpi
            axes.set_xlim(0, inches * 72 / (0.602 * LETTERS))
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png")


def _tiles(explanation: Explanation) -> list[tuple[str, list[float] | None]]:
    """Title and map of each tile: the picture, all words, each word. Markers only where there is nothing else."""
    if explanation.picture is None:
        return []
    tiles: list[tuple[str, list[float] | None]] = [("what the tower saw", None)]
    if explanation.maps is None:
        return tiles
    whole, maps = explanation.maps.whole[0], explanation.maps.words[0]
    shown = [(w.text, m) for w, m in zip(explanation.words, maps) if not w.marker]
    return [*tiles, ("all words", whole), *(shown or [(w.text, m) for w, m in zip(explanation.words, maps)])]


def _draw_tiles(part, explanation: Explanation, tiles: list) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    picture, maps = explanation.picture, explanation.maps
    image = Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",", 1)[1])))
    values = [v for _, found in tiles if found is not None for v in found]
    ramp = LinearSegmentedColormap.from_list("heat", STOPS)
    grid = part.subplots(ceil(len(tiles) / TILES), min(TILES, len(tiles)), squeeze=False)
    extent = (0, picture.width, picture.height, 0)
    shown = None
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, found) in zip(grid.flat, tiles):
        axes.imshow(image if found is None else image.convert("L"), cmap="gray", vmin=0, vmax=255, extent=extent)
        axes.set_title(_plain(textwrap.shorten(title, 22)), fontsize=10)
        if found is not None:
            cells = np.array(found).reshape(picture.grid)
            if maps.unit == "attention":
                cells = cells * cells.size
            scale = cells.size if maps.unit == "attention" else 1
            low, high = min(values) * scale, max(values) * scale
            shown = axes.imshow(cells, cmap=ramp, vmin=low, vmax=high, alpha=0.65, extent=extent)
    if shown is not None:
        unit = "attention, times uniform\n(mean of heads)" if maps.unit == "attention" else "cosine"
        part.colorbar(shown, ax=grid, shrink=0.85, label=unit, pad=0.01)


def _draw_text(axes, passage: Passage, lines_high: int) -> None:
    """The passage in lines; the darker a token's ground, the more of the score it received."""
    axes.set_axis_off()
    axes.set_ylim(lines_high, -0.7)
    got = received(passage)
    most = max([*got, 1e-9])
    axes.set_title(_plain(textwrap.shorten(f"{passage.id}: score {passage.score:.3f}", 60)), fontsize=10, loc="left")
    lines = _wrapped(passage)
    for number, line in enumerate(lines[:LINES]):
        column = 0
        for token, text in line:
            strength = max(got[token], 0) / most
            ground = {"facecolor": "#ffaa28", "alpha": 0.15 + 0.75 * strength, "pad": 0.6, "linewidth": 0}
            word = text.lstrip()
            axes.text(column + len(text) - len(word), number, _plain(word), fontsize=LETTERS, family="monospace",
                      va="center", bbox=ground if got[token] else None, color="#111111", in_layout=False)  # fmt: skip
            column += len(text)
    if len(lines) > LINES:
        axes.text(WRAP, LINES - 1, "…", fontsize=9, va="center", in_layout=False)


def _wrapped(passage: Passage) -> list[list[tuple[int, str]]]:
    """Lines of (token number, text)."""
    lines: list[list[tuple[int, str]]] = [[]]
    used = 0
    for number, token in enumerate(passage.tokens):
        text = (" " if token.before and used else "") + token.text
        if used + len(text) > WRAP and used:
            lines.append([])
            text, used = token.text, 0
        lines[-1].append((number, text))
        used += len(text)
    return [line for line in lines if line]


def _draw_bars(axes, explanation: Explanation, passage: Passage) -> None:
    """One bar per query row: its similarity, and behind it the token it matched."""
    strongest = sorted(passage.matches, key=lambda m: -m.similarity)[:BARS]
    chosen = sorted(strongest, key=lambda m: m.row)
    rows = [explanation.rows[m.row] for m in chosen]
    visual = [k for k in dict.fromkeys(r.kind for r in explanation.rows) if k != "text"]
    colours = {"text": TEXT, **{k: VISUAL[i % len(VISUAL)] for i, k in enumerate(visual)}}
    values = [m.similarity for m in chosen]
    axes.barh(range(len(rows)), values, color=[colours[r.kind] for r in rows], height=0.8)
    axes.set_yticks(range(len(rows)), [_plain(r.label) for r in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(min(0, *values) if values else 0, 1.35)
    for place, found in enumerate(chosen):
        token = "–" if found.token is None else passage.tokens[found.token].text
        axes.text(max(found.similarity, 0) + 0.02, place, _plain(token), fontsize=7, va="center")
    parts = ", ".join(f"{kind} {value:.2f}" for kind, value in passage.kinds.items())
    left = (
        "" if len(chosen) == len(passage.matches) else f"\nthe strongest {len(chosen)} of {len(passage.matches)} rows"
    )
    axes.set_xlabel(f"similarity; sums: {parts}{left}", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """Text as it is: a dollar sign starts no formula."""
    return text.replace("$", r"\$")
