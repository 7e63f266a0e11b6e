"""Whether two systems differ: the paired randomisation (sign-flip) test over queries, and Holm's correction.

If the systems were the same, each query's difference could as well have had the other sign. The p-value is the share
of random sign assignments whose mean difference is at least as large as the observed one. Queries about one thing (one
country, one article) succeed and fail together; ``groups`` flips their signs together, which is what makes them one
observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core.errors import UserError
from evaluation import bootstrap
from evaluation.bootstrap import differences as differences

ROUNDS = 10_000
_CELLS = 1 << 22  # signs held at once


def randomisation_test(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    groups: Mapping[str, str] | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the mean difference over the same queries; never 0: at least 1 / (rounds + 1).

    groups: query id -> name; queries of one name change sign together (default: each alone).
    """
    gaps = differences(ours, theirs)
    if groups is not None and (lost := [qid for qid in gaps if qid not in groups]):
        raise UserError(f"query '{lost[0]}' has no group ({len(lost)} such queries); name one for every query.")
    if rounds < 100:
        raise UserError(f"rounds={rounds} is too few for a p-value; use {ROUNDS}.")
    sums: dict[str, float] = {}
    for qid, gap in gaps.items():
        name = qid if groups is None else groups[qid]
        sums[name] = sums.get(name, 0.0) + gap
    values = np.array([sums[name] for name in sorted(sums)])  # sorted: independent of the order of evaluation
    values = values[values != 0]
    if not len(values):
        return 1.0
    observed = abs(values.sum())
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(values))
    extreme = 0
    for done in range(0, rounds, step):
        signs = rng.integers(0, 2, size=(min(step, rounds - done), len(values)), dtype=np.int8) * 2.0 - 1.0
        # A rounding error must not turn an equally large difference into a smaller one.
        extreme += int((np.abs(signs @ values) >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (rounds + 1)


def group_interval(
    values: Mapping[str, float],
    groups: Mapping[str, str],
    resamples: int = bootstrap.RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high) of the mean over queries when whole groups are resampled: what other countries, or other articles,
    could have given. Values, or differences of two systems."""
    if not values:
        raise UserError("an interval wants at least one query.")
    numbers = {name: i for i, name in enumerate(sorted({groups[qid] for qid in values}))}
    sums, counts = np.zeros(len(numbers)), np.zeros(len(numbers))
    for qid, value in values.items():
        sums[numbers[groups[qid]]] += value
        counts[numbers[groups[qid]]] += 1
    rng = np.random.default_rng(seed)
    step, means = max(1, _CELLS // len(numbers)), []
    for done in range(0, resamples, step):
        drawn = rng.integers(len(numbers), size=(min(step, resamples - done), len(numbers)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values of a family of comparisons, in the given order, each at most 1.

    Calling those below a level significant keeps the chance of any false call below that level (Holm 1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        out[i] = largest
    return out


def mean_over_runs(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Per-query means over several runs (seeds) of one system, which must have answered the same queries."""
    if not runs:
        raise UserError("there are no runs to average; give at least one.")
    if any(set(run) != set(runs[0]) for run in runs):
        raise UserError("the runs answered different queries; average runs over the same queries.")
    return {qid: sum(run[qid] for run in runs) / len(runs) for qid in runs[0]}
