"""Convert a checkpoint: an original layout to ours, or ours to the original layout.

  python -m runs.convert_checkpoint ckpts/mire/mire_pretrained.pth ckpts/mire-base
  python -m runs.convert_checkpoint experiments/my_run ckpts/for-the-original --to original

The direction follows from what IN is; --to only has to be given to make sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import best_checkpoint, check_option, nothing_to_limit, parse, parser, plan


def arguments():
    made = parser(__doc__, "python -m runs.convert_checkpoint", config=False)
    made.add_argument("source", metavar="IN", help=".pth file, ColBERT folder, our checkpoint folder or a run's folder")
    made.add_argument("out", metavar="OUT", help="folder to write; must not exist")
    made.add_argument("--to", choices=["ours", "original"], help="which layout to write")
    made.add_argument("--base_root", help="folder in which relative names of base models are looked up first")
    check_option(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    nothing_to_limit(args.limit, "a checkpoint is converted whole")
    import models
    from core.files import read_json
    from models.originals import load_original, save_original

    source, out = Path(args.source), Path(args.out)
    if out.exists():
        raise UserError(f"'{out}' exists; give a folder that does not, nothing is overwritten.")
    if args.check:
        return plan(f"convert '{source}' into '{out}'", source)
    if (source / "checkpoints").is_dir():
        source = best_checkpoint(source)
    ours = (source / "config.json").is_file() and "retriever" in read_json(source / "config.json")
    target = "original" if ours else "ours"
    if args.to not in (None, target):
        raise UserError(f"'{source}' already has that layout, so --to {args.to} has nothing to do; leave --to out.")
    if ours:
        written = save_original(models.from_pretrained(source), out)
    else:
        retriever = load_original(source, args.base_root)
        retriever.save_pretrained(out, {"converted_from": source.name})
        written = out
    print(f"written: {written}")


if __name__ == "__main__":
    main(run)
