"""From results to what docs/fusions.md shows: tables, paired tests, and one plot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.errors import UserError
from core.files import atomic_file, read_json
from evaluation.paired import differences, group_interval, holm, mean_over_runs, randomisation_test
from fusions import one
from fusions.plan import Arm, Plan

MAIN, SHOWN = "MRR@10", ("Success@1", "Success@5", "MRR@10")

GROUP = {"flagfacts": "country", "wikilens": "concept"}
"""Fact of a query that makes it one observation with others: what its picture shows."""

PAIRS = (
    ("cls", "colbert", "the image, as global rows"),
    ("mire_legacy", "cls", "fusion-free pooled rows, as published"),
    ("mire_clean", "cls", "fusion-free pooled rows, padding repaired"),
    ("mire_clean", "mire_legacy", "the repaired pooling against the published"),
    ("mire_train", "mire_legacy", "padding counted everywhere against the published"),
    ("mire_clean", "mire_train", "the repaired pooling against padding counted everywhere"),
    ("mire_legacy_64", "mire_legacy", "same weights, padded to 64 at inference"),
    ("mire_clean_pre", "mire_clean", "pre-training on visual rows"),
    ("mire_train_pre", "mire_train", "the same, padding counted"),
    ("mire_legacy_pre", "mire_legacy", "the same, as published"),
    ("mire_full_grid", "mire_clean", "all patches instead of 7 x 7"),
    ("mire_clean", "ret_xknow_k3", "MIRe against Ret-XKnow"),
    ("mire_clean", "ret_xknow_k5", "MIRe against Ret-XKnow"),
    ("mire_clean", "mire_preflmr", "fusion-free against fused"),
    ("mire_clean", "flmr", "MIRe against FLMR"),
    ("mire_clean", "preflmr", "MIRe against PreFLMR"),
    ("preflmr", "flmr", "a row per patch, and a projection per side"),
    ("preflmr", "mire_preflmr", "PreFLMR against the repositories' smaller one"),
)
"""(arm, the arm it is compared with, what the difference is); every ``plus_*`` arm joins them against mire_clean."""

Runs = dict[str, list[dict]]
"""arm -> its results, one per seed."""


def collected(plan: Plan, data: str, seeds: Sequence[int], changes: Mapping | None = None) -> Runs:
    """The finished results of the present configs, in the order of the arms."""
    folder, found = plan.root / data / "results", {}
    for arm in plan.arms.values():
        made = [folder / f"{arm.name}-{seed}.json" for seed in seeds]
        valid = [
            p for seed, p in zip(seeds, made) if p.is_file() and one.is_done(plan, data, arm.name, seed, p, changes)
        ]
        if valid:
            found[arm.name] = [read_json(p, "result") for p in valid]
    return found


def pooled(result: dict, metric: str, splits: Sequence[str]) -> dict[str, float]:
    """{split and query id: value} over several splits of one result."""
    return {f"{split}|{qid}": v for split in splits for qid, v in result["splits"][split][metric].items()}


def groups_of(dataset, splits: Sequence[str], fact: str) -> dict[str, str]:
    """{split and query id: what its picture shows}."""
    return {f"{split}|{q.id}": str(q.meta[fact]) for split in splits for q in dataset.queries(split)}


def summary(runs: Sequence[dict], splits: Sequence[str], valid: str, groups: Mapping[str, str]) -> dict:
    """What the table says of one arm: means over its seeds; intervals over groups of all test queries."""
    out: dict = {"seeds": len(runs)}
    for metric in SHOWN:
        for split in (valid, *splits):
            values = mean_over_runs([pooled(r, metric, [split]) for r in runs])
            out[f"{split} {metric}"] = sum(values.values()) / len(values)
        everything = mean_over_runs([pooled(r, metric, splits) for r in runs])
        out[f"all {metric}"] = sum(everything.values()) / len(everything)
        out[f"all {metric} interval"] = group_interval(everything, groups)
    one_by_one = [sum(v := pooled(r, MAIN, splits).values()) / len(v) for r in runs]
    out["range"] = (min(one_by_one), max(one_by_one))
    for fact in ("query_rows", "head_parameters"):
        out[fact] = runs[-1][fact]
    out["encode_ms"] = min(r["encode_ms"] for r in runs)  # the least disturbed
    return out


def paired(runs: Runs, splits: Sequence[str], groups: Mapping[str, str]) -> list[dict]:
    """Every pair of ``PAIRS`` that was run, over the seeds that both have, with Holm's correction over all of them."""
    wanted = [*PAIRS, *((name, "mire_clean", "") for name in runs if name.startswith("plus_"))]
    out = []
    for ours, theirs, what in wanted:
        if ours not in runs or theirs not in runs:
            continue
        seeds = {r["seed"] for r in runs[ours]} & {r["seed"] for r in runs[theirs]}
        a, b = (
            mean_over_runs([pooled(r, MAIN, splits) for r in runs[name] if r["seed"] in seeds])
            for name in (ours, theirs)
        )
        gaps = differences(a, b)
        out.append(
            {
                "ours": ours, "theirs": theirs, "what": what, "seeds": len(seeds),
                "difference": sum(gaps.values()) / len(gaps), "interval": group_interval(gaps, groups),
                "p": randomisation_test(a, b, groups),
            }
        )  # fmt: skip
    for row, corrected in zip(out, holm([row["p"] for row in out])):
        row["holm"] = corrected
    return out


def facts(plan: Plan, seeds: Sequence[int], changes: Mapping | None = None) -> dict:
    """All numbers of the report: {data set: {"splits", "arms": {arm: summary}, "pairs": [...]}}."""
    out = {}
    for data in plan.bases:
        runs = collected(plan, data, seeds, changes)
        if not runs:
            continue
        source = one.data_of(one.configured(plan.phases(data, "mire_clean", seeds[0], changes)[-1]))
        splits, valid = list(source.test_splits), source.valid_split
        groups = groups_of(source, splits, GROUP[data])
        arms = {name: summary(found, splits, valid, groups) for name, found in runs.items()}
        judged = {split: len(next(iter(runs.values()))[0]["splits"][split][MAIN]) for split in (valid, *splits)}
        out[data] = {
            "splits": splits,
            "valid": valid,
            "judged": judged,
            "arms": arms,
            "pairs": paired(runs, splits, groups),
        }
    if not out:
        raise UserError(f"'{plan.root}' has no finished run of the present configs; run it without --report first.")
    return out


# ---- Markdown


def arms_table(found: dict) -> str:
    splits = found["splits"]
    head = ["arm", "seeds", f"{found['valid']} {MAIN}", *(f"{s} Success@5" for s in splits), "all tests: Success@1",
            "Success@5", f"{MAIN} [95 %]", "seeds' range"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, row in found["arms"].items():
        low, high = row[f"all {MAIN} interval"]
        cells = [f"`{name}`", str(row["seeds"]), f"{row[found['valid'] + ' ' + MAIN]:.3f}"]
        cells += [f"{row[s + ' Success@5']:.3f}" for s in splits]
        cells += [f"{row['all Success@1']:.3f}", f"{row['all Success@5']:.3f}"]
        cells += [f"{row['all ' + MAIN]:.3f} [{low:.3f}, {high:.3f}]", "{:.3f} to {:.3f}".format(*row["range"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pairs_table(found: dict, arms: Mapping[str, Arm]) -> str:
    lines = [f"| comparison | seeds | {MAIN} difference [95 %] | p | p, Holm | |", "|---|---|---|---|---|---|"]
    for row in found["pairs"]:
        low, high = row["interval"]
        what = row["what"] or arms[row["ours"]].says.removeprefix("mire_clean ")
        verdict = "" if row["holm"] >= 0.05 else "better" if row["difference"] > 0 else "worse"
        lines.append(
            f"| `{row['ours']}` - `{row['theirs']}`: {what} | {row['seeds']} | {row['difference']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] | {row['p']:.4f} | {row['holm']:.4f} | {verdict} |"
        )
    return "\n".join(lines)


def cost_table(report: dict, arms: Mapping[str, Arm]) -> str:
    """Parameters of the head, rows and milliseconds of a query, per data set."""
    lines = ["| arm | what it is | " + " | ".join(f"{d}: head parameters, query rows, ms/query" for d in report) + " |",
             f"|---|---|{'---|' * len(report)}"]  # fmt: skip
    for name in dict.fromkeys(n for found in report.values() for n in found["arms"]):
        cells = []
        for found in report.values():
            row = found["arms"].get(name)
            cells.append(
                f"{row['head_parameters'] / 1e6:.2f} M, {row['query_rows']:.1f}, {row['encode_ms']:.1f}" if row else "-"
            )
        lines.append(f"| `{name}` | {arms[name].says} | {' | '.join(cells)} |")
    return "\n".join(lines)


def into_page(path: Path, report: dict, arms: Mapping[str, Arm]) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``: arms-DATA, pairs-DATA, cost."""
    made = {"cost": cost_table(report, arms)}
    for data, found in report.items():
        made[f"arms-{data}"], made[f"pairs-{data}"] = arms_table(found), pairs_table(found, arms)
    text = path.read_text(encoding="utf-8")
    for name, table in made.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise UserError(f"'{path}' has no place for '{name}'; add the lines <!-- {name} --> and <!-- /{name} -->.")
        text = pattern.sub(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)
    with atomic_file(path, "w") as handle:
        handle.write(text)


def plot(report: dict, path: Path) -> None:
    """One dot per arm with its interval, a panel per data set, as PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib; install it with: pip install matplotlib") from None
    names = list(dict.fromkeys(n for found in report.values() for n in found["arms"]))
    figure = Figure(figsize=(9, 1.2 + 0.27 * len(names)), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(report), sharey=True, squeeze=False)[0]
    for axes, (data, found) in zip(panels, report.items()):
        for place, name in enumerate(names):
            if (row := found["arms"].get(name)) is None:
                continue
            low, high = row[f"all {MAIN} interval"]
            mean, colour = row[f"all {MAIN}"], "C1" if name.startswith("plus_") else "C0"
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=2, ms=5)
        axes.set(xlabel=f"{MAIN}, all test splits", title=data)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.suptitle("Mean over seeds; whiskers: 95 % over what the pictures show", fontsize=10)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png")
