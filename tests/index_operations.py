"""A small corpus, and every operation that writes an index, for the tests of what goes wrong in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index import exact, open_index, plaid, plaid_build, stored, stream
from tests.index_cases import ENCODER, corpus, questions

DOCS = corpus(90, rows=(1, 9))
DOCS[7] = ("doc-7", np.zeros((0, 32), np.float32))
QUERIES = questions(DOCS, 3, 7)
INDEX = {"plaid": plaid.Index, "exact": exact.Index}
OPERATIONS = [f"{what}-{kind}" for what in ("build", "add", "delete", "compact") for kind in INDEX]


def many_blocks() -> None:
    stream.BLOCK_DOCS, plaid_build.ENCODE_ROWS, stored.COPY_ROWS = 12, 90, 90


def perform(operation: str, path: Path) -> None:
    what, kind = operation.split("-")
    if what == "build":
        INDEX[kind].build(path, DOCS[:60], dim=32, encoder=ENCODER)
    elif what == "add":
        INDEX[kind].open(path).add(DOCS[60:])
    elif what == "delete":
        INDEX[kind].open(path).delete([f"doc-{i}" for i in range(20, 45)])
    else:
        INDEX[kind].open(path).compact()


def begin(operation: str, path: Path) -> None:
    """What is there before the operation."""
    what, kind = operation.split("-")
    steps = {"build": [], "add": ["build", "delete"], "delete": ["build", "add"], "compact": ["build", "delete", "add"]}
    for step in steps[what]:
        perform(f"{step}-{kind}", path)


def answers(path: Path) -> list:
    index = open_index(path)
    k = min(30, len(index))
    efforts = ("fast", "exhaustive") if isinstance(index, plaid.Index) else (None,)
    return [index.ids(), *(index.search(QUERIES, k, effort=effort) for effort in efforts)]
