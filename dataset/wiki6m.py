"""Wiki6M, the six million Wikipedia entities of OVEN and InfoSeek (the dump of October 2022), and their pictures.

A row: wikidata_id, wikipedia_title, wikipedia_content, wikipedia_summary, wikipedia_image_url.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.records import Document, ImageRef
from dataset.lines import LineCorpus
from dataset.unpacked import gunzipped

SUFFIXES = (".jpg", ".JPEG", ".png")


class Wiki6M(LineCorpus):
    """One passage an entity, with its Wikidata id; ``.gz`` is unpacked once. Some ids stand twice: the first counts."""

    first_counts = True
    remedy = "write an object with wikidata_id, wikipedia_title and wikipedia_content"

    def __init__(self, path: str | Path) -> None:
        super().__init__(gunzipped(path), entity, ("wikidata_id",))


def entity(id_: str, row: dict[str, Any]) -> Document:
    """ "title: T content: C", as MIRe indexes it."""
    title, content = (_text(row, field) for field in ("wikipedia_title", "wikipedia_content"))
    return Document(id_, f"title: {title} content: {content}".strip(), title=title)


def _text(row: dict[str, Any], field: str) -> str:
    found = row.get(field)
    if found is None:
        return ""  # some entities have no content
    if not isinstance(found, str):
        raise ValueError(f"it has the {field} {found!r:.40}, which is no string")
    return found.strip()


class Pictures:
    """OVEN's pictures by id: ``oven_01963180.jpg`` or ``.JPEG`` in the folder, or in its part ``01/``, as released."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._kinds = [(part, suffix) for part in (False, True) for suffix in SUFFIXES]

    def ref(self, id_: str) -> ImageRef:
        """Where nothing is found, the first place that was looked at."""
        for i, kind in enumerate(self._kinds):
            if (place := self._place(id_, kind)).is_file():
                self._kinds.insert(0, self._kinds.pop(i))  # pictures of one folder are mostly of one kind
                return ImageRef(id_, path=str(place))
        return ImageRef(id_, path=str(self._place(id_, (False, ".jpg"))))

    def _place(self, id_: str, kind: tuple[bool, str]) -> Path:
        part, suffix = kind
        return (self.folder / id_[-8:-6] if part else self.folder) / f"{id_}{suffix}"
