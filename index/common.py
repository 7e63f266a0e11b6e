"""What every index shares: checks of queries, k and allowed ids, and rankings whose ties are decided by position."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.protocols import Ranking
from core.tokens import TokenBatch
from index import threads

NO_VECTORS = torch.finfo(torch.float32).min
"""Score of a document without any vector: below every other, and unlike -inf it can be written as JSON."""

NOT_RANKED = torch.iinfo(torch.int64).min
"""Key (see ``rank_keys``) of a document that must not appear in a ranking."""

QUERY_ROWS = 4096
"""Query rows that one pass over all documents serves."""

SCAN_ROWS = 1 << 14
"""Vectors of one piece of such a pass."""

WAVE = 64
"""Pieces whose results are held before they are merged."""

Allowed = AbstractSet[str] | Sequence[AbstractSet[str]] | None


def compiled() -> bool:
    """Whether the compiled loops of ``index.kernels`` can be used."""
    return importlib.util.find_spec("numba") is not None


def check_queries(queries: TokenBatch, dim: int, device: torch.device | str) -> Tensor:
    """queries [B, T, D] -> [B, T, D] float32 on ``device``, rows that do not count set to zero (so they add 0).

    UserError when D is not ``dim``, when a query has no unmasked row, and when an unmasked row is NaN or infinite.
    """
    if queries.dim != dim:
        raise UserError(
            f"the queries have {queries.dim} dimensions and the index has {dim}; "
            "encode them with the checkpoint that built the index, or build the index again with this one."
        )
    mask = queries.mask.to(device)
    emb = queries.embeddings.detach().to(device, torch.float32).masked_fill(~mask[..., None], 0.0)
    empty = torch.nonzero(~mask.any(1)).flatten().tolist()
    if empty:
        raise UserError(f"query {empty[0]} of the batch has no unmasked row; drop it or check its mask.")
    bad = torch.nonzero(~torch.isfinite(emb).all(-1)).tolist()
    if bad:
        raise UserError(f"query {bad[0][0]} of the batch holds NaN or infinity in row {bad[0][1]}; check the encoder.")
    return emb


def check_k(k: int, documents: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UserError(f"k={k!r} is not a positive integer; ask for k=1 or more.")
    if not documents:
        raise UserError("the index holds no documents any more; add some before searching.")
    if k > documents:
        raise UserError(f"k={k} is more than the {documents} documents of the index; ask for k={documents} or less.")


def allowed_positions(
    allowed: Allowed, batch: int, find: Callable[[Sequence[str]], np.ndarray], documents: int
) -> list[np.ndarray | None]:
    """One ascending int64 array of positions per query, None for "all documents".

    allowed: None, one set of ids for all queries, or a sequence with one set per query. find: ids -> positions, -1 for
    those that are not there.
    """
    if allowed is None:
        return [None] * batch

    def positions(ids: AbstractSet[str]) -> np.ndarray:
        wanted = list(ids)
        found = np.sort(found_ := find(wanted))
        if len(found) and found[0] < 0:
            missing = wanted[int(np.argmin(found_))]
            raise UserError(
                f"allowed id {missing!r} is not in the index ({documents} documents); take it out of allowed_ids."
            )
        return found

    if isinstance(allowed, AbstractSet):
        return [positions(allowed)] * batch
    if isinstance(allowed, str) or not all(isinstance(one, AbstractSet) for one in allowed):
        raise UserError(f"allowed_ids is a {type(allowed).__name__} without sets; give a set, or one set per query.")
    if len(allowed) != batch:
        raise UserError(f"allowed_ids has {len(allowed)} sets for {batch} queries; give one set, or one per query.")
    return [positions(one) for one in allowed]


def check_encoder(path: Any, found: dict, wanted: dict) -> None:
    """Raise when an index was built by another encoder, naming every field that differs (dotted paths)."""
    a, b = dict(_flat(found)), dict(_flat(wanted))
    differing = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    if differing:
        lines = "; ".join(f"{k}: index {a.get(k)!r}, now {b.get(k)!r}" for k in differing)
        raise UserError(
            f"the index '{path}' was built by another checkpoint ({lines}); "
            "search with the checkpoint that built it, or build the index again with this one."
        )


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix[:-1], list(value) if isinstance(value, tuple) else value)]
    return [pair for key, item in value.items() for pair in _flat(item, f"{prefix}{key}.")]


def rank_keys(scores: Tensor, positions: Tensor) -> Tensor:
    """scores [..., n] float32, positions [n] int64 below 2^32 -> [..., n] int64 keys, all different.

    A larger key is a higher score, or the same score at a lower position. So ``topk`` of keys decides ties the same
    way on every device, in every chunking, which ``topk`` of scores does not.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats order backwards as integers
    return (ordered.to(torch.int64) << 32) | (0xFFFFFFFF - positions)


def split_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of ``rank_keys``: scores float32 and positions int64."""
    ordered = (keys >> 32).to(torch.int32)
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return scores, 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def float_keys(scores: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """``rank_keys`` of numpy arrays: scores [n] float32, positions [n] -> [n] int64."""
    bits = (scores + np.float32(0)).view(np.int32)
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (ordered.astype(np.int64) << 32) | (0xFFFFFFFF - positions.astype(np.int64))


def key_positions(keys: np.ndarray) -> np.ndarray:
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def key_scores(keys: np.ndarray) -> np.ndarray:
    ordered = (keys >> 32).astype(np.int32)
    return (ordered ^ ((ordered >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)


def top_keys(keys: np.ndarray, k: int) -> np.ndarray:
    """keys [n] -> the min(k, n) largest, descending."""
    if len(keys) > k:
        keys = np.partition(keys, len(keys) - k)[len(keys) - k :]
    return np.sort(keys)[::-1]


def scan(
    score: Callable[[Any], tuple[np.ndarray, np.ndarray]], pieces: Sequence, masks: Sequence[np.ndarray | None], k: int
) -> list[np.ndarray]:
    """The k best keys of each of B queries, descending, among all documents that its mask [positions] lets in.

    score: a piece -> scores [n, B] float32 of its documents and their positions [n]; runs in threads.
    """

    def work(piece: Any) -> list[np.ndarray]:
        scores, here = score(piece)
        keeps = [slice(None) if mask is None else mask[here].astype(bool) for mask in masks]
        return [top_keys(float_keys(scores[keep, b], here[keep]), k) for b, keep in enumerate(keeps)]

    best = [np.empty(0, np.int64)] * len(masks)
    for at in range(0, len(pieces), WAVE):
        results = threads.run(work, pieces[at : at + WAVE])
        best = [top_keys(np.concatenate([best[b], *(r[b] for r in results)]), k) for b in range(len(masks))]
    return best


def best_keys(keys: Tensor, k: int) -> Tensor:
    """keys [..., n] -> the min(k, n) largest, descending."""
    return keys.topk(min(k, keys.shape[-1]), dim=-1).values


def rankings(keys: Sequence[Tensor] | Tensor, ids: Sequence[str]) -> list[Ranking]:
    """One Ranking per row of descending keys; NOT_RANKED entries are left out."""
    out = []
    for row in keys:
        scores, positions = split_keys(row[row != NOT_RANKED].cpu())
        out.append(Ranking(tuple(ids[p] for p in positions.tolist()), tuple(scores.tolist())))
    return out
