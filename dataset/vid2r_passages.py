"""Stage 3 of ViD2R: a response and the articles found for it become one passage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dataset import sentences

TEMPLATES = ("clean", "legacy-mire", "legacy-xknow")
BRACKETS = re.compile(r"\([^(]+\)")
"""The published pattern: from a bracket to the last closing one before the next opens."""


def lead(article: str, template: str) -> str:
    """What is taken of an article: two sentences; of the legacy templates what stands before its second full stop."""
    if template == "clean":
        return sentences.first(article, 2)
    return ".".join(article.split(".")[:2])


def passage(response: str, leads: Sequence[str], template: str, remove_bracket: bool = False) -> tuple[str, str]:
    """(the passage, the response as it stands in it).

    The best article's lead, the response, the other leads; or with ``remove_bracket`` the response without brackets as
    a title and all leads behind it.
    """
    if remove_bracket:
        response = without_brackets(response) if template == "clean" else BRACKETS.sub("", response).strip()
        words = [f"Title: {response} content:", *leads]
    else:
        words = [*leads[:1], response, *leads[1:]]
    if template == "clean":
        return " ".join(word for word in words if word), response
    text = " ".join(words)
    # Once and from left to right: of three full stops two are left.
    return text.replace("..", ".") if template == "legacy-mire" else text, response


def without_brackets(text: str) -> str:
    """Without what stands in round brackets, nested ones too; one that is never closed stays."""
    while (bare := re.sub(r"\s*\([^()]*\)", "", text)) != text:
        text = bare
    return text.strip()


def converted(
    record: dict[str, Any], leads: Sequence[str], template: str, remove_bracket: bool = False
) -> dict[str, Any]:
    """The record with its passage; ``answer`` is the response (Ret-XKnow's template keeps none)."""
    text, response = passage(record["document"], leads, template, remove_bracket)
    made = dict(record)
    if template != "legacy-xknow":
        made["answer"] = response
    made["document"] = text
    return made
