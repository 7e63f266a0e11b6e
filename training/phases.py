"""Names for the parts of a step, so that somebody may watch where its time goes. Unwatched they cost nothing.

The loop says ``with phase("backward"):``. Phases nest: time of an inner one is not counted for the one around it.
``runs.profile`` is the one who watches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Watcher = Callable[[str], contextlib.AbstractContextManager]

_watcher: Watcher | None = None


def phase(name: str) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if _watcher is None else _watcher(name)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Every ``phase(name)`` of this process is ``watcher(name)`` meanwhile."""
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before
