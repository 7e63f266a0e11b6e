"""What runs share, made before any of them: text towers, visual features, text states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusions import one
from fusions import plan as plans


def everything(plan: plans.Plan, arms: Sequence[str] | None = None, changes: Mapping[str, Any] | None = None) -> None:
    """Complete the caches that the chosen arms need; what is complete is left alone."""
    seen = set()
    for data in plan.bases:
        one.make_text_tower(plan, data, changes)
        for _, arm, seed in plan.runs([1], arms):
            if data in plan.arm(arm).without:
                continue
            raw = plan.phases(data, arm, seed, changes)[-1]
            needs = json.dumps([raw["data"], raw["model"].get("vision"), raw["visual"], raw["model"]["train"]])
            if needs not in seen:
                seen.add(needs)
                caches(raw)


def caches(raw: dict) -> None:
    """The visual features and the text states of one run, as training would make them."""
    from runs.training import build_retriever, text_states, visual_features

    raw = {**raw, "run": {k: v for k, v in raw["run"].items() if k != "init"}}
    cfg = one.configured(raw)
    if raw["model"].get("fresh") == [] and "vision" in raw["model"]:
        cfg = one.configured({**raw, "model": {**raw["model"], "fresh": ["fusion"]}})
    retriever, data = build_retriever(cfg), one.data_of(cfg)
    visual_features(cfg, retriever, data)
    text_states(cfg, retriever, data, Path(cfg.run.out))
