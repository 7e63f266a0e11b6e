"""Hard negatives for a data set: what a retriever finds for a question and what does not answer it.

  python -m runs.mine_negatives --config_path cfgs/flagfacts_mire.yaml --save_path experiments/train_w_negs.json
  python -m runs.mine_negatives --config_path x.yaml --checkpoint ckpts/colbertv2.0 --split train --topk 150 ...

Of the first --topk passages, those that hold an answer (or are the answer) are left out; with fewer than --least left,
the list is topped up from its end. The records of the split's file are written again with negs (texts), neg_ids and
neg_scores: give that file as data.path and set data.hard_negatives. Where a split is no such file, they are records
of data.name: vid2r. Index first: python -m runs.run_indexer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import at_least, need, parse, parser, plan
from runs.recipe_options import job_options


def arguments():
    made = parser(__doc__, "python -m runs.mine_negatives")
    made.add_argument("--checkpoint", help="checkpoint folder, run folder, .pth or ColBERT folder (default <run.out>)")
    made.add_argument("--index", help="index folder (default index.path or <run.out>/index)")
    made.add_argument("--split", help="whose questions (default: the training split)")
    made.add_argument("--topk", type=int, default=150, help="passages that are retrieved (%(default)s)")
    made.add_argument("--least", type=int, default=32, help="negatives every question is to have (%(default)s)")
    made.add_argument("--rules", default="clean", help="clean (default), or legacy: topped up with answers and doubles")
    made.add_argument("--save_path", help="JSON list of records with negs")
    job_options(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    need(args.config_path, "give --config_path, the run whose data set and retriever are used.")
    save = need(args.save_path, "give --save_path, the file to write.")
    at_least(1, topk=args.topk, least=args.least)
    import dataset
    from core.device import pick_device
    from index import open_index
    from models.artifacts import weight_digest
    from runs import recipe, shares
    from runs.common import open_retriever, visual_source
    from runs.indexing import encoder_of, index_device
    from runs.recipe_negatives import RULES, Mining, mine, searched
    from runs.settings import load

    if args.rules not in RULES:
        raise UserError(f"--rules {args.rules}: there are {', '.join(RULES)}.")
    cfg = load(args.config_path, args.overrides, args.limit)
    checkpoint = args.checkpoint or cfg.run.out
    path = args.index or cfg.index.path or Path(cfg.run.out) / "index"
    if args.check:
        return plan(f"mine negatives of '{cfg.data.name}' in the index '{path}'", checkpoint, path)
    device = args.device or cfg.run.device
    with recipe.working(save, device):
        retriever = open_retriever(checkpoint, pick_device(device))
        data = dataset.build(cfg.data)
        where = index_device(pick_device(device))
        split = args.split or data.train_split
        index = open_index(path, encoder=encoder_of(retriever, searched(data, split)), device=where)
        cache = cfg.visual.cache if getattr(cfg.data, "modality", "") != "question" else None
        job = {"command": "mine_negatives", "weights": weight_digest(retriever), "index": index.manifest["encoder"],
               "data": cfg.data.model_dump(), "split": split, "topk": args.topk, "least": args.least,
               "rules": args.rules}  # fmt: skip
        work = recipe.Work(save, job, shares.shard_of(args.shard), args.overwrite)
        mining = Mining(data, split, retriever, index, visual_source(retriever, cache))
        mine(mining, work, args.topk, args.least, args.rules, cfg.eval.batch_size)


if __name__ == "__main__":
    main(run)
