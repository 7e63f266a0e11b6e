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

from core.cli import dead_flag, main
from runs.common import check_option, parse, parser, plan

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
    made.add_argument("--n_bits", type=int, default=2, help="bits per dimension of the index (%(default)s)")
    made.add_argument("--n_ranks", type=int, help="of the originals; here torchrun or --shard divide the work")
    made.add_argument("--batch_size", type=int, default=256, help="texts that are encoded and searched at once")
    made.add_argument(
        "--precision", default="auto", choices=["auto", "fp32", "fp16", "bf16"],
        help="of the encoder; auto: fp16 on CUDA, fp32 elsewhere",
    )  # fmt: skip
    made.add_argument("--shard", metavar="i/n", help="do the i-th of n shares, i from 0; the last one merges them")
    made.add_argument("--device", help="auto, cpu, cuda, mps")
    made.add_argument("--overwrite", action="store_true", help="replace an output of other input or options")
    check_option(made)
    return made


def paths_of(args) -> list[str]:
    given = [*(args.data_paths or []), *(path for path in (args.data_path1, args.data_path2) if path)]
    return given or DATA


def run(argv: Sequence[str], made=None) -> None:
    args = parse(made or arguments(), argv)
    dead_flag("--n_ranks", args.n_ranks, "start it with torchrun, or on several machines with --shard.")
    paths = paths_of(args)
    if args.check:
        needed = [] if args.skip_neural else [args.colbert_ckpt]
        return plan(f"filter {', '.join(paths)} into '{args.save_path}'", *paths, *needed)
    from core import distributed
    from core.errors import UserError
    from runs import recipe, recipe_filter

    for name in ("drop_len", "n_cands", "batch_size"):
        if getattr(args, name) < (0 if name == "drop_len" else 1):
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more.")
    distributed.init(args.device or "auto")
    try:
        with recipe.disk_may_be_full(args.save_path):
            recipe_filter.run(args, paths)
    finally:
        distributed.close()


if __name__ == "__main__":
    main(run)
