"""What is tuned: the temperature, with the same trials for every family of arms, by the validation split alone."""

from __future__ import annotations

from pathlib import Path

import yaml

from core.files import atomic_file, read_json
from fusions.plan import Plan

TEMPERATURES = (2.0, 4.0, 8.0)
STEPS = 100
METRIC, SPLIT = "MRR@10", "dev"
ARMS = {
    "colbert": "colbert",
    "cls": "cls",
    "mire": "mire_clean",
    "ret_xknow": "ret_xknow_k5",
    "mire_preflmr": "mire_preflmr",
    "flmr": "flmr",
    "preflmr": "preflmr",
}
"""family -> the arm that is tried for it."""

HEADER = f"""\
# Temperatures for cfgs/fusions, chosen by {METRIC} on the validation split: one seed, {STEPS} steps, the same trials
# for every family. python benchmarks/compare_fusions.py --tune writes it; the comment behind a family has its trials.
"""


def trials(plan: Plan) -> list[tuple[str, str, float, Path, dict]]:
    """(data set, family, temperature, result file, changes of the run)."""
    made = []
    for data in plan.bases:
        for family in ARMS:
            for temperature in TEMPERATURES:
                name = f"{family}-{temperature:g}"
                place = {"out": str(plan.root / data / "runs" / f"tune-{name}")}
                changes = {"train": {"steps": STEPS}, "model": {"train": {"temperature": temperature}}, "run": place}
                result = plan.root / data / "tune" / f"{name}.json"
                made.append((data, family, temperature, result, changes))
    return made


def write(plan: Plan, path: Path) -> None:
    """The best temperature of every family, of equal ones the first, into ``path``."""
    tried: dict[str, dict[str, dict[float, float]]] = {}
    for data, family, temperature, result, _ in trials(plan):
        values = read_json(result, "trial")["splits"][SPLIT][METRIC].values()
        tried.setdefault(data, {}).setdefault(family, {})[temperature] = sum(values) / len(values)
    lines = [HEADER]
    for data, families in tried.items():
        lines.append(f"{data}:\n")
        for family, found in families.items():
            best = max(found, key=found.__getitem__)
            shown = ", ".join(f"{t:g} -> {value:.3f}" for t, value in found.items())
            section = yaml.safe_dump({family: {"model": {"train": {"temperature": best}}}}, default_flow_style=True)
            lines.append(f"  {section.strip().removeprefix('{').removesuffix('}')}   # {shown}\n")
    with atomic_file(path, "w") as handle:
        handle.writelines(lines)
