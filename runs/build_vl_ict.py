"""Build VL-ICT out of WIT: sentences of Wikipedia with their title masked, and what follows them.

  python -m runs.build_vl_ict --data_dir data/wit/tsv --save_path data/wit/vl_ict_train.json

Reads every wit_*.tsv and .tsv.gz of the folder as a stream. Killed, it goes on with the first unfinished file. Says how
many rows gave no record, for each reason. The pictures are not downloaded: see docs/DATA.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import dead_flag, main
from core.errors import UserError
from runs.common import check_option, parse, parser, plan

TITLES = "data/wiki/Wiki6M_ver_1_0_title_only.jsonl"


def arguments():
    made = parser(__doc__, "python -m runs.build_vl_ict", config=False)
    made.add_argument("--data_dir", required=True, help="folder of WIT's files, *.tsv or *.tsv.gz")
    made.add_argument("--save_path", default="data/wit/vl_ict_train.json", help="(default %(default)s)")
    made.add_argument(
        "--titles", default=TITLES, help="JSON lines {wikipedia_title, wikidata_id}, Wiki6M itself too (default "
        "%(default)s)"
    )  # fmt: skip
    made.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    made.add_argument("--image_dir", help="accepted, without effect")
    check_option(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    dead_flag("--image_dir", args.image_dir, "the records name pictures; data.image_dir says where they are")
    target = Path(args.save_path)
    if args.check:
        return plan(f"build '{target}' out of the files of '{args.data_dir}'", args.data_dir, args.titles)
    if not Path(args.data_dir).is_dir():
        raise UserError(f"--data_dir '{args.data_dir}' is no folder; give the folder of WIT's files.")
    files = sorted(path for path in Path(args.data_dir).iterdir() if path.name.endswith((".tsv", ".tsv.gz")))
    if not files:
        raise UserError(f"--data_dir '{args.data_dir}' holds no .tsv and no .tsv.gz; download WIT's files into it.")
    if target.exists() and not args.overwrite:
        raise UserError(f"'{target}' is there already; add --overwrite to build it anew.")
    from dataset.wit import REASONS, Titles, build

    counts = build(files, Titles(args.titles), target, args.limit)
    for reason, words in REASONS.items():
        print(f"{counts[reason]:>12,}  {words}")
    print(f"{counts['written']:>12,}  records written to '{target}'")


if __name__ == "__main__":
    main(run)
