"""The largest batch that fits into a given part of a GPU's memory, without a gradient cache."""

from __future__ import annotations

from collections.abc import Callable

from core.errors import UserError
from steps import race
from steps.setting import Options

MOST = 16_384
"""Examples of the made-up data."""


def measure(options: Options, gigabytes: float) -> dict:
    """{"plain": queries per step, "ours": ..., "ratio": ours / plain}, each in a process of its own."""
    found: dict = {}
    for name in ("plain", "ours"):
        arm = race.start(name, options)
        try:
            arm.ask("prepare", turns=1, steps=1)

            def fits(batch: int, arm=arm) -> bool:
                return arm.ask("fits", batch=batch, gigabytes=gigabytes)["fits"]

            found[name] = search(fits, 16, MOST)
            race.say(f"largest batch in {gigabytes:g} GB, {name}: {found[name]}")
        finally:
            arm.close()
    return {**found, "ratio": found["ours"] / found["plain"]}


def search(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest fitting number up to one part in 16: doubled until it fails, then halved between."""
    if not fits(least):
        raise UserError(f"not even a batch of {least} fits; give more with --fraction-gb.")
    low, high = least, 2 * least
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
