"""Where the time of a step goes: a watcher of ``phases``, and the chart of what it saw."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.files import atomic_file
from core.protocols import Retriever

ORDER = (
    "wait for data", "collate", "visual", "encode queries", "encode documents", "loss", "backward", "optimizer",
    "checkpoint", "other",
)  # fmt: skip
"""The phases as the chart names them. "other": what is in a step and in no other phase."""

VERBS = {
    "visual_features": "visual", "encode_queries": "encode queries", "encode_documents": "encode documents",
}  # fmt: skip
"""Methods of a retriever (those that it has) that are phases while ``timed``."""


class Stopwatch:
    """Seconds of each phase, without those of phases inside it, from the step behind the first ``warm_up`` on.

    What precedes that step (a first batch looked at, say) is no part of it.
    """

    def __init__(self, warm_up: int = 0, wait: Callable[[], Any] | None = None) -> None:
        """wait: called at both ends of a phase so that a GPU's work is in the phase that asked for it."""
        self.wait = wait
        self.seconds: dict[str, float] = {}
        self.steps, self.checkpoints = -warm_up, 0
        self._inner: list[float] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if name == "step" and self.steps == 0:
            self.seconds, self.checkpoints = {}, 0
        began = self._now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = self._now() - began
            own = spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent
            key = "other" if name == "step" else name
            self.seconds[key] = self.seconds.get(key, 0.0) + own
            self.steps += name == "step"
            self.checkpoints += name == "checkpoint"

    def _now(self) -> float:
        if self.wait is not None:
            self.wait()
        return time.perf_counter()

    def per_step(self) -> dict[str, float]:
        """phase -> seconds, in the order of ``ORDER``; of a checkpoint the seconds of one."""
        names = [*ORDER, *(n for n in self.seconds if n not in ORDER)]
        counts = {"checkpoint": self.checkpoints}
        return {n: self.seconds[n] / max(1, counts.get(n, self.steps)) for n in names if n in self.seconds}


@contextlib.contextmanager
def timed(retriever: Retriever, watch: Stopwatch) -> Iterator[None]:
    """The retriever's verbs are phases meanwhile."""
    chosen = [name for name in VERBS if hasattr(retriever, name)]

    def of(name: str) -> Callable:
        real = getattr(retriever, name)

        def verb(*args: Any, **kwargs: Any) -> Any:
            with watch(VERBS[name]):
                return real(*args, **kwargs)

        return verb

    for name in chosen:
        setattr(retriever, name, of(name))
    try:
        yield
    finally:
        for name in chosen:
            delattr(retriever, name)  # the class's shows again


def table(seconds: dict[str, float]) -> list[str]:
    """Lines of name, milliseconds, share of a step and a bar. A checkpoint is no part of a step."""
    step = sum(value for name, value in seconds.items() if name != "checkpoint") or 1.0
    lines = []
    for name, value in seconds.items():
        share = "each" if name == "checkpoint" else f"{value / step:4.0%}"
        bar = "" if name == "checkpoint" else "#" * round(40 * value / step)
        lines.append(f"{name:18}{1000 * value:10.1f} ms {share:>5}  {bar}".rstrip())
    return [*lines, f"{'step':18}{1000 * step:10.1f} ms"]


def chart(seconds: dict[str, float], title: str, path: str | Path) -> None:
    """Horizontal bars, one per phase of a step, as an SVG; a checkpoint, which is no part of one, is said below."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names = [name for name in seconds if name != "checkpoint"]
    step = sum(seconds[name] for name in names) or 1.0
    figure = Figure(figsize=(7.5, 1.1 + 0.34 * len(names)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    colors = ["#b8b8b8" if name == "other" else "#3b6ea5" for name in names]
    bars = axes.barh(range(len(names)), [1000 * seconds[name] for name in names], color=colors)
    axes.bar_label(bars, [f"{1000 * seconds[n]:.1f} ({seconds[n] / step:.0%})" for n in names], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    each = f"; a checkpoint takes {1000 * seconds['checkpoint']:.0f} ms" if "checkpoint" in seconds else ""
    axes.set_xlabel(f"ms of a step, {1000 * step:.1f} in all{each}", fontsize=8)
    axes.set_title(title, fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="svg")
