"""Which runs the comparison has: (data set, arm, seed) -> the sections of a run's YAML.

A run's config is the base of its data set, changed by its arm, by what was tuned for the arm's family, and by the
caller (the smoke test makes everything small). Its fingerprint names the result: a changed config is a new run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from core.config import load_yaml
from core.errors import UserError
from core.files import fingerprint

TEXT = "text_tower"
"""The arm that is none: its projection, with the frozen trunk, is the text tower of all others."""

ABOUT = ("says", "family", "like", "phase_a", "without", "teacher", "weights_of")


@dataclass(frozen=True)
class Arm:
    """phase_a: share of the steps that phase A takes. teacher: weight of ``PassageTeacher``. None: without.

    weights_of: the arm whose trained weights this one judges under its own config. changes: sections over the base's.
    """

    name: str
    says: str
    family: str
    phase_a: float | None
    without: tuple[str, ...]
    teacher: float | None = None
    weights_of: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """bases: data set -> its YAML. tuned: {data set: {family: {section: {key: value}}}}, from ``tune``."""

    bases: dict[str, dict]
    arms: dict[str, Arm]
    tuned: dict[str, dict]
    root: Path

    def runs(self, seeds: Sequence[int], arms: Sequence[str] | None = None) -> list[tuple[str, str, int]]:
        """Every (data set, arm, seed) to train, seed by seed, so that an unfinished grid is one of fewer seeds."""
        chosen = [self.arm(a) for a in arms] if arms else [a for a in self.arms.values() if a.name != TEXT]
        chosen = [a for a in chosen if a.weights_of is None]
        return [(d, a.name, s) for s in seeds for d in self.bases for a in chosen if d not in a.without]

    def twins(self, name: str) -> list[Arm]:
        """The arms that judge this one's weights."""
        return [a for a in self.arms.values() if a.weights_of == name]

    def arm(self, name: str) -> Arm:
        if name not in self.arms:
            raise UserError(f"there is no arm '{name}' in arms.yaml; it has {', '.join(self.arms)}.")
        return self.arms[name]

    def phases(self, data: str, name: str, seed: int, changes: Mapping[str, Any] | None = None) -> list[dict]:
        """The run's YAML, or the two of phase A and phase B. The steps of both phases together are the base's."""
        arm = self.arm(name)
        tuned = self.tuned.get(data, {}).get(arm.family, {})
        place = {"out": str(self.folder(data, name, seed))}
        whole = _merge(self.bases[data], arm.changes, tuned, {"train": {"seed": seed}, "run": place}, changes or {})
        _drop_foreign(whole, self.bases[data], arm.changes)
        if arm.phase_a is None:
            return [whole]
        steps = whole["train"]["steps"]
        first = max(1, round(arm.phase_a * steps))
        visual = [kind for kind in _rows(whole["model"]) if kind != "text"]
        a = _merge(whole, {
            "run": {"out": whole["run"]["out"] + "-phase_a"},  # beside it: text states are kept beside runs
            "model": {"frozen": ["text", "linear", "vision"], "train": {"rows": visual}},
            "train": {"steps": first},
        })  # fmt: skip
        b = _merge(whole, {
            "run": {"init": a["run"]["out"]},
            "model": {"fresh": []},
            "train": {"steps": steps - first},
        })  # fmt: skip
        for part in (a, b):
            part["train"]["warmup_steps"] = min(part["train"].get("warmup_steps", 0), part["train"]["steps"] // 4)
        return [a, b]

    def folder(self, data: str, name: str, seed: int) -> Path:
        return self.root / data / "runs" / f"{name}-{seed}"

    def text_tower(self, data: str) -> Path:
        return self.root / data / TEXT


def _rows(model: dict) -> list[str]:
    """The kinds of rows that the family's queries have when the YAML does not say."""
    import models

    stage = models.config_class(model).model_fields["train"].default
    return list(model["train"].get("rows", stage.rows))


def key(arm: Arm, phases: Sequence[dict], text_tower: str) -> str:
    """What a result depends on: its configs without places, the objective, and the weights of the text tower."""
    plain = [{k: v for k, v in p.items() if k not in ("run", "visual")} for p in phases]
    return fingerprint([plain, text_tower, *([arm.teacher] if arm.teacher else [])])


def load(folder: str | Path, root: str | Path, data: Sequence[str]) -> Plan:
    """Read ``<data>.yaml`` of every data set, ``arms.yaml``, and ``tuned.yaml`` when there is one."""
    folder, root = Path(folder), Path(root)
    bases = {name: load_yaml(folder / f"{name}.yaml") for name in data}
    for name, base in bases.items():
        base["model"]["text_tower"] = str(root / name / TEXT)
        base["visual"]["cache"] = str(root / "features" / Path(base["visual"]["cache"]).name)
    raw = load_yaml(folder / "arms.yaml")
    arms = {}
    for name in raw:
        entry, about = _inherited(raw, name)
        if cache := entry.get("visual", {}).get("cache"):
            entry["visual"]["cache"] = str(root / "features" / Path(cache).name)
        own_weights = raw[name].get("weights_of")  # never inherited: an arm like this one trains
        arms[name] = Arm(
            name, about["says"], about["family"], about.get("phase_a"), tuple(about.get("without", ())),
            about.get("teacher"), own_weights, entry,
        )  # fmt: skip
    tuned = load_yaml(folder / "tuned.yaml") if (folder / "tuned.yaml").is_file() else {}
    return Plan(bases, arms, tuned, root)


def _inherited(raw: dict, name: str) -> tuple[dict, dict]:
    """(sections, facts about the arm) with those of the arm it is like underneath."""
    if name not in raw:
        raise UserError(f"arms.yaml: an arm is like '{name}', which does not exist; it has {', '.join(raw)}.")
    entry = raw[name]
    own = {k: v for k, v in entry.items() if k not in ABOUT}
    about = {k: entry[k] for k in ABOUT if k in entry}
    if "like" not in entry:
        return own, about
    sections, facts = _inherited(raw, entry["like"])
    return _merge(sections, own), {**facts, **about}


def _merge(*parts: Mapping[str, Any]) -> dict:
    return OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(dict(p)) for p in parts)))


def _drop_foreign(whole: dict, base: dict, changes: dict) -> None:
    """Leave out what the base says of its own family and the arm's does not have; the arm's own keys must all fit."""
    import models

    fields = models.config_class(whole["model"]).model_fields
    own = changes.get("model", {})
    for name in [k for k in base["model"] if k not in fields and k not in own]:
        del whole["model"][name]
    if "vision" not in fields:
        whole["visual"]["cache"] = None
