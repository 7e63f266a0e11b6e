"""Two systems on the same queries: what differs, by how much, how surely, and for which queries.

Every metric gets the means, the difference (B minus A) with its bootstrap interval, the p-value of the paired
randomisation test, and Holm's correction over all tests of one comparison (every metric of every file).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.protocols import Ranking
from evaluation import bootstrap, paired
from evaluation.files import PerQuery
from evaluation.report import results_table

CHANGED = 10
EMPTY = Ranking((), ())


def compared(
    pairs: Mapping[str, tuple[PerQuery, PerQuery]],
    metrics: Sequence[str] | None = None,
    by: str | None = None,
    together: str | None = None,
    changed: int = CHANGED,
    seed: int = 0,
) -> dict[str, Any]:
    """{"parts": {name: {"queries", "metrics": [...], "groups": [...], "better": [...], "worse": [...]}}, "tests"}

    pairs: part (such as "test.image+question") -> (A, B). metrics: default all that both have. by: a field of meta
    whose values get rows of their own. together: a field of meta whose queries are one observation: they change sign
    together in the test and are redrawn together for the interval. changed: queries to show in each direction.
    """
    parts = {}
    for name, (a, b) in pairs.items():
        names = shared(a, b, metrics, name)
        groups = None if together is None else values_of(a, b, together)
        rows = [row(a.scores[m], b.scores[m], m, groups, seed) for m in names]
        parts[name] = {"queries": len(a.rankings), "metrics": rows}
        if by is not None:
            parts[name]["groups"] = by_group(a, b, names, values_of(a, b, by), seed, groups)
        parts[name] |= movers(a, b, names, changed)
    rows = [row for part in parts.values() for row in part["metrics"]]
    for found, p in zip(rows, paired.holm([row["p"] for row in rows]), strict=True):
        found["p, Holm"] = p
    return {"tests": len(rows), "parts": parts}


def shared(a: PerQuery, b: PerQuery, metrics: Sequence[str] | None, part: str) -> list[str]:
    """The metrics to compare, in A's order. No metric, or not the same queries, is a UserError."""
    both = [name for name in a.scores if name in b.scores]
    lacking = [name for name in metrics or () if name not in both]
    if lacking or not both:
        what = f"metric '{lacking[0]}' is not" if lacking else "no metric is"
        raise UserError(f"{what} in both files of '{part}'; they have {', '.join(both) or 'none'} in common.")
    names = list(metrics) if metrics else both
    for name in names:
        paired.differences(b.scores[name], a.scores[name])
        if left := a.rankings.keys() - a.scores[name].keys():
            raise UserError(f"query '{min(left)}' of '{part}' has no '{name}'; evaluate it again.")
    return names


def row(
    a: Mapping[str, float], b: Mapping[str, float], metric: str, groups: Mapping[str, str] | None, seed: int
) -> dict[str, Any]:
    """One metric: means, difference with interval, wins of B, losses, ties, p-value."""
    found = bootstrap.compare(b, a, seed=seed)
    low, high = found.low, found.high
    if groups is not None:
        low, high = paired.group_interval(paired.differences(b, a), groups, seed=seed)
    return {
        "metric": metric,
        "A": sum(a.values()) / len(a),
        "B": sum(b.values()) / len(b),
        "difference": found.difference,
        "low": low,
        "high": high,
        "wins": found.wins,
        "losses": found.losses,
        "ties": found.ties,
        "p": paired.randomisation_test(b, a, groups, seed=seed),
    }


def values_of(a: PerQuery, b: PerQuery, field: str) -> dict[str, str]:
    """Query id -> the value of a field of meta, from either file; a query without it is a UserError."""
    found = {}
    for qid in a.rankings:
        metas = [side.facts.get(qid, {}).get("meta", {}) for side in (a, b)]
        value = next((meta[field] for meta in metas if field in meta), None)
        if value is None:
            known = ", ".join(sorted({key for meta in metas for key in meta})) or "none"
            raise UserError(f"query '{qid}' has no '{field}' in its meta; its fields are {known}.")
        found[qid] = str(value)
    return found


def by_group(
    a: PerQuery, b: PerQuery, metrics: Sequence[str], groups: Mapping[str, str], seed: int,
    together: Mapping[str, str] | None = None,
) -> list[dict]:  # fmt: skip
    """Per group and metric: how many queries, both means, the difference with interval. Without tests: many small
    groups always hold a few that differ by chance. together: query id -> what is redrawn as one observation."""
    rows = []
    for group in sorted(set(groups.values())):
        ids = [qid for qid in a.rankings if groups[qid] == group]
        for metric in metrics:
            ours, theirs = ({qid: side.scores[metric][qid] for qid in ids} for side in (b, a))
            found = bootstrap.compare(ours, theirs, seed=seed)
            low, high = found.low, found.high
            if together is not None:
                low, high = paired.group_interval(paired.differences(ours, theirs), together, seed=seed)
            rows.append(
                {"group": group, "queries": len(ids), "metric": metric, "A": sum(theirs.values()) / len(ids),
                 "B": sum(ours.values()) / len(ids), "difference": found.difference, "low": low, "high": high}
            )  # fmt: skip
    return rows


def movers(a: PerQuery, b: PerQuery, metrics: Sequence[str], count: int) -> dict[str, list[dict]]:
    """The queries that changed most, by the mean of their differences over the metrics; equal ones by id."""
    gaps = {qid: sum(b.scores[m][qid] - a.scores[m][qid] for m in metrics) / len(metrics) for qid in a.rankings}
    order = sorted(gaps, key=lambda qid: (-abs(gaps[qid]), qid))
    better = [qid for qid in order if gaps[qid] > 0][:count]
    worse = [qid for qid in order if gaps[qid] < 0][:count]
    return {
        "better": [mover(a, b, qid, gaps[qid]) for qid in better],
        "worse": [mover(a, b, qid, gaps[qid]) for qid in worse],
    }


def mover(a: PerQuery, b: PerQuery, qid: str, change: float) -> dict[str, Any]:
    facts = b.facts.get(qid, {}) | a.facts.get(qid, {})
    made: dict[str, Any] = {"query_id": qid, "change": change, "question": facts.get("question", "")}
    made["gold"] = facts.get("gold", [])
    for name, side in (("A", a), ("B", b)):
        ids = side.rankings.get(qid, EMPTY).ids
        passage = side.facts.get(qid, {}).get("passage", "")
        made[name] = {"top": ids[0] if ids else None, "passage": passage, "gold rank": rank_of(made["gold"], ids)}
    return made


def rank_of(gold: Sequence[str], ids: Sequence[str]) -> int | None:
    """Of the first gold document among the written top."""
    return next((rank for rank, id_ in enumerate(ids, 1) if id_ in gold), None)


def markdown(result: Mapping[str, Any], a: str, b: str) -> str:
    """The result as text. a, b: what the systems are called."""
    lines = [f"# {b} against {a}", "", f"A = {a}", f"B = {b}", ""]
    for name, part in result["parts"].items():
        lines += [f"## {name}: {part['queries']} queries", "", results_table([shown(r) for r in part["metrics"]])]
        if "groups" in part:
            lines += ["### By group", "", results_table([shown(r) for r in part["groups"]])]
        for key, title in (("better", "Queries that B answers better"), ("worse", "Queries that B answers worse")):
            if part[key]:
                lines += [f"### {title}", "", *(line for one in part[key] for line in story(one)), ""]
    lines += [
        "difference: B minus A, with the 95% bootstrap interval over queries. p: paired randomisation test, two-sided; "
        f"p, Holm: corrected for the {result['tests']} tests above. wins: queries for which B is better.",
        "",
    ]
    return "\n".join(lines)


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the interval beside the difference, p-values with four digits."""
    made = {}
    for key, value in row.items():
        if key == "difference":
            made[key] = f"{value:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        elif key not in ("low", "high"):
            made[key] = f"{value:.4f}" if key.startswith("p") else value
    return made


def story(one: Mapping[str, Any]) -> list[str]:
    """One query in a few lines."""
    lines = [f"- **{one['query_id']}** ({one['change']:+.3f}) {flat(one['question'])}"]
    for name in ("A", "B"):
        side = one[name]
        where = "not in the top" if side["gold rank"] is None else f"rank {side['gold rank']}"
        found = f"gold: {where}; " if one["gold"] else ""
        lines.append(f"    - {name}: {found}first: {side['top'] or 'nothing'} {flat(side['passage'])[:160]}".rstrip())
    return lines


def flat(text: str) -> str:
    return " ".join(text.split())
