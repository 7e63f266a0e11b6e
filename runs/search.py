"""Search a trained run's index with a question, an image, or both.

python -m runs.search "What is the climate like here?" --image flag.png --run experiments/flagfacts_mire
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence

from core.cli import main
from core.errors import UserError
from runs.common import parse, parser
from runs.searching import open_engine, options


def arguments():
    made = parser(__doc__, "python -m runs.search", config=False)
    made.add_argument("question", nargs="?", default="", help="the question; may be left out when --image is given")
    made.add_argument("--image", help="image file")
    made.add_argument("-k", type=int, default=5, help="how many passages (default 5)")
    made.add_argument(
        "--json", action="store_true", help="print one JSON object, as POST /search of runs.serve replies"
    )
    options(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    if not args.question.strip() and not args.image:
        raise UserError("the query is empty; give a question, an --image, or both.")
    if args.k < 1:
        raise UserError(f"-k {args.k} asks for nothing; give 1 or more.")
    from core.records import ImageRef

    engine, _ = open_engine(args)
    asked = engine.prepare(args.question, ImageRef(args.image, path=args.image) if args.image else None)
    begin = time.perf_counter()
    answer = engine.search([asked], args.k)[0]
    if args.json:
        print(json.dumps(answer.plain(time.perf_counter() - begin + asked.seconds), ensure_ascii=False))
        return
    width = min(shutil.get_terminal_size((110, 24)).columns, 140)
    for line in table(answer, args.question, width, colour=sys.stdout.isatty()):
        print(line)
    print(f"\nencoded in {answer.decode_ms + answer.encode_ms:.0f} ms, searched in {answer.search_ms:.0f} ms")


def table(answer, question: str, width: int, colour: bool) -> list[str]:
    """Lines: rank, score, id and title; below them the beginning of the text, the question's words bold."""
    out = []
    longest = max((len(hit.id) for hit in answer.results), default=0)
    for hit in answer.results:
        out.append(printable(f"{hit.rank:2d}  {hit.score:7.3f}  {hit.id:<{longest}}  {hit.title}").rstrip())
        text = textwrap.fill(textwrap.shorten(printable(hit.text), 300), width - 6)
        out.append(textwrap.indent(marked(text, question) if colour else text, "      "))
    return out


def printable(text: str) -> str:
    """Without the control characters by which a passage could command the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)


def marked(text: str, question: str) -> str:
    """The text with the question's longer words in bold."""
    words = sorted({re.escape(w) for w in re.findall(r"\w{4,}", question.lower())}, key=len, reverse=True)
    return re.sub(rf"(?i)\b({'|'.join(words)})", "\033[1m\\1\033[0m", text) if words else text


if __name__ == "__main__":
    main(run)
