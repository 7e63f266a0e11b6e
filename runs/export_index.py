"""Hand an index's vectors to a vector database, or write them as text.

  python -m runs.export_index --index experiments/flagfacts_mire/index --to lancedb --out served/lancedb
  python -m runs.export_index --index experiments/flagfacts_mire/index --to qdrant --out served/qdrant
  python -m runs.export_index --index experiments/flagfacts_mire/index --to jsonl --out served/jsonl

OUT appears when it is complete. LanceDB and Qdrant need: pip install -r requirements-export.txt
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

from core.cli import main
from runs.common import parse, parser

FIRST = 256


def arguments():
    made = parser(__doc__, "python -m runs.export_index", config=False)
    made.add_argument("--index", required=True, help="index folder of any format, colbert-ai's too")
    made.add_argument("--to", required=True, choices=["lancedb", "qdrant", "jsonl"], help="what OUT becomes")
    made.add_argument("--out", required=True, help="a new folder")
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    from index import open_index
    from index.export import TABLE, export

    index = open_index(args.index)
    if args.to == "lancedb" and not unit(index):
        print(
            "note: LanceDB compares multivectors by cosine only, and these vectors do not have length 1: it will rank "
            "otherwise than this index",
            file=sys.stderr,
        )
    written = export(index if args.limit is None else Limited(index, args.limit), args.to, args.out)
    inside = "documents.jsonl" if args.to == "jsonl" else f"'{TABLE}' of {args.to}"
    left = min(len(index), args.limit or len(index)) - written
    print(
        f"exported: {written} documents as {inside} in '{args.out}'" + f", {left} without vectors left out" * (left > 0)
    )


def unit(index) -> bool:
    """Whether the first vectors have length 1 (up to float16 rounding)."""
    import numpy as np

    return all(
        np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)
        for _, vectors in itertools.islice(index.vectors(), FIRST)
    )


class Limited:
    """The first documents of an index (--limit)."""

    def __init__(self, index, limit: int) -> None:
        self.dim, self._index, self._limit = index.dim, index, min(limit, len(index))

    def __len__(self) -> int:
        return self._limit

    def vectors(self):
        return itertools.islice(self._index.vectors(), self._limit)


if __name__ == "__main__":
    main(run)
