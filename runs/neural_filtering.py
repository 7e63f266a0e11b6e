"""ViD2R, steps 1 and 2: from visual-instruction conversations to question-response pairs that need their image.

  python -m runs.neural_filtering --data_paths llava_v1_5_mix665k.json lvis_instruct4v_220k.json \\
      --colbert_ckpt ckpts/colbertv2.0 --save_path data/vid2r/vid2r_wo_conversion.json
  python -m runs.neural_filtering ... --skip_neural --rules legacy-mire          # text rules only, as MIRe's script
  python -m runs.neural_filtering ... --shard 0/4                                # and 1/4, 2/4, 3/4, then any again
  torchrun --nproc_per_node 4 -m runs.neural_filtering ...

Text rules (docs/VID2R.md lists them), then the neural filter: every question is searched, without its image, among all
responses, and the pair is dropped when its own response is among the first --n_cands. Counts per reason, which always
add up to the input, and a sample of each stand in <save_path without .json>.counts.json. A killed run goes on where it
was.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.cli import main
from runs.common import at_least, parse, parser, plan
from runs.recipe_options import job_options, note_ranks, search_options

DATA = ["data/vid2r/llava_v1_5_mix665k.json", "data/vid2r/lvis_instruct4v_220k.json"]


def arguments(prog: str = "python -m runs.neural_filtering", doc: str | None = None):
    made = parser(doc or __doc__, prog, config=False)
    made.add_argument("--data_paths", nargs="+", metavar="FILE", help=f"JSON lists or JSON lines (default {DATA})")
    made.add_argument("--data_path1", metavar="FILE", help="the same, one by one")
    made.add_argument("--data_path2", metavar="FILE")
    made.add_argument("--colbert_ckpt", default="ckpts/colbertv2.0", help="text retriever of the neural filter")
    made.add_argument("--save_path", default="data/vid2r/vid2r_wo_conversion.json", help="(%(default)s)")
    made.add_argument("--rules", default="clean", help="clean (default), legacy-mire or legacy-xknow")
    made.add_argument("--drop_len", type=int, default=30, help="characters a response needs (%(default)s)")
    made.add_argument("--n_cands", type=int, default=3, help="drop a pair found among so many (%(default)s)")
    made.add_argument("--skip_neural", action="store_true", help="text rules only")
    made.add_argument("--save_negative", action="store_true", help="other pairs of the image as each record's negs")
    made.add_argument("--image_dir", help="also skip conversations whose image file is not in this folder")
    search_options(made, "texts")
    job_options(made)
    return made


def paths_of(args) -> list[str]:
    given = [*(args.data_paths or []), *(path for path in (args.data_path1, args.data_path2) if path)]
    return given or DATA


def run(argv: Sequence[str], made=None) -> None:
    args = parse(made or arguments(), argv)
    note_ranks(args.n_ranks)
    at_least(0, drop_len=args.drop_len)
    at_least(1, n_cands=args.n_cands, batch_size=args.batch_size)
    paths = paths_of(args)
    if args.check:
        needed = [] if args.skip_neural else [args.colbert_ckpt]
        return plan(f"filter {', '.join(paths)} into '{args.save_path}'", *paths, *needed)
    from runs import recipe, recipe_filter

    with recipe.working(args.save_path, args.device):
        recipe_filter.run(args, paths)


if __name__ == "__main__":
    main(run)
