"""How fast a run goes and what it holds: the numbers of the live line and of metrics.jsonl."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from core import distributed
from training.batches import TrainBatch
from training.flops import Flops, real_tokens

UNREPEATABLE = ("time", "seconds", "samples_per_s", "tokens_per_s", "mfu", "memory_gb", "eta_s")
"""Numbers that two runs with the same weights do not share."""


class Meter:
    """Sums over the steps since the last answer; validation and checkpoints are not in the seconds."""

    def __init__(self, device: torch.device, total: int) -> None:
        self.device, self.total = device, total
        self.flops: Flops | None = None  # when it is there, the answer has "mfu"
        self.pace: float | None = None  # seconds of a step, the newest weighing most
        self._clear()

    def _clear(self) -> None:
        self.steps = self.samples = 0
        self.seconds = self.tokens = self.work = 0.0

    def count(self, batch: TrainBatch) -> tuple[int, float]:
        """Tokens and FLOPs of this process's micro-batch. Before it goes to a GPU: counting there would wait."""
        tokens = real_tokens(batch.queries) + real_tokens(batch.documents)
        return tokens, 0.0 if self.flops is None else self.flops.of(batch)

    def add(self, samples: int, tokens: float, work: float, seconds: float) -> None:
        """One step: queries, tokens and FLOPs of all processes, wall seconds with the wait for its batches."""
        self.steps += 1
        self.samples += samples
        self.tokens += tokens
        self.work += work
        self.seconds += seconds
        self.pace = seconds if self.pace is None else 0.95 * self.pace + 0.05 * seconds

    def read(self, step: int) -> dict[str, float]:
        """Numbers of the steps since ``clear``; see ``docs/training.md`` for what each counts."""
        spent = max(self.seconds, 1e-9)
        used = {} if self.flops is None else {"mfu": _short(self.flops.utilisation(self.work, spent))}
        return {
            "seconds": round(self.seconds / max(1, self.steps), 4),
            "samples_per_s": _short(self.samples / spent),
            "tokens_per_s": _short(self.tokens / spent),
            **used,
            "memory_gb": round(peak_memory(self.device) / 1e9, 3),
            "eta_s": round((self.total - step) * (self.pace or 0.0)),
        }

    def take(self, step: int) -> dict[str, float]:
        """``read``, then begin anew."""
        numbers = self.read(step)
        self._clear()
        return numbers


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of tensors on a GPU, of the whole process elsewhere (0 where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def live(bar: Any, numbers: dict[str, float], meter: Meter, step: int) -> None:
    """Move the bar on by one step; it adds the ETA itself."""
    now = meter.read(step)
    shown = {"loss": f"{numbers['loss']:.4f}"}
    if "accuracy" in numbers:
        shown["acc q->d"] = f"{numbers['accuracy']:.3f}"
    shown |= {
        "lr": f"{numbers['lr']:.2e}",
        "samples/s": f"{now['samples_per_s']:g}",
        "tokens/s": f"{now['tokens_per_s']:g}",
        **({"MFU": f"{now['mfu']:.1%}"} if "mfu" in now else {}),
        "GB": f"{now['memory_gb']:.2f}",
    }
    if numbers.get("skipped"):
        shown["skipped"] = f"{numbers['skipped']:.0f}"
    bar.set_postfix(shown, refresh=False)
    bar.update()


def world_samples(batch_size: int, accumulation: int) -> int:
    return batch_size * accumulation * distributed.world()


def _short(value: float) -> float:
    """Four significant digits."""
    return round(value, max(0, 3 - math.floor(math.log10(value)))) if value > 0 else 0.0
