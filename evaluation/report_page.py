"""Many runs as one HTML page that needs nothing else: no other file, no network, no library.

Tables and curves stand in the page as HTML and SVG and can be read without JavaScript; the examples and the breakdown
are drawn from the data in it, as text nodes only. The policy in its head lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from core.files import atomic_file
from core.progress import progress
from evaluation import report_curves, report_examples, report_types
from evaluation.against import references
from evaluation.page import as_script
from evaluation.report import BARS, MS, NONE, Report
from evaluation.report_marks import BEST, SECOND, Mark, metrics
from evaluation.report_runs import System, joined

FOLDER = Path(__file__).parent


Marked = Mapping[str, Mapping[str, Mapping[str, Mark]] | None]


def write(
    path: str | Path, title: str, found: Sequence[System], marked: Marked, examples: int = report_examples.EXAMPLES
) -> dict[str, tuple[int, int]]:
    """Write the page atomically; returns {split: (shown, of)} of its examples. marked: ``report_marks.by_split``."""
    gallery = report_examples.joined(found, examples)
    with atomic_file(path, "w") as handle:
        handle.write(render(title, found, marked, gallery))
    return {split: (len(part["queries"]), part["of"]) for split, part in gallery["splits"].items()}


def render(title: str, found: Sequence[System], marked: Marked, examples: Mapping[str, Any]) -> str:
    report = joined(found)
    labels = list(dict.fromkeys(s.label for s in found))
    notes: list[str] = []
    tables, curves = [], []
    with progress(list(report), "drawing", unit="split") as splits:
        for split in splits:
            here = [s for s in found if s.split == split]
            tables.append(results(split, here, labels, marked[split], notes))
            curves.append(drawn(split, here, labels))
    script = (FOLDER / "report_page.js").read_text(encoding="utf-8")
    data = {"labels": labels, "types": report_types.breakdown(found, report), "examples": examples}
    parts = {
        "title": escape(title),
        "policy": "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'",
        "style": (FOLDER / "report_page.css").read_text(encoding="utf-8"),
        "summary": escape(summary(report, labels)),
        "tables": "".join(tables),
        "curves": "".join(curves) or "<p>No metric of these runs was taken at more than one k.</p>",
        "legend": legend(labels),
        "sources": sources(notes),
        "runs": provenance(found),
        "data": as_script(data),
        "script": script,
    }
    template = (FOLDER / "report_page.html").read_text(encoding="utf-8")
    # One pass: what stands in a part is never taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def summary(report: Report, labels: Sequence[str]) -> str:
    queries = sum(max(c.get("queries", 0) for c in cells.values()) for cells in report.values())
    return f"{_count(len(labels), 'system')} on {_count(len(report), 'split')}, {queries:,} queries."


# ---- tables


def results(split: str, here: Sequence[System], labels: Sequence[str], marked: Mapping | None, notes: list[str]) -> str:
    """One table: the systems, then what papers say. notes: the sources so far, grows."""
    names = metrics([s.cell for s in here])
    timed = [s.cell[MS] for s in here if MS in s.cell]
    heads = ["<th scope='col'>system</th>", *(f"<th scope='col' class='n'>{escape(n)}</th>" for n in names)]
    if timed:
        heads.append(f"<th scope='col' class='n'>{MS}</th>")
    rows = [_row(s, labels, names, marked or {}, max(timed, default=0)) for s in here]
    for reference in references(split, here[0].data):
        known = [n for n in names if n in reference["values"]]
        if known:
            rows.append(_reference(reference, names, bool(timed), notes))
    counts = sorted({s.cell.get("queries", 0) for s in here})
    asked = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    warning = "" if marked else "<p class='soft'>Nothing is marked: these systems were asked different queries.</p>"
    return (
        f"<h3 id='{_anchor(split)}'>{escape(split)} <span class='soft'>{asked} queries</span></h3>{warning}"
        f"<div class='wide' tabindex='0' role='region' aria-label='Results on {escape(split)}'><table class='results'>"
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(system: System, labels: Sequence[str], names: Sequence[str], marked: Mapping, slowest: float) -> str:
    number = labels.index(system.label)
    cells = [f"<th scope='row'>{report_curves.swatch(number)} {_breakable(system.label)}</th>"]
    for name in names:
        mark = marked.get(name, {}).get(system.label, Mark())
        cells.append(_cell(system.cell.get(name), system.cell.get(name + BARS), mark))
    if slowest:
        value = system.cell.get(MS)
        width = 0 if value is None else 100 * value / slowest
        bar = f"<span class='bar'><i style='width:{width:.1f}%'></i></span>" if value is not None else ""
        cells.append(f"<td class='n ms'><span>{NONE if value is None else f'{value:.1f}'}</span>{bar}</td>")
    return f"<tr data-system='{number}'>{''.join(cells)}</tr>"


def _cell(value: float | None, bounds: Sequence[float] | None, mark: Mark) -> str:
    if value is None:
        return f"<td class='n'>{NONE}</td>"
    said = {BEST: "best", SECOND: "second best"}.get(mark.place, "")
    text = f"<span class='value'>{value:.3f}</span>"
    if said:
        text = f"<span class='sr'>{said} </span>{text}"
    if mark.near:
        text += "<span class='near' title='not to be told from the best'>≈<span class='sr'> the best</span></span>"
    if bounds:
        low, high = bounds
        text += f"<span class='bounds'>{low:.3f} – {high:.3f}</span>"
        text += (
            f"<span class='track' aria-hidden='true'><i style='left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%'>"
            f"</i><b style='left:{100 * min(max(value, 0), 1):.1f}%'></b></span>"
        )
    return f"<td class='n {mark.place}'>{text}</td>"


def _reference(reference: Mapping[str, Any], names: Sequence[str], timed: bool, notes: list[str]) -> str:
    if reference["source"] not in notes:
        notes.append(reference["source"])
    number = notes.index(reference["source"]) + 1
    cells = [
        f"<th scope='row'>{escape(reference['model'])} <span class='soft'>published</span> "
        f"<a href='#source{number}' aria-label='source {number}'>[{number}]</a></th>"
    ]
    for name in names:
        value = reference["values"].get(name)
        title = f" title='published as {escape(reference['as'][name])}'" if value is not None else ""
        cells.append(f"<td class='n'{title}>{NONE if value is None else f'{value:.3f}'}</td>")
    return f"<tr class='published'>{''.join(cells)}{'<td></td>' if timed else ''}</tr>"


# ---- curves


def drawn(split: str, here: Sequence[System], labels: Sequence[str]) -> str:
    out = []
    for family, svg, cutoffs, values in report_curves.drawings(here, labels):
        head = "".join(f"<th scope='col' class='n'>@{k}</th>" for k in cutoffs)
        rows = "".join(
            f"<tr><th scope='row'>{escape(label)}</th>"
            + "".join(f"<td class='n'>{f'{at[k]:.3f}' if k in at else NONE}</td>" for k in cutoffs)
            + "</tr>"
            for label, at in values.items()
        )
        out.append(
            f"<figure><figcaption>{escape(split)} <span class='soft'>{escape(family)}@k</span></figcaption>{svg}"
            "<details><summary>as numbers</summary><div class='wide' tabindex='0' role='region' "
            f"aria-label='{escape(family)} over k on {escape(split)}'><table><thead><tr><th scope='col'>system</th>"
            f"{head}</tr></thead><tbody>{rows}</tbody></table></div></details></figure>"
        )
    return "".join(out)


def legend(labels: Sequence[str]) -> str:
    return "".join(
        f"<button type='button' data-system='{i}' aria-pressed='true'>{report_curves.swatch(i)} {escape(label)}"
        "</button>"
        for i, label in enumerate(labels)
    )


# ---- where it comes from


def sources(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li id='source{i}'>{linked(note)}</li>" for i, note in enumerate(notes, 1))
    return (
        "<h3>Published numbers</h3><p>Copied from where they stand, not measured here; index, passages and queries may "
        f"differ. They take no part in the marks.</p><ol>{items}</ol>"
    )


def linked(text: str) -> str:
    """Escaped, addresses as links."""
    return re.sub(
        r"https?://[^\s,;)]+", lambda m: f"<a rel='noreferrer' href='{m[0]}'>{m[0]}</a>", escape(text, quote=True)
    )


def provenance(found: Sequence[System]) -> str:
    rows = {s.label: s for s in found}.values()
    body = "".join(
        f"<tr><th scope='row'>{escape(s.label)}</th><td>{escape(s.kind)}</td><td>{escape(s.data) or NONE}</td>"
        f"<td><code>{escape(str(s.folder))}</code></td></tr>"
        for s in rows
    )
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("system", "queries made of", "data set", "folder"))
    return (
        "<div class='wide' tabindex='0' role='region' aria-label='Folders of the runs'><table><thead><tr>"
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _breakable(label: str) -> str:
    """Escaped; narrow columns break it behind a sign rather than within a word."""
    return (
        re.sub(r"([+/_:,])(?=\S)", r"\1<wbr>", label) if label.isascii() and label == escape(label) else escape(label)
    )


def _anchor(split: str) -> str:
    return "split-" + re.sub(r"\W+", "-", split)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
