"""Means, intervals and paired tests of benchmarks/vid2r_ablation.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.paired import differences, group_interval, holm, mean_over_runs, randomisation_test


def report(
    runs: Mapping[str, Sequence[dict]], names: Mapping[str, str], data: Mapping, pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str], main: str,
) -> dict:  # fmt: skip
    """{"facts": numbers, "table": Markdown}. Values are means over seeds; intervals (95 %) redraw countries or
    concepts, the sign-flip test flips them together, and Holm corrects within a split."""
    import dataset
    from core.config import check

    runs = {name: found for name, found in runs.items() if found}
    facts: dict = {"means": {}, "pairs": {}}
    lines: list[str] = []
    for where, (splits, fact) in data.items():
        queries = dataset.build(check(dataset.config_class({"name": where}), {"name": where}, "data"))
        for split in splits:
            groups = {q.id: str(q.meta[fact]) for q in queries.queries(split)}
            lines += [f"| {where} {split} | seeds | " + " | ".join(metrics) + f" | {main}, each seed |",
                      "|---" * (len(metrics) + 3) + "|"]  # fmt: skip
            values = {}
            for name, found in runs.items():
                each = {m: [run["splits"][where][split][m] for run in found] for m in metrics}
                means = {m: mean_over_runs(v) for m, v in each.items()}
                values[name] = means[main]
                cells = []
                for m in metrics:
                    low, high = group_interval(means[m], groups)
                    cells.append(f"{mean(means[m]):.3f} [{low:.3f}, {high:.3f}]")
                    facts["means"][f"{where} {split} {name} {m}"] = [mean(means[m]), low, high]
                seeds = " ".join(f"{mean(v):.3f}" for v in each[main])
                lines.append(f"| {names[name]} | {len(found)} | " + " | ".join(cells) + f" | {seeds} |")
            compared = [(a, b) for a, b in pairs if a in values and b in values]
            p = [randomisation_test(values[a], values[b], groups) for a, b in compared]
            lines += ["", f"| {where} {split}, {main} | difference | p | p (Holm) |", "|---|---|---|---|"]
            for (a, b), raw, corrected in zip(compared, p, holm(p)):
                gaps = differences(values[a], values[b])
                low, high = group_interval(gaps, groups)
                facts["pairs"][f"{where} {split} {a} - {b}"] = [mean(gaps), low, high, raw, corrected]
                lines.append(
                    f"| {names[a]} against {names[b]} | {mean(gaps):+.3f} [{low:+.3f}, {high:+.3f}] | {raw:.2g} | "
                    f"{corrected:.2g} |"
                )
            lines.append("")
    return {"facts": facts, "table": "\n".join(lines)}


def mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
