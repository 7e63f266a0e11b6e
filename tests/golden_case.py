"""The golden harness: a case records what was compared, with which tolerance, and insists on all of it.

A runner (``tests/golden_runners/<system>.py``) computes our values and hands them to ``Case.tensor``, ``Case.json``
and ``Case.gradients``; what is an input or a debugging aid it names with ``Case.aside`` and a reason. ``Case.finish``
fails below 100 %. ``Case.mutate`` proves that each comparison can fail: every expected value, moved by ten times its
tolerance, must be told apart from ours.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden"))

TOLERANCE = {  # kind -> (rtol, atol); no looser than the cases' own text
    "embedding": (0.0, 2e-5),
    "score": (0.0, 1e-4),
    "loss": (1e-4, 0.0),
    "gradient": (2e-3, 1e-6),
    "exact": (0.0, 0.0),
    "fraction": (0.0, 1e-12),  # a mean of ones and zeros, or of reciprocal ranks
    # FLMR's cases: scores and losses; the loss over two processes; gradients' norms; their entries divided by the norm;
    # attention key biases, whose true gradient is zero.
    "value": (1e-5, 1e-4),
    "gathered_loss": (0.0, 1e-5),
    "norm": (1e-3, 0.0),
    "entry": (0.0, 1e-4),
    "noise": (0.0, 1e-4),
}

LATER = {  # systems whose work is still to come
    "uniir_clip", "uniir_blip", "mbeir", "fromage",
}  # fmt: skip


def cases() -> list[Path]:
    """Every case folder below the root."""
    return sorted(p.parent for p in ROOT.rglob("case.json"))


def close(expected: Any, ours: Any, kind: str) -> bool:
    """Whether two values agree: |ours - expected| <= atol + rtol * |expected|, exact for anything but floats."""
    rtol, atol = TOLERANCE[kind]
    if isinstance(expected, Tensor):
        ours = torch.as_tensor(ours).detach().cpu()
        if expected.shape != ours.shape:
            return False
        if kind == "exact":
            return bool(torch.equal(expected, ours.to(expected.dtype)))
        difference = (ours.double() - expected.double()).abs()
        return bool((difference <= atol + rtol * expected.double().abs()).all())
    if isinstance(expected, float) and kind != "exact":
        return abs(ours - expected) <= atol + rtol * abs(expected)
    if isinstance(expected, list) and isinstance(ours, (list, tuple)):
        return len(expected) == len(ours) and all(close(e, o, kind) for e, o in zip(expected, ours))
    return expected == ours


@dataclass
class Case:
    """One folder of golden numbers."""

    path: Path
    compared: dict[str, tuple[Any, Any, str]] = field(default_factory=dict)
    asides: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.facts = self._load("case.json")
        self.system = self.facts["system"]
        self.texts = self._load("texts.json")
        self.inputs = self._tensors("inputs.safetensors")
        self.expected = self._tensors("expected.safetensors")
        self.lists = dict(leaves(self._load("expected.json")))
        self.grads = self._load("gradients.json")

    def _load(self, name: str) -> Any:
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.path / name) if (self.path / name).is_file() else {}

    def names(self) -> list[str]:
        """Everything that wants comparing."""
        grads = [f"gradient:{loss}:{p}" for loss, table in self.grads.items() for p in table]
        return [f"tensor:{n}" for n in self.expected] + [f"json:{n}" for n in self.lists] + grads

    def tensor(self, name: str, ours: Any, kind: str) -> None:
        self._compare(f"tensor:{name}", self.expected[name], ours, kind)

    def json(self, name: str, ours: Any, kind: str = "exact") -> None:
        self._compare(f"json:{name}", self.lists[name], ours, kind)

    def gradients(self, loss: str, ours: dict[str, Tensor | None]) -> None:
        """norm, sum and leading values of each parameter's gradient; ours by the original's names."""
        for name, expected in self.grads[loss].items():
            key = f"gradient:{loss}:{name}"
            if name.endswith(("attention.self.key.bias", "self_attn.k_proj.bias")):
                self.asides[key] = "an attention key bias has zero true gradient, what is left is rounding noise"
                continue
            grad = ours[name]
            if expected is None or grad is None:
                self._compare(key, expected, grad, "exact")
                continue
            g = grad.double().flatten()
            facts = [*([g.norm().item()]), *g[:5].tolist()]
            self._compare(key, [expected["norm"], *expected["head"]], facts, "gradient")
            self._compare(f"{key}/shape", expected["shape"], list(grad.shape), "exact")
            # A sum may cancel to nothing; its rounding noise follows the summands, not the sum.
            noise = 1e-6 * g.abs().sum().item()
            if abs(expected["sum"]) > 10 * noise:
                self._compare(f"{key}/sum", expected["sum"], g.sum().item(), "gradient")
            elif abs(g.sum().item() - expected["sum"]) > 1e-6 + 10 * noise:
                self.wrong.append(f"{key}/sum: expected {expected['sum']}, ours {g.sum().item()}")

    def compare(self, name: str, expected: Any, ours: Any, kind: str) -> None:
        """An entry of ``names``, or a part of one, whose values a runner took apart itself."""
        self._compare(name, expected, ours, kind)

    def aside(self, pattern: str, reason: str) -> None:
        """Name entries that are inputs or debugging aids, with the reason they are not compared."""
        for name in self.names():
            if fnmatch.fnmatch(name, pattern) and name not in self.compared:
                self.asides[name] = reason

    def _compare(self, key: str, expected: Any, ours: Any, kind: str) -> None:
        self.compared[key] = (expected, ours, kind)
        if not close(expected, ours, kind):
            self.wrong.append(f"{key} ({kind}): {_difference(expected, ours)}")

    def finish(self) -> str:
        """Fail on any difference and on anything left out; returns the coverage line."""
        left = [n for n in self.names() if n not in self.compared and n not in self.asides]
        done = len(self.names()) - len(left)
        line = f"{self.system}/{self.path.name}: {done}/{len(self.names())} accounted for, {len(self.asides)} aside"
        assert not self.wrong, f"{line}; wrong:\n  " + "\n  ".join(self.wrong[:20])
        assert not left, f"{line}; left out:\n  " + "\n  ".join(left[:20])
        assert self.compared, f"{line}; nothing was compared"
        return line

    def mutate(self) -> int:
        """Every expected value moved by 10 x its tolerance must differ from ours; returns how many were tried."""
        tried = 0
        for key, (expected, ours, kind) in self.compared.items():
            for moved in _moved(expected, kind):
                tried += 1
                assert not close(moved, ours, kind), f"{key}: a change of 10 x the tolerance goes unnoticed"
        return tried


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _moved(expected: Any, kind: str) -> Iterator[Any]:
    """Copies of a value with one entry moved: a few positions of a tensor, every position of a list."""
    rtol, atol = TOLERANCE[kind]
    if isinstance(expected, Tensor):
        flat = expected.flatten()
        for i in sorted({0, len(flat) // 2, len(flat) - 1}) if len(flat) else ():
            copy = flat.clone().double() if flat.is_floating_point() else flat.clone()
            if copy.dtype == torch.bool:
                copy[i] = ~copy[i]
            else:
                copy[i] += 1 if kind == "exact" else 10 * (atol + rtol * abs(copy[i].item())) or 10 * atol
            yield copy.view(expected.shape)
    elif isinstance(expected, list):
        for i, item in enumerate(expected):
            for moved in _moved(item, kind):
                yield [*expected[:i], moved, *expected[i + 1 :]]
        yield [*expected, "one more"]
    elif isinstance(expected, bool) or expected is None:
        yield "changed"
    elif isinstance(expected, (int, float)):
        yield expected + (1 if kind == "exact" else 10 * (atol + rtol * abs(expected)))
    else:
        yield f"{expected} changed"


def _difference(expected: Any, ours: Any) -> str:
    if isinstance(expected, Tensor):
        ours = torch.as_tensor(ours).detach().cpu()
        if expected.shape != ours.shape:
            return f"shape {tuple(expected.shape)}, ours {tuple(ours.shape)}"
        return f"largest difference {(ours.double() - expected.double()).abs().max():.3g}"
    return f"expected {str(expected)[:200]}, ours {str(ours)[:200]}"
