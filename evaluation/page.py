"""An Explanation as one HTML page that needs nothing else: no other file, no network, no library."""

from __future__ import annotations

import html
import json
from pathlib import Path

from core.files import atomic_file
from evaluation.explain import Explanation, as_json

TEMPLATE = Path(__file__).with_name("page.html")


def write(explanation: Explanation, path: str | Path) -> None:
    """Write the page atomically."""
    with atomic_file(path, "w") as handle:
        handle.write(render(explanation))


def render(explanation: Explanation) -> str:
    """The page's text. The data stand in it as JSON; no "<" of theirs can end the script element."""
    data = json.dumps(as_json(explanation), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    title = html.escape(explanation.question or "an image")
    return TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", title, 1).replace("{{data}}", data, 1)
