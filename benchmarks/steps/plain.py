"""The published training step of MIRe and ColBERT, written down plainly: the opponent of ``train_bench``.

One forward as the papers' code does it, from the description of the systems and not from our model code: every tower
is run in every step, queries are filled with [MASK] to their length, documents with [PAD] to theirs, the value
projection is done for every patch and head, MaxSim goes through one tensor of all similarities, and AdamW takes
parameter by parameter. The weights are those of a retriever of ours, so that both sides start alike. The tests hold
this step against the golden losses and gradients of the originals.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


@dataclass
class Inputs:
    """What one step reads. Queries: B; documents: B * nways, positive first.

    Either ids (the trunk runs) or the trunk's states from a cache; either pixels or the vision tower's vectors.
    """

    query_mask: Tensor  # [B, L]
    document_keep: Tensor  # [B * nways, T] bool: the rows that count
    document_mask: Tensor | None = None  # [B * nways, T]
    query_ids: Tensor | None = None
    query_states: Tensor | None = None  # [B, L, h]
    document_ids: Tensor | None = None
    document_states: Tensor | None = None  # [B * nways, T, h]
    pixels: Tensor | None = None
    features: tuple[Tensor, Tensor] | None = None  # global [B, v], patches [B, P, v]
    nways: int = 1


def loss(retriever, inputs: Inputs, visual_only: bool, temperature: float, in_batch: bool = True) -> Tensor:
    """The scalar that the published trainer minimises. visual_only: phase A, whose queries have no text rows."""
    queries = query_rows(retriever, inputs, visual_only)
    documents = document_rows(retriever, inputs)
    repeated = queries.repeat_interleave(inputs.nways, 0)
    own = (documents @ repeated.transpose(1, 2)).masked_fill(~inputs.document_keep[:, :, None], -9999)
    own = own.amax(1).sum(-1).view(-1, inputs.nways) / temperature
    total = cross_entropy(own, torch.zeros(len(own), dtype=torch.int64, device=own.device))
    if in_batch:
        total = total + among_all(queries, documents, inputs.document_keep, inputs.nways, temperature)
    return total


def among_all(queries: Tensor, documents: Tensor, keep: Tensor, nways: int, temperature: float) -> Tensor:
    """Each query's positive among the documents of all queries; its own other documents are left out."""
    everything = documents[None] @ queries.transpose(1, 2)[:, None]  # [B, B * nways, T, S]
    scores = everything.masked_fill(~keep[None, :, :, None], -9999).amax(2).sum(-1) / temperature
    rows = torch.arange(len(queries), device=scores.device)
    leave = torch.zeros_like(scores, dtype=torch.bool)
    for way in range(1, nways):
        leave[rows, rows * nways + way] = True
    return cross_entropy(scores.masked_fill(leave, float("-inf")), rows * nways)


def query_rows(retriever, inputs: Inputs, visual_only: bool) -> Tensor:
    """[B, S, dim] unit rows: T global ones, one pooled one per head, and the text's unless ``visual_only``."""
    text = inputs.query_states
    if text is None:
        text = states(retriever, inputs.query_ids, inputs.query_mask)
    text = retriever.text.linear(text) * inputs.query_mask[:, :, None]
    if inputs.pixels is None and inputs.features is None:
        return normalize(text, dim=-1)
    found = inputs.features if inputs.pixels is None else retriever.vision(inputs.pixels)
    image = torch.cat(visual_rows(retriever.fusion, *found, text, inputs.query_mask), 1)
    return normalize(image if visual_only else torch.cat([image, text], 1), dim=-1)


def visual_rows(head, global_: Tensor, patches: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Global rows [B, T, dim], and rows [B, H, dim] pooled from the patches as every text row looks at them."""
    batch, dim = len(patches), text.shape[-1]
    x = head.proj(patches)
    keys, values = (f(x).view(batch, -1, head.heads, dim).transpose(1, 2) for f in (head.k_state, head.v_state))
    logits = text[:, None] @ keys.transpose(2, 3) / sqrt(dim)  # [B, H, L, P]
    attention = logits.masked_fill(mask[:, None, :, None] == 0, -9999).softmax(-1)
    pooled = (attention @ values).sum(2) / (mask.sum(1)[:, None, None] + 1e-15)
    return head.split_mlp(global_).view(batch, -1, dim), head.o_proj(pooled)


def document_rows(retriever, inputs: Inputs) -> Tensor:
    """[B * nways, T, dim] unit rows, zero where nothing counts."""
    text = inputs.document_states
    if text is None:
        text = states(retriever, inputs.document_ids, inputs.document_mask)
    return normalize(retriever.text.linear(text) * inputs.document_keep[:, :, None], dim=-1)


def states(retriever, ids: Tensor, mask: Tensor) -> Tensor:
    return retriever.text.trunk(input_ids=ids, attention_mask=mask).last_hidden_state


class Tokenizer:
    """Texts to ids as the originals make them: a dot in front, whose place the marker takes; fixed lengths."""

    def __init__(self, tokenizer, query_marker: int | None, document_marker: int | None) -> None:
        """tokenizer: a Hugging Face one. The markers are vocabulary entries; None, for a tower without, leaves out."""
        self.tokenizer, self.markers = tokenizer, (query_marker, document_marker)
        vocabulary = tokenizer.get_vocab()
        self.skipped = torch.tensor([vocabulary[sign] for sign in string.punctuation if sign in vocabulary])

    def queries(self, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        """ids [B, length] filled with [MASK], and the mask of training: all ones, [MASK] is attended."""
        ids, mask = self._encode(texts, self.markers[0], length, "max_length")
        ids[mask == 0] = self.tokenizer.mask_token_id
        return ids, torch.ones_like(ids)

    def documents(self, texts: list[str], length: int, to_longest: bool) -> tuple[Tensor, Tensor, Tensor]:
        """ids and mask [N, length], or only as long as the longest; and the rows that count: no punctuation."""
        ids, mask = self._encode(texts, self.markers[1], length, "longest" if to_longest else "max_length")
        return ids, mask, (mask == 1) & ~torch.isin(ids, self.skipped)

    def _encode(self, texts: list[str], marker: int | None, length: int, padding: str) -> tuple[Tensor, Tensor]:
        texts = texts if marker is None else [f". {text}" for text in texts]
        out = self.tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        ids, mask = out["input_ids"], out["attention_mask"]
        if marker is not None:
            ids[:, 1] = marker
        return ids, mask
