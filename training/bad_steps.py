"""Steps that do not count: a loss or gradient that is no number changes nothing; several in a row end the run.

One bad batch (a broken example, an overflow in bf16) should not cost a night. Several in a row mean that the weights or
the settings are at fault, and then going on only hides it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from core import distributed
from core.errors import UserError
from core.files import append_line

FILE = "bad_steps.jsonl"


class BadSteps:
    """How many steps were skipped, in all and in a row up to now. The same on every process."""

    def __init__(self, out: Path, most: int) -> None:
        """most: so many in a row are an error."""
        self.out, self.most = out, most
        self.total = self.in_row = 0

    def is_bad(self, loss: float, norm: float) -> bool:
        """Both numbers are the same on every process, and so is the answer."""
        return not (math.isfinite(loss) and math.isfinite(norm))

    def good(self) -> None:
        self.in_row = 0

    def bad(self, step: int, loss: float, norm: float, ids: Callable[[], Sequence[str]]) -> None:
        """Count step number ``step`` (from 1) and write it down; UserError when it is one too many in a row.

        ids: gives the queries of this process's part of the batch. Every process calls this.
        """
        self.total, self.in_row = self.total + 1, self.in_row + 1
        asked = [name for part in distributed.gather_objects(list(ids())) for name in part]
        said = f"step {step}: the loss is {loss}, the gradient norm {norm}"
        if distributed.is_main():
            row = {"step": step, "time": round(time.time(), 3), "loss": str(loss), "grad_norm": str(norm)}
            try:
                append_line(self.out / FILE, json.dumps({**row, "queries": asked}, ensure_ascii=False))
            except OSError as error:
                print(f"'{self.out / FILE}' could not be written ({error}); queries: {asked}.", file=sys.stderr)
            print(f"{said}; skipped, {self.total} so far (its queries: {self.out / FILE}).", file=sys.stderr)
        if self.in_row >= self.most:
            often = f", as in the {self.in_row - 1} before it" if self.in_row > 1 else ""
            raise UserError(
                f"{said}{often}. Lower train.lr, raise train.warmup_steps, set train.clip or train.precision: fp32, or "
                f"look at the queries in '{self.out / FILE}'; the last checkpoint is whole, and no step that was "
                "skipped has changed a weight."
            )

    def state(self) -> dict[str, int]:
        return {"total": self.total, "in_row": self.in_row}

    def load(self, state: dict[str, int]) -> None:
        self.total, self.in_row = state["total"], state["in_row"]
