"""Show why a passage was found: which patches each word attends to, and which passage token each query row matched.

  python -m runs.visualize "What is the climate like here?" --image flag.png --run experiments/flagfacts_mire
  python -m runs.visualize "Which bird is it?" --image bird.jpg --checkpoint ckpts/mire-base --passage "The robin ..."

Writes one PNG and one HTML page that needs nothing else. With --run the best passages of the run's index are explained.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import check_option, open_retriever, parse, parser, plan


def arguments():
    made = parser(__doc__, "python -m runs.visualize", config=False)
    made.add_argument("question", nargs="?", default="", help="the question; may be left out when --image is given")
    made.add_argument("--image", help="image file")
    made.add_argument("--run", help="folder of a run: its best checkpoint, its index and its passages")
    made.add_argument("--checkpoint", help="a checkpoint folder or .pth; with --run, another one than the run's best")
    made.add_argument("--passage", action="append", default=[], metavar="TEXT", help="a passage; may be repeated")
    made.add_argument(
        "--passage_id", action="append", default=[], metavar="ID", help="a passage of the run; may be repeated"
    )
    made.add_argument(
        "-k", type=int, help="explain the best K of the run's index (default 3 when no passage is given; 0: none)"
    )
    made.add_argument("--index", help="another index folder than the run's")
    made.add_argument("--out", metavar="NAME", help="writes NAME.png and NAME.html (default: below the run's pictures)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    check_option(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    question = args.question.strip()
    if not question and not args.image:
        raise UserError("the query is empty; give a question, an --image, or both.")
    if not args.run and not args.checkpoint:
        raise UserError("no retriever is named; give --run FOLDER or --checkpoint PATH.")
    if not args.run and (args.passage_id or args.index or args.k):
        raise UserError("--passage_id, --index and -k need the passages of a run; give --run, or --passage TEXT.")
    if args.k is not None and args.k < 0:
        raise UserError(f"-k {args.k} is below 0; give how many passages to explain, 0 for none.")
    default = Path(args.run or "experiments") / "pictures" / slug(question or Path(args.image).stem)
    out = Path(args.out or default)
    if out.suffix.lower() in (".png", ".html"):  # of one of the two files that NAME stands for
        out = out.with_suffix("")
    if args.check:
        return plan(f"write '{out}.png' and '{out}.html'", args.run, args.checkpoint, args.image, args.index)

    from core.device import pick_device
    from core.records import Document, ImageRef, Query
    from evaluation import page, pictures
    from runs.explaining import explain

    writable(out)
    device = pick_device(args.device)
    retriever = open_retriever(args.checkpoint or args.run, device)
    images = (ImageRef("query", path=args.image),) if args.image else ()
    query = Query("query", question, images)
    given = [Document(f"passage {n}", text) for n, text in enumerate(args.passage, 1)]
    explanation = explain(retriever, query, [*given, *of_run(args, retriever, query, device)])
    pictures.draw(explanation, f"{out}.png")
    page.write(explanation, f"{out}.html")
    for passage in explanation.passages:
        parts = ", ".join(f"{kind} {value:.2f}" for kind, value in passage.kinds.items())
        print(f"{passage.score:7.3f}  {passage.id}  ({parts})")
    for note in explanation.notes:
        print(f"note: {note}")
    print(f"pictures: '{out}.png', '{out}.html'")


def of_run(args, retriever, query, device) -> list:
    """The run's passages that are asked for: by id, and the best k of its index."""
    k = args.k if args.k is not None else 0 if args.passage or args.passage_id or not args.run else 3
    if not args.passage_id and not k:
        return []
    import dataset
    from runs.searching import engine_of, finder, run_config

    cfg = run_config(args.run)
    corpus, found = dataset.build(cfg.data).corpus(), []
    if k:
        path = args.index or cfg.index.path or Path(args.run) / "index"
        engine = engine_of(retriever, cfg.index, path, corpus, device, args.limit)
        asked = engine.prepare(query.text, *query.images)
        found = [hit.id for hit in engine.search([asked], k)[0].results]
    find = finder(corpus)
    wanted = list(dict.fromkeys([*args.passage_id, *found]))
    if lost := [i for i in wanted if find(i) is None]:
        raise UserError(f"the run's passages do not contain '{lost[0]}'; python -m runs.search shows ids.")
    return [find(i) for i in wanted]


def writable(out: Path) -> None:
    """Whether files can be made beside ``out``, before a model is loaded for them."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written to '{out.parent}' ({error.strerror}); give another --out.") from None


def slug(text: str) -> str:
    """A file name: "What is it?" -> "what-is-it"."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:60].strip("-") or "query"


if __name__ == "__main__":
    main(run)
