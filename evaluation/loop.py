"""Ask an index every query: encode in batches, search, and say how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from core.errors import UserError
from core.progress import progress
from core.protocols import Index, Ranking
from core.records import Query, unique
from core.tokens import TokenBatch
from evaluation.metrics import in_order


def run(
    encode_queries: Callable[[Sequence[Query]], TokenBatch],
    index: Index,
    queries: Sequence[Query],
    k: int,
    batch_size: int = 32,
    **effort: Any,
) -> tuple[dict[str, Ranking], float]:
    """(query id -> Ranking in the order of ``queries``, milliseconds per query).

    encode_queries: collates, encodes (the caller's ``torch.inference_mode``, stage and device) and returns one row of
    the TokenBatch per query. effort goes to ``index.search``. Rankings may be shorter than k. Equal scores stand in the
    order of their ids (``metrics.in_order``).

    Milliseconds per query are the total wall time of encoding and searching divided by the number of queries, warm-up
    of the first batch included: what a user waits for a whole split at this batch size. The latency of a lone query is
    the same call with batch_size=1. Reading a result as Python ids waits for the device, so no work is left uncounted.

    A query without text and image, a repeated id, k < 1 or batch_size < 1 is a UserError, before anything is encoded.
    """
    for name, value in (("k", k), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}={value} is not a positive number; use 1 or more.")
    queries = list(unique(queries))
    if not queries:
        raise UserError("there are no queries to search; check the split.")
    for query in queries:
        if not query.text.strip() and not query.images:
            raise UserError(f"query '{query.id}' has neither text nor image; give it one of them or drop it.")
    rankings: dict[str, Ranking] = {}
    seconds = 0.0
    with progress(None, "searching", total=len(queries), unit="query") as bar:
        for first in range(0, len(queries), batch_size):
            batch = queries[first : first + batch_size]
            start = time.perf_counter()
            tokens = encode_queries(batch).detach()
            if len(tokens) != len(batch):
                raise UserError(f"the encoder gave {len(tokens)} rows for {len(batch)} queries; give one per query.")
            found = index.search(tokens, k, **effort)
            seconds += time.perf_counter() - start
            rankings.update(zip((query.id for query in batch), map(in_order, found), strict=True))
            bar.update(len(batch))
    return rankings, 1000 * seconds / len(queries)
