"""An Explanation as one HTML page that needs nothing else: no other file, no network, no library."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from core.files import atomic_file
from evaluation.explain import Explanation, as_json

WHY = Path(__file__).parent
"""Folder of ``page.html``, and of ``why.js`` and ``why.css``, which draw, and which the searcher's page uses too."""


def write(explanation: Explanation, path: str | Path) -> None:
    """Write the page atomically."""
    with atomic_file(path, "w") as handle:
        handle.write(render(explanation))


def render(explanation: Explanation) -> str:
    """The page's text. The data stand in it as JSON."""
    parts = {
        "css": (WHY / "why.css").read_text("utf-8"),
        "js": (WHY / "why.js").read_text("utf-8"),
        "title": html.escape(explanation.question or "an image"),
        "data": as_script(as_json(explanation)),
    }
    template = (WHY / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(css|js|title|data)\}\}", lambda found: parts[found[1]], template)  # once: data may say {{js}}


def as_script(data: Any) -> str:
    """JSON that may stand in a script element: no "<" in it can end the element or begin another."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
