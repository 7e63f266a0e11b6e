"""Success over k as SVG: one drawing per split and family, its colours, dashes and markers those of the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from evaluation.report_runs import FAMILIES, Curve, System

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 14, 52
COLOURS = 8
"""``--c0`` ... ``--c7`` of report.css; a ninth system has the first colour and another dash."""
DASHES = ("", "7 4", "2 3")
SHAPES = ("circle", "square", "diamond", "triangle")
MARKED = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)
"""Cutoffs that are named on the axis and marked on the lines."""


def drawings(found: Sequence[System], labels: Sequence[str]) -> list[tuple[str, str, list[int], dict[str, dict]]]:
    """(family, SVG, cutoffs, label -> {cutoff: value}) for the systems of one split. labels: of all splits; a system
    has one colour everywhere."""
    made = []
    for family in FAMILIES:
        curves = {s.label: s.curves[family] for s in found if family in s.curves}
        depth = max((points[-1][0] for points in curves.values()), default=0)
        if depth < 2:
            continue
        known = {k for points in curves.values() for k, _ in points}
        cutoffs = [k for k in MARKED if k in known]
        values = {label: {k: v for k, v in points if k in cutoffs} for label, points in curves.items()}
        made.append((family, svg(family, curves, labels, cutoffs), cutoffs, values))
    return made


def svg(family: str, curves: Mapping[str, Curve], labels: Sequence[str], cutoffs: Sequence[int]) -> str:
    """Lines with a title each, on a grid from 0 to 1. Up to k = 20 the axis is even, beyond it is logarithmic."""
    from math import log

    depth = max(points[-1][0] for points in curves.values())
    even = depth <= 20

    def x(k: int) -> float:
        share = (k - 1) / (depth - 1) if even else log(k) / log(depth)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (1 - value) * (HEIGHT - TOP - BOTTOM), 1)

    out = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(family)}@k over k; the numbers stand in '
        'the table below" class="curves">'
    ]
    for step in range(6):
        out.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(step / 5)}" y2="{y(step / 5)}"/>'
            f'<text x="{LEFT - 7}" y="{y(step / 5) + 5}" text-anchor="end">{step / 5:.1f}</text>'
        )
    for k in cutoffs:
        out.append(f'<text x="{x(k)}" y="{HEIGHT - BOTTOM + 21}" text-anchor="middle">{k}</text>')
    out.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">k, passages looked at</text>'
    )
    for label, points in curves.items():
        number = labels.index(label)
        path = "M" + "L".join(f"{x(k)} {y(v)}" for k, v in points)
        said = ", ".join(f"@{k} {v:.3f}" for k, v in points if k in cutoffs)
        out.append(
            f'<g class="line" data-system="{number}" style="--c:var(--c{number % COLOURS})">'
            f"<title>{escape(label)}: {said}</title>"
            f'<path d="{path}"{_dash(number)}/>'
            + "".join(_marker(number, x(k), y(v)) for k, v in points if k in cutoffs)
            + "</g>"
        )
    return "".join(out) + "</svg>"


def swatch(number: int) -> str:
    """A piece of the line, for a legend."""
    return (
        f'<svg viewBox="0 0 28 12" class="swatch" aria-hidden="true" style="--c:var(--c{number % COLOURS})">'
        f'<path d="M1 6L27 6"{_dash(number)}/>{_marker(number, 14, 6)}</svg>'
    )


def _dash(number: int) -> str:
    dash = DASHES[number // COLOURS % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _marker(number: int, x: float, y: float) -> str:
    shape = SHAPES[number % len(SHAPES)]
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="3.6"/>'
    corners = {
        "square": ((-3.3, -3.3), (3.3, -3.3), (3.3, 3.3), (-3.3, 3.3)),
        "diamond": ((0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)),
        "triangle": ((0, -4.4), (4.2, 3.4), (-4.2, 3.4)),
    }[shape]
    return '<polygon points="' + " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners) + '"/>'
