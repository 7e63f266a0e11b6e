"""ViD2R, step 3: every response becomes a passage, with the beginnings of the articles that are found for it.

  python -m runs.convert_tasks --data_path data/vid2r/vid2r_wo_conversion.json --colbert_ckpt ckpts/colbertv2.0 \\
      --db_pool data/wiki/Wiki6M_ver_1_0.jsonl --indexing --save_path data/vid2r/ViD2R.json
  python -m runs.convert_tasks ... --template legacy-mire --remove_bracket     # as MIRe's script
  python -m runs.convert_tasks ... --shard 0/4                                 # and 1/4, 2/4, 3/4; the last one merges
  torchrun --nproc_per_node 4 -m runs.convert_tasks ...

The index of the articles is built once, with --indexing, and kept; a killed build or search goes on where it was. Each
record keeps its fields and gets the passage as its document, the response as its answer, and kb_ids and kb_scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.cli import main
from core.errors import UserError
from runs.common import at_least, parse, parser, plan
from runs.recipe_options import job_options, note_ranks, search_options

TEMPLATES = ("clean", "legacy-mire", "legacy-xknow")


def arguments():
    made = parser(__doc__, "python -m runs.convert_tasks", config=False)
    made.add_argument("--data_path", required=True, help="what runs.neural_filtering saved, .json or .jsonl")
    made.add_argument("--colbert_ckpt", default="ckpts/colbertv2.0", help="text retriever")
    made.add_argument("--db_pool", default="data/wiki/Wiki6M_ver_1_0.jsonl", help="articles, JSON lines or .gz")
    made.add_argument("--save_path", required=True)
    made.add_argument("--n_cands", type=int, default=3, help="articles per response (%(default)s)")
    made.add_argument("--indexing", action="store_true", help="build the index, or go on with it, when it is not there")
    made.add_argument("--index", help="its folder (default experiments/infoseek/indexes/infoseek.nbits=<n_bits>)")
    made.add_argument("--remove_bracket", action="store_true", help='"Title: response without brackets content: ..."')
    made.add_argument("--template", default="clean", help="clean (default), legacy-mire or legacy-xknow")
    search_options(made, "responses")
    job_options(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    note_ranks(args.n_ranks)
    if args.template not in TEMPLATES:
        raise UserError(f"--template {args.template}: there are {', '.join(TEMPLATES)}.")
    at_least(1, batch_size=args.batch_size)
    if args.check:
        return plan(
            f"convert '{args.data_path}' into '{args.save_path}'", args.data_path, args.db_pool, args.colbert_ckpt
        )
    from runs import recipe, recipe_convert

    with recipe.working(args.save_path, args.device):
        recipe_convert.run(args)


if __name__ == "__main__":
    main(run)
