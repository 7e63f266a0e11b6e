"""When a passage holds an answer. The data sets judge with it, and FLMR's Pseudo Recall is defined by it."""

from __future__ import annotations

from collections.abc import Iterable


def holds_answer(answers: Iterable[str], passage: str) -> bool:
    """Whether any answer stands in the passage: a substring after lower-casing both and stripping the answer.

    No word boundaries, no Unicode folding. A blank answer stands in every passage, as in the original.
    """
    text = passage.lower()
    return any(answer.strip().lower() in text for answer in answers)
