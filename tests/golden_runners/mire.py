"""MIRe: see ``visual``."""

from tests.golden_runners.visual import run

__all__ = ["run"]
