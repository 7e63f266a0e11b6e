"""The rules of the race: overlap with exact, the point of equal overlap, the size that is allowed, the ratios."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

import numpy as np

BYTES_ALLOWED = 1.05  # of the peer's bytes per vector
NOT_REACHED = "not reached"
TOO_LARGE = f"ours has more than {BYTES_ALLOWED} x its bytes per vector"

CANDIDATES = (64, 80, 100, 128, 160, 192, 256, 384, 512)
PROBES = (1, 2, 4, 8, 16)
OURS = [{"n_probe": p, "n_candidates": c} for c in CANDIDATES for p in PROBES]
"""Our settings; which is cheaper than which is measured, not assumed."""

POINTS = {
    "colbert-ai": [  # what its Searcher chooses for k <= 10, k <= 100 and above
        {"ncells": 1, "centroid_score_threshold": 0.5, "ndocs": 256},
        {"ncells": 2, "centroid_score_threshold": 0.45, "ndocs": 1024},
        {"ncells": 4, "centroid_score_threshold": 0.4, "ndocs": 4096},
    ],
    "fast-plaid": [{"n_ivf_probe": 8, "n_full_scores": 4096}],  # its defaults
    "exact": [{}],
}
BATCHES = {"colbert-ai": [1], "fast-plaid": [1, 16, 64, 100, 1000], "exact": [1, 64]}
"""Queries per call that are tried; colbert-ai searches one query at a time whatever it is given."""


def overlap(found: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Mean share of the exact top k that is in the found top k (ids [queries, >= k], -1 where nothing was found)."""
    k = min(k, truth.shape[1])
    shared = [len((set(f[:k]) - {-1}) & set(t[:k])) for f, t in zip(found.tolist(), truth.tolist())]
    return float(np.mean(shared)) / k


def within_bytes(ours: float, peers: float) -> bool:
    return ours <= BYTES_ALLOWED * peers


def equal_overlap(grid: Sequence[dict], point: dict) -> dict | None:
    """Our cheapest setting (by "ms") that is not below the peer's point at 10 nor at 100, if there is one."""
    reached = [g for g in grid if all(g[at] >= point[at] for at in ("overlap@10", "overlap@100"))]
    return min(reached, key=lambda g: g["ms"], default=None)


def ratio(peers: Sequence[float], ours: Sequence[float]) -> float:
    """Median over rounds of peer time / our time: what both suffered from in one round cancels."""
    return statistics.median(p / o for p, o in zip(peers, ours))


def point_ratios(times: dict[str, list[float]], best_batch: int, counts: bool) -> dict[str, float | None]:
    """The ratios of one point. "ratio" is the strict one: the peer at its best batch or at 1, whichever is faster in a
    round, against us at one query at a time. counts: whether the point was reached within the rules.
    """
    if not counts:
        return {"ratio": None}
    one, best, ours, ours_many = times["peer@1"], times[f"peer@{best_batch}"], times["ours@1"], times["ours@64"]
    return {
        "ratio": ratio([min(pair) for pair in zip(one, best)], ours),
        "ratio_batch_1": ratio(one, ours),
        "ratio_both_batched": ratio(best, ours_many),
        "our_gain_at_64": ratio(ours, ours_many),
    }


def headline(points: Sequence[dict]) -> float | None:
    """One number for a peer: the worst of its points, and none at all when one of them was not reached."""
    ratios = [p["ratio"] for p in points]
    return None if not ratios or None in ratios else min(ratios)


def slices(queries: int, rounds: int) -> list[tuple[int, int]]:
    """The queries of each round, disjoint and all of them together: every time is over all queries once."""
    edges = np.linspace(0, queries, min(rounds, queries) + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Plain columns, the first two flush left."""
    cells = [[_cell(v) for v in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))) for r in cells]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def name_of(setting: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in setting.items()) or "all"
