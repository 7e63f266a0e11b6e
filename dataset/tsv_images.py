"""Pictures in one large file: a line of id, tab and base64 each, and a file of the byte at which each line begins."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.records import ImageRef
from dataset.lines import unreadable

FIRST = 10_000_000
"""WebQA's ids are 30000000 and up; their last seven digits are the line, 0 for the first."""


class TsvImages:
    """``imgs.tsv`` with ``imgs.lineidx``."""

    def __init__(self, tsv: str, lineidx: str) -> None:
        self.tsv, self.lineidx = tsv, lineidx

    def ref(self, image_id: str) -> ImageRef:
        """The picture. Where the large file is here its line is looked at: another id would be another picture."""
        if not image_id.isdecimal():
            raise UserError(f"image id {image_id!r} is no number, so '{self.lineidx}' cannot say where it is.")
        line = int(image_id) % FIRST
        if line >= len(self._starts):
            raise UserError(
                f"image '{image_id}' would be line {line + 1}, but '{self.lineidx}' has {len(self._starts)}."
            )
        start = int(self._starts[line])
        if Path(self.tsv).is_file():
            with open(self.tsv, "rb") as handle:
                handle.seek(start)
                found = handle.read(len(image_id) + 1)
            if found != f"{image_id}\t".encode():
                raise UserError(
                    f"'{self.lineidx}' says that image '{image_id}' is at byte {start} of '{self.tsv}', where "
                    f"{found!r:.40} stands; take both from the same download."
                )
        return ImageRef(image_id, tsv=(self.tsv, start))

    @cached_property
    def _starts(self) -> np.ndarray:
        try:
            return np.array(Path(self.lineidx).read_text(encoding="ascii").split(), dtype=np.int64)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(unreadable("image line index", self.lineidx, error)) from None
        except ValueError as error:
            raise UserError(f"image line index '{self.lineidx}' must hold one number a line ({error}).") from None
