"""One race: every contestant in a process of its own, turns one after the other, medians and ratios."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError
from steps.setting import Options
from steps.worker import Local, Process

HERE = Path(__file__).resolve().parent
TOLERANCE = {"plain": 0.0, "cached": 2e-3, "ours": 2e-2}
"""How far a contestant's first loss may be from the first one's: features are stored in fp16, ours computes in bf16."""


def environment(threads: int, device: str) -> dict[str, str]:
    made = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        made["CUDA_VISIBLE_DEVICES"] = ""
    made.pop("PYTHONPATH", None)
    return made


def start(name: str, options: Options, local: bool = False) -> Process | Local:
    """One of ``arms.ARMS``, in a process of its own unless ``local``."""
    if local:
        from steps.arms import ARMS

        return Local(ARMS[name](options), options.device)
    command = [sys.executable, str(HERE / "worker.py"), name, json.dumps(dataclasses.asdict(options))]
    log = Path(options.home) / f"{options.case}-{name}.log"
    return Process(name, command, log, environment(options.threads, options.device))


def run(options: Options, arms: dict[str, Process | Local], rounds: int, steps: dict[str, int]) -> dict:
    """Prepare, compare the losses, take turns. steps: of each contestant per turn. -> {"arms", "losses"}."""
    most, once, losses = max(steps.values()), {}, {}
    for name, arm in arms.items():
        once[name] = arm.ask("prepare", turns=rounds, steps=most)
        say(f"{options.case}, {name}: ready")
    for name, arm in arms.items():
        losses[name] = arm.ask("loss")["loss"]
    check_losses(losses)
    turns: dict[str, list[dict]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name, arm in arms.items():
            turns[name].append(arm.ask("turn", turn=turn, steps=steps[name]))
            pace = turns[name][-1]["batch"] / statistics.median(turns[name][-1]["seconds"])
            say(f"{options.case}, {name}, turn {turn + 1} of {rounds}: {pace:.2f} samples/s")
    found = {name: summary(turns[name]) for name in arms}
    for name, one in found.items():
        one |= once[name] | {"peak_gb": one["peak_gb"], "versions": arms[name].versions}
    return {"arms": found, "losses": losses}


def check_losses(losses: dict[str, float]) -> None:
    """The same weights and the same batch: all must compute the same number before any time means something."""
    first, *others = losses
    for name in others:
        if not abs(losses[name] - losses[first]) <= TOLERANCE.get(name, 2e-2) * abs(losses[first]):
            raise UserError(
                f"'{name}' computes the loss {losses[name]:.5f}, '{first}' {losses[first]:.5f} on the same batch; they "
                "are not the same step, so their times are not compared."
            )


def summary(turns: Sequence[dict]) -> dict:
    seconds = [statistics.median(turn["seconds"]) for turn in turns]
    flops = [sum(turn["flops"]) / len(turn["flops"]) for turn in turns]
    rates = [f / s for f, s in zip(flops, seconds)]
    return {
        "batch": turns[-1]["batch"],
        "samples_per_s": statistics.median(turn["batch"] / s for turn, s in zip(turns, seconds)),
        "step_s": statistics.median(seconds),
        "turns_s": [[s / turn["batch"] for s in turn["seconds"]] for turn in turns],  # per query
        "gflop_per_step": statistics.mean(flops) / 1e9,
        "gflop_per_s": statistics.median(rates) / 1e9,
        "peak_gb": max(turn["peak_gb"] for turn in turns),
    }


def ratio(opponent: dict, ours: dict) -> float:
    """Median over turns of the opponent's median time per query over ours: a noisy minute hits both."""
    pairs = zip(opponent["turns_s"], ours["turns_s"])
    return statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)


def say(text: str) -> None:
    from datetime import datetime

    print(f"[{datetime.now():%H:%M:%S}] {text}", flush=True)
