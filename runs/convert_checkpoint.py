"""Convert a checkpoint: an original layout to ours, or ours to the original layout or sentence-transformers'.

  python -m runs.convert_checkpoint ckpts/mire/mire_pretrained.pth ckpts/mire-base
  python -m runs.convert_checkpoint experiments/my_run ckpts/for-the-original --to original
  python -m runs.convert_checkpoint experiments/my_colbert ckpts/for-search --to sentence-transformers

The direction follows from what IN is; --to chooses between the two ways out, the original layout being the usual one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import best_checkpoint, check_option, nothing_to_limit, parse, parser, plan


def arguments():
    made = parser(__doc__, "python -m runs.convert_checkpoint", config=False)
    made.add_argument(
        "source", metavar="IN", help=".pth file, ColBERT or PyLate folder, our checkpoint or a run folder"
    )
    made.add_argument("out", metavar="OUT", help="folder to write; must not exist")
    made.add_argument("--to", choices=["ours", "original", "sentence-transformers"], help="which layout to write")
    made.add_argument("--base_root", help="folder in which relative names of base models are looked up first")
    check_option(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    nothing_to_limit(args.limit, "a checkpoint is converted whole")
    import models
    from core.files import read_object
    from models.multivector import save_sentence_transformers
    from models.originals import load_original, save_original

    source, out = Path(args.source), Path(args.out)
    if out.exists():
        raise UserError(f"'{out}' exists; give a folder that does not, nothing is overwritten.")
    if args.check:
        return plan(f"convert '{source}' into '{out}'", source)
    if (source / "checkpoints").is_dir():
        source = best_checkpoint(source)
    ours = (source / "config.json").is_file() and "retriever" in read_object(source / "config.json")
    targets = ("original", "sentence-transformers") if ours else ("ours",)
    if args.to not in (None, *targets):
        raise UserError(f"'{source}' already has that layout, so --to {args.to} has nothing to do; leave --to out.")
    if ours:
        save = save_sentence_transformers if args.to == "sentence-transformers" else save_original
        written = save(models.from_pretrained(source), out)
    else:
        retriever = load_original(source, args.base_root)
        retriever.save_pretrained(out, {"converted_from": source.name})
        written = out
    print(f"written: {written}")


if __name__ == "__main__":
    main(run)
