"""The PreFLMR of the MIRe and Ret-XKnow repositories: see ``visual``."""

from tests.golden_runners.visual import run

__all__ = ["run"]
