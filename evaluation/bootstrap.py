"""How sure a mean over queries is: percentile bootstrap intervals, and the paired comparison of two systems.

The queries are the sample: they are redrawn with replacement, the documents and the model stay. An interval says how
much the mean would move with other queries of the same kind; it says nothing about another training seed. When all
queries have the same value (all 0 or all 1) the interval has no width, however few they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import UserError

RESAMPLES = 2000
MIN_RESAMPLES = 1000  # below, the ends of a 95 % interval rest on fewer than 25 resamples each
_CELLS = 1 << 22  # drawn indices held at once: 32 MiB


def interval(
    values: Mapping[str, float] | Sequence[float], resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """(low, high) of the mean over queries. The same values, resamples and seed give the same interval.

    A mapping {query id: value} is taken in the order of its ids, so that the order of evaluation does not matter.
    """
    return intervals({"": values}, resamples, level, seed)[""]


def intervals(
    metrics: Mapping[str, Mapping[str, float] | Sequence[float]],
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """``interval`` of several metrics over the same queries, which are redrawn once for all of them."""
    columns = []
    for values in metrics.values():
        if isinstance(values, Mapping):
            values = [values[qid] for qid in sorted(values)]
        data = np.asarray(values, dtype=np.float64)
        if data.ndim != 1 or not len(data):
            raise UserError(f"an interval wants one value per query, got shape {data.shape}; give at least one query.")
        if not np.isfinite(data).all():
            raise UserError("an interval got NaN or infinite values; give 0 for unanswered queries.")
        columns.append(data)
    if resamples < MIN_RESAMPLES:
        raise UserError(f"resamples={resamples} is too few for an interval; use {MIN_RESAMPLES} or more.")
    if not 0 < level < 1:
        raise UserError(f"level={level} is not between 0 and 1; use 0.95.")
    if len({len(data) for data in columns}) > 1:
        raise UserError("several metrics over different numbers of queries have no common interval; judge all on all.")
    matrix, size = np.stack(columns, 1), len(columns[0])
    rng = np.random.default_rng(seed)
    step, parts = max(1, _CELLS // size), []
    for done in range(0, resamples, step):
        rows = min(step, resamples - done)
        drawn = rng.integers(size, size=(rows, size)) + np.arange(rows)[:, None] * size
        counts = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        parts.append(counts.astype(np.float64) @ matrix / size)
    tail = (1 - level) / 2
    lows, highs = np.quantile(np.concatenate(parts), [tail, 1 - tail], axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(metrics, lows, highs)}


@dataclass(frozen=True)
class Comparison:
    """``ours`` minus ``theirs`` on the same queries. wins + losses + ties = number of queries."""

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int

    @property
    def differs(self) -> bool:
        """True when the interval of the difference excludes 0."""
        return self.low > 0 or self.high < 0


def compare(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Paired comparison of two systems by the differences per query; both must have answered the same queries.

    Pairing takes out how hard each query is, so it sees differences that two separate intervals would hide.
    """
    gaps = differences(ours, theirs)
    low, high = interval(gaps, resamples, level, seed)
    wins = sum(gap > 0 for gap in gaps.values())
    losses = sum(gap < 0 for gap in gaps.values())
    return Comparison(sum(gaps.values()) / len(gaps), low, high, wins, losses, len(gaps) - wins - losses)


def differences(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Query id -> ours minus theirs, in the order of the ids; both must have answered the same queries."""
    alone = sorted(set(ours) ^ set(theirs))
    if alone:
        raise UserError(
            f"query '{alone[0]}' was judged for one system only ({len(alone)} such queries); "
            "compare on the same queries."
        )
    if not ours:
        raise UserError("there are no queries to compare; judge at least one.")
    return {qid: float(ours[qid]) - float(theirs[qid]) for qid in sorted(ours)}
