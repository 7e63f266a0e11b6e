"""Where sentences end in English prose: marks, but not those of abbreviations, initials and numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

ABBREVIATIONS = frozenset(
    """mr mrs ms dr prof st sr jr rev hon gen col lt sgt capt gov sen rep pres messrs mt ft vol vols fig figs pp
    ed eds ca cf vs viz al approx est dept univ assn bros inc ltd corp co e.g i.e a.k.a jan feb mar apr jun jul aug sep
    sept oct nov dec b d r fl c lit pron trans""".split()  # noqa: SIM905 (a word list reads better so)
)
"""Words (lower case, without their last mark) that a full stop ends without ending a sentence."""

OPENERS = frozenset(
    """the a an it its he his she her they their this that these those there in on at by for from with as after before
    when while although however since during until we you i one some many most all each both but and or if""".split()  # noqa: SIM905
)
"""Words with a capital that begin a sentence behind an acronym ("in the U.S. It ..."), where a name does not."""

MARK = re.compile(
    r"""(?P<mark>[.!?…]+)(?P<close>["'”’»)\]]*)(?P<blank>\s+|$)|(?P<wide>[。！？]+[”’」』]*)|(?P<line>\n\s*)"""
)
FIRST = re.compile(r"""["'“‘«(\[]*(\w+)""")
LAST = re.compile(r"""[\w.]*\w$""")
INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")


def split(text: str) -> list[str]:
    """The sentences, each with the blanks behind it: joined they are the text again."""
    return list(_each(text))


def first(text: str, n: int) -> str:
    """The first n sentences, without blanks around them. What is behind them is not looked at."""
    return "".join(islice(_each(text.strip()), n)).strip()


def _each(text: str) -> Iterator[str]:
    begin = 0
    for found in MARK.finditer(text):
        end = found.end()
        if text[begin:end].strip() and (found["mark"] is None or _ends(text, found)):
            yield text[begin:end]
            begin = end
    if begin < len(text):
        yield text[begin:]


def _ends(text: str, found: re.Match) -> bool:
    """Whether a mark that blanks follow ends its sentence."""
    behind = FIRST.match(text, found.end())
    if "\n" in found["blank"] or not found["blank"] or behind is None:
        return True
    word = behind[1]
    if word[0].islower():
        return False
    if found["mark"] != ".":
        return True
    before = LAST.search(text, max(0, found.start() - 40), found.start())
    if before is None:
        return True
    last = before[0]
    if INITIALS.fullmatch(last):  # "J. R. R. Tolkien", "the U.S. Open"; "I." is hardly ever one
        return word.lower() in OPENERS and (len(last) > 1 or last == "I")
    if last.lower() in ("no", "nos"):  # a number follows, or it is an answer
        return not word[0].isdigit()
    return last.lower() not in ABBREVIATIONS
