"""Articles that responses are completed with: Wiki6M's JSON lines, or any with a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records import Document
from dataset.conversations import is_unicode
from dataset.lines import LineCorpus
from dataset.unpacked import gunzipped

TEXTS = ("wikipedia_content", "text")
IDS = ("wikidata_id", "id")


class KnowledgeBase(LineCorpus):
    """The lines as documents whose ids are their places; ``meta["kb_id"]`` is the article's own id. A ``.gz`` is
    unpacked once, beside it."""

    what = "knowledge base"
    remedy = f"every line is an object with {' or '.join(TEXTS)}: write it so, or remove the line"

    def __init__(self, path: str | Path) -> None:
        super().__init__(gunzipped(path), article, ())
        if not len(self):
            raise UserError(f"the knowledge base '{path}' is empty; give JSON lines with {' or '.join(TEXTS)}.")


def article(place: str, row: dict[str, Any]) -> Document:
    """An article whose text is null is an empty one; one without the field is of another file."""
    name = next((name for name in TEXTS if name in row), None)
    if name is None:
        raise ValueError(f"it has no {' or '.join(TEXTS)}")
    text = "" if row[name] is None else row[name]
    if not isinstance(text, str):
        raise ValueError(f"it has the {name} {text!r:.40}, which is no string")
    title = row.get("wikipedia_title", row.get("title"))
    own = str(next((row[name] for name in IDS if row.get(name) is not None), place))
    if not is_unicode(text + own):
        raise ValueError("it holds half a surrogate pair, which is no text")
    return Document(place, text.strip(), title=title if isinstance(title, str) else "", meta={"kb_id": own})
