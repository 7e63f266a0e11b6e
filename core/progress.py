"""Progress with an ETA, on a terminal as a bar and in a log as an occasional line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


class _WithMemory(tqdm):
    """Also says how much memory the process holds."""

    @property
    def format_dict(self) -> dict:
        return {**super().format_dict, "memory": f"{resident() / 1e9:.2f} GB"}


def resident() -> int:
    """Bytes of this process in memory; the most it ever held where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows does not tell
        return 0
    try:
        with open("/proc/self/statm") as handle:
            return int(handle.read().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def progress(
    items: Iterable[T] | None,
    what: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    memory: bool = False,
) -> tqdm:
    """A tqdm over ``items`` (or to be updated by hand when None); every 10 s a line when stderr is not a terminal.

    memory: also show what the process holds.
    """
    live = sys.stderr.isatty()
    known = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}, {memory}]"
    open_end = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_fmt}, {memory}]"
    return (_WithMemory if memory else tqdm)(
        items,
        desc=what,
        total=total,
        unit=unit,
        initial=initial,
        bar_format=(open_end if total is None and not hasattr(items, "__len__") else known) if memory else None,
        dynamic_ncols=live,
        file=sys.stderr,
        mininterval=0.2 if live else 10.0,
        maxinterval=10.0 if live else 60.0,
    )
