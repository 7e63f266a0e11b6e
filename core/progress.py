"""Progress with an ETA, on a terminal as a bar and in a log as an occasional line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T] | None, what: str, total: int | None = None, unit: str = "it", initial: int = 0
) -> tqdm:
    """A tqdm over ``items`` (or to be updated by hand when None); every 10 s a line when stderr is not a terminal."""
    live = sys.stderr.isatty()
    return tqdm(
        items,
        desc=what,
        total=total,
        unit=unit,
        initial=initial,
        dynamic_ncols=live,
        file=sys.stderr,
        mininterval=0.2 if live else 10.0,
        maxinterval=10.0 if live else 60.0,
    )
