"""When a passage holds an answer: the rules, each in words. Data sets give the answers (``query.meta["answers"]``).

A ``Rule`` prepares a passage once and is then asked about it for many questions:

    WORDS      the answer stands in the passage as whole words, after both were normalised: Unicode compatibility form
               (NFKC), case folded, white space runs as one blank. A blank answer stands nowhere.
    SUBSTRING  the answer, stripped and lower-cased, is a substring of the lower-cased passage: "art" stands in "party",
               and a blank answer in every passage. The rule of FLMR's scripts, and of MIRe's for E-VQA and InfoSeek.

An answer is a string, or a ``Range``: any number of the passage that lies in it (InfoSeek's numeric answers).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from core.errors import UserError


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise UserError(f"the answer range [{self.low}, {self.high}] is none; give a low and a high finite number.")


Answer = str | Range


@dataclass(frozen=True)
class Rule:
    """text: what is done to a passage once. test: the answers of one question -> does a prepared passage hold one?

    name: stands in the key of every kept judgement; another rule has another name.
    """

    name: str
    text: Callable[[str], str]
    test: Callable[[Iterable[Answer]], Callable[[str], bool]]

    def holds(self, answers: Iterable[Answer], passage: str) -> bool:
        return self.test(answers)(self.text(passage))


def normalised(text: str) -> str:
    """NFKC, case folded, white space runs as one blank, none at the ends."""
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def holds_answer(answers: Iterable[Answer], passage: str) -> bool:
    """Whether any answer stands in the passage by ``SUBSTRING``."""
    return SUBSTRING.holds(answers, passage)


def numbers(text: str) -> Iterator[float]:
    """The numbers that stand in a text: digits, "1,234.5" with commas between groups of three, a minus sign before.
    What follows may be a unit ("20km"); behind a letter ("A380") stands none."""
    for found in _NUMBER.finditer(text):
        yield float(found[0].replace(",", "").replace("\N{MINUS SIGN}", "-"))


_NUMBER = re.compile(r"(?:(?<![\w.,)-])[-\N{MINUS SIGN}])?(?<![\w.])(?<!\d,)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def _in_words(answers: Iterable[Answer]) -> Callable[[str], bool]:
    answers = list(answers)
    words = list(dict.fromkeys(w for a in answers if isinstance(a, str) and (w := normalised(a))))
    ranges = [a for a in answers if isinstance(a, Range)]

    def test(text: str) -> bool:
        for word in words:  # asked a million times over: a loop is twice as fast as any()
            if word in text and _as_words(word, text):
                return True
        return _in_ranges(ranges, text)

    return test


def _as_substring(answers: Iterable[Answer]) -> Callable[[str], bool]:
    answers = list(answers)
    parts = list(dict.fromkeys(a.strip().lower() for a in answers if isinstance(a, str)))
    ranges = [a for a in answers if isinstance(a, Range)]

    def test(text: str) -> bool:
        for part in parts:
            if part in text:
                return True
        return _in_ranges(ranges, text)

    return test


def _in_ranges(ranges: list[Range], text: str) -> bool:
    return bool(ranges) and any(r.low <= n <= r.high for n in numbers(text) for r in ranges)


def _as_words(words: str, text: str) -> bool:
    """Whether ``words`` stands somewhere in ``text`` without a letter or digit that goes on with its first or last."""
    left, right = _joins(words[0]), _joins(words[-1])
    at = text.find(words)
    while at >= 0:
        end = at + len(words)
        begins = not left or at == 0 or not _joins(text[at - 1])
        if begins and (end == len(text) or not _goes_on(right, text[end])):
            return True
        at = text.find(words, at + 1)
    return False


def _goes_on(joined: bool, following: str) -> bool:
    # A combining mark belongs to the character before it, whatever that is.
    return unicodedata.combining(following) != 0 or (joined and _joins(following))


def _joins(char: str) -> bool:
    """Whether a character is part of a word that its neighbours would go on with.

    Scripts that are written without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) have no word
    ends to look for: in them an answer stands wherever its characters do.
    """
    if char.isascii():
        return char.isalnum() or char == "_"
    if any(low <= char <= high for low, high in _WITHOUT_BLANKS):
        return False
    return char.isalnum() or unicodedata.category(char)[0] == "M"


_WITHOUT_BLANKS = (
    ("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"), ("\u3005", "\u3007"), ("\u3040", "\u30ff"),
    ("\u3400", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003ffff"),
)  # fmt: skip

WORDS = Rule("words", normalised, _in_words)
SUBSTRING = Rule("substring", str.lower, _as_substring)
