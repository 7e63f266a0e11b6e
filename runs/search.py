"""Search a trained run's index with a question, an image, or both.

python -m runs.search "What is the climate like here?" --image flag.png --run experiments/flagfacts_mire
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import open_retriever, parse, parser, query_encoder


def arguments():
    made = parser(__doc__, "python -m runs.search", config=False)
    made.add_argument("question", nargs="?", default="", help="the question; may be left out when --image is given")
    made.add_argument("--image", help="image file")
    made.add_argument(
        "--run", default="experiments/quickstart/image+question", help="folder of a run (config, checkpoints, index)"
    )
    made.add_argument("--checkpoint", help="another checkpoint than the run's best")
    made.add_argument("--index", help="another index folder than the run's")
    made.add_argument("-k", type=int, default=5, help="how many passages (default 5)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    if not args.question.strip() and not args.image:
        raise UserError("the query is empty; give a question, an --image, or both.")
    from core.device import pick_device
    from core.records import ImageRef, Query

    cfg = run_config(args.run)
    images = (ImageRef("query", path=args.image),) if args.image else ()
    device = pick_device(args.device)
    retriever = open_retriever(args.checkpoint or args.run, device)
    query = Query("query", args.question, images)
    path = args.index or cfg.index.path or Path(args.run) / "index"
    ranking, corpus = answer(cfg, retriever, query, args.k, path, args.limit, device)
    texts = {d.id: d.text for d in corpus}
    for rank, (id_, score) in enumerate(zip(ranking.ids, ranking.scores), 1):
        print(f"{rank:2d}  {score:7.3f}  {id_}")
        print(textwrap.indent(textwrap.fill(textwrap.shorten(texts.get(id_, ""), 300), 100), "      "))


def run_config(run: str):
    """The config of a run's folder."""
    from runs.settings import load

    config = Path(run) / "config.yaml"
    if not config.is_file():
        raise UserError(f"'{run}' is not a run's folder (no config.yaml); train one first: see README.")
    return load(str(config))


def answer(cfg, retriever, query, k: int, path, limit: int | None, device):
    """The best k passages of the index at ``path``, as a Ranking, and the run's corpus.

    limit: only the first so many passages may answer.
    """
    import dataset
    from runs.indexing import encoder_of, opened

    corpus = dataset.build(cfg.data).corpus()
    index = opened(cfg.index, path, encoder_of(retriever, corpus), device)
    effort = {} if cfg.index.effort is None else {"effort": cfg.index.effort}
    allowed = None if limit is None else set(index.ids()[:limit])
    k = k if allowed is None else min(k, len(allowed))
    return index.search(query_encoder(retriever)([query]), k, allowed_ids=allowed, **effort)[0], corpus


if __name__ == "__main__":
    main(run)
