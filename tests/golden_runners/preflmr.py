"""PreFLMR: see ``flmr``, one class of models reads both."""

from tests.golden_runners.flmr import run

__all__ = ["run"]
