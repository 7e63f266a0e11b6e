"""Make this project's compressed index of one that colbert-ai built, without encoding anything again.

  python -m runs.convert_index experiments/msmarco/indexes/msmarco.nbits=2
  python -m runs.convert_index colbert_index --out ours --ids collection.tsv

Without --out it is built in SRC.new and takes the place of SRC; the original stays as SRC.colbert-ai.
A killed conversion goes on with the same command. Searching with effort "colbert" then ranks as colbert-ai did.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from runs.common import nothing_to_limit, parse, parser


def arguments():
    made = parser(__doc__, "python -m runs.convert_index", config=False)
    made.add_argument("source", metavar="SRC", help="the index folder that colbert-ai wrote (it holds metadata.json)")
    made.add_argument("--out", help="where the new index goes; SRC is then left alone")
    made.add_argument(
        "--ids", help="one id per line, or a collection .tsv (id, tab, text); default: the passage numbers 0, 1, ..."
    )
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    nothing_to_limit(args.limit, "an index is converted as a whole")
    from index.convert import beside, check_source, convert, convert_in_place

    source = Path(args.source)
    if args.out:
        check_source(source)
        index, kept = convert(source, args.out, args.ids), source
    else:
        index, kept = convert_in_place(source, args.ids), beside(source)[1]
    facts = index.stats()
    print(
        f"converted: {facts['documents']} documents, {facts['vectors']} vectors, {facts['nbits']} bits, "
        f"{facts['bytes'] / 1e6:.1f} MB in '{index.path}'; the original is '{kept}'"
    )


if __name__ == "__main__":
    main(run)
