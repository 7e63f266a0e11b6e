"""Contrastive losses as pure functions of TokenBatches (ColBERTv2, Santhanam et al. 2022; MIRe, Ju et al. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from core.errors import UserError
from core.maxsim import maxsim, maxsim_pairs
from core.tokens import TokenBatch
from training.distill import distillation


def contrastive(
    queries: TokenBatch,
    documents: TokenBatch,
    nways: int = 1,
    temperature: float = 1.0,
    in_batch: bool = True,
    same: Tensor | None = None,
    teacher: Tensor | None = None,
    alpha: float = 1.0,
    offset: int = 0,
    hard_negatives: str = "own_term",
    distill: str = "kl",
) -> dict[str, Tensor]:
    """First term + in-batch term, as ColBERT and MIRe minimise them.

    queries: B. documents: W * B * nways, nways consecutive per query, positive first; ``offset`` is the row of the
    first own document when the documents of several processes were gathered; more documents, nways at a time, may
    follow (see ``memory_queue``). First term: cross-entropy of each query over its own nways documents (zero when
    nways is 1), or with ``teacher`` [B, nways] the distance ``distill`` of scores and teacher scores times ``alpha``
    (see ``distill.distillation``). In-batch term: cross-entropy over the own positive and
    all documents of the other queries, own hard negatives left out. Scores are divided by ``temperature``.
    ``same`` [B, W * B * nways] bool marks false negatives, which leave the denominators (not the teacher's term).
    ``hard_negatives="in_batch"`` is FLMR's form: own hard negatives stand in the in-batch denominator, no first term.

    Returns "loss" [], "scores" [B, nways] (own, divided by the temperature); with ``in_batch`` also "in_batch" [],
    "all" [B, W * B * nways] and "kept", the same with what left the denominator at the lowest number.
    """
    b, n = len(queries), len(documents)
    if n % nways or n < b * nways:
        raise UserError(f"{n} documents do not make {nways} per query for {b} queries; check nways.")
    own = torch.arange(b, device=queries.embeddings.device) * nways + offset
    if in_batch:
        everything = maxsim(queries, documents) / temperature
        columns = own[:, None] + torch.arange(nways, device=own.device)
        scores = everything.gather(1, columns)
    else:
        everything = None
        scores = maxsim_pairs(queries, documents.select(slice(offset, offset + b * nways))) / temperature
    lowest = torch.finfo(scores.dtype).min
    if teacher is not None:
        loss = distillation(scores, teacher * alpha, distill)
    elif nways > 1 and hard_negatives == "own_term":
        kept = scores
        if same is not None:
            leave = same[:, offset : offset + b * nways].view(b, b, nways).diagonal(dim1=0, dim2=1).T.clone()
            leave[:, 0] = False
            kept = scores.masked_fill(leave, lowest)
        loss = cross_entropy(kept, torch.zeros_like(own))
    else:
        loss = scores.sum() * 0.0
    out = {"scores": scores}
    if in_batch:
        leave = torch.zeros_like(everything, dtype=torch.bool) if same is None else same.clone()
        if hard_negatives == "own_term":
            leave.scatter_(1, columns, True)
        leave.scatter_(1, own[:, None], False)
        out["all"], out["kept"] = everything, everything.masked_fill(leave, lowest)
        out["in_batch"] = cross_entropy(out["kept"], own)
        loss = loss + out["in_batch"]
    out["loss"] = loss
    return out


def query_accuracy(scores: Tensor, own: Tensor | None = None) -> Tensor:
    """Share of queries whose own document scores highest. scores [B, N]; own [B], the diagonal by default."""
    target = torch.arange(len(scores), device=scores.device) if own is None else own
    return (scores.argmax(1) == target).float().mean()


def document_accuracy(scores: Tensor) -> Tensor:
    """The original's "in-batch accuracy": for each document the best query. scores [B, B]."""
    return (scores.argmax(0) == torch.arange(scores.shape[1], device=scores.device)).float().mean()


def false_negatives(
    keys: Tensor, nways: int = 1, offset: int = 0, queries: int | None = None, same_image: bool = False
) -> Tensor:
    """Which documents are as right as the own positive.

    keys [N, 4] int64: names of each document (see ``batches.document_keys``), 0 where one does not apply; document
    ``offset + i * nways`` is the positive of query i. A document is "the same" when any of its names equals the
    positive's -> [queries, N] bool, the positive itself included. The last name, of the picture that was asked about,
    counts with ``same_image``.
    """
    keys = keys if same_image else keys[:, :3]
    count = (len(keys) - offset) // nways if queries is None else queries
    positives = keys[offset : offset + count * nways : nways]
    equal = (positives[:, None] == keys[None]) & (positives[:, None] != 0)
    return equal.any(-1)
