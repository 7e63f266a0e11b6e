"""A tiny TriviaWiki: the builder's own code on invented leads and questions instead of packages."""

from __future__ import annotations

from pathlib import Path

from scripts.build_triviawiki import Asked, plain, write

THINGS = """cat dog ant bee cow hen pie pear fig nut bun jam oak elm fir ivy fern rose bus car tram ship van
cab""".split()  # noqa: SIM905 (a word list reads better so)
PLACES = ["river", "sea", "mountain", "island", "city", "snow"]
LEADS = {
    **{f"The {name.title()}": f"The {name} eats rice in the {PLACES[i % 6]}, number no{i}, letter le{i}."
       for i, name in enumerate(THINGS)},
    **{f"Thing {i}": f"It is cold in city {i}." for i in range(12)},
}  # fmt: skip


def asked() -> list[Asked]:
    """Three questions about every thing; the first shares words with its lead."""
    found = []
    for i, name in enumerate(THINGS):
        for n, question in enumerate(
            (f"what eats rice with number no{i} and letter le{i}", f"name food {i}", f"who is {i}")
        ):
            found.append(Asked(f"toy:{3 * i + n}", "toy", question, (name, f"{name} thing")))
    return found


def rank(texts: list[str], queries: list[str], k: int) -> list[list[int]]:
    """By the number of shared words."""
    words = [set(plain(t).split()) for t in texts]
    wanted = [set(plain(q).split()) for q in queries]
    return [sorted(range(len(texts)), key=lambda i: (-len(words[i] & want), i))[:k] for want in wanted]


def tiny_triviawiki(out: Path) -> dict:
    """Write it to ``out``; the manifest."""
    return write(out, asked(), LEADS, rank, test=24, dev=12)


def section(folder: Path) -> dict:
    """What the ``data`` section of a YAML says of the tiny one, which is written below ``folder``."""
    tiny_triviawiki(folder / "triviawiki")
    return {"root": str(folder / "triviawiki")}
