"""Searching texts for texts in the ViD2R recipe, in batches. Not a command of its own.

Batches are the blocks of ``runs.shares``: whoever searches them, and after whichever kill, a text is encoded and
searched with the same neighbours, so the scores are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.device import autocast
from core.errors import UserError
from core.files import read_object
from core.protocols import Ranking
from core.records import Query
from core.tokens import TokenBatch

MANY = 1_000_000
"""Texts from which on the index takes more centroids than its default (docs/scaling.md)."""

GROUP, GROUPS = 16, {"cuda": 128}
"""Texts of like length that are encoded together, of one batch: a CPU wants little padding, a GPU many."""

PASSAGES = 64
"""Passages that are encoded together for the index, at most."""

FEW = 10
"""Results up to which the index's quick search is enough."""

PLACES = 4
"""Decimal places of the scores that are kept."""


class Searcher:
    """A text retriever and the index of a corpus, built when it is not there.

    expansion: fill short texts with [MASK], as ColBERT does with questions. Sentences say enough without, and the rows
    of 60 masks cost more than the sentence's own. precision: of the encoder, for articles and responses alike: auto,
    fp32, fp16 or bf16.
    """

    def __init__(
        self, checkpoint: str, device: str | None, corpus, path: str | Path, query_maxlen: int, doc_maxlen: int,
        n_bits: int, batch_size: int, expansion: bool = True, precision: str = "auto",
    ) -> None:  # fmt: skip
        from core.device import encoding_precision, pick_device
        from runs.common import open_retriever, query_encoder, with_lengths
        from runs.settings import IndexSection

        self.corpus, self.path = corpus, Path(path)
        self.retriever = open_retriever(checkpoint, pick_device(device or "auto"))
        most = self.retriever.text.positions or query_maxlen + doc_maxlen
        with_lengths(self.retriever, query_maxlen=min(query_maxlen, most), doc_maxlen=min(doc_maxlen, most))
        if not expansion:
            self.retriever.tokenizer.conventions = replace(self.retriever.tokenizer.conventions, expansion=False)
        options = {"nbits": n_bits} | ({"max_centroids": 1 << 18} if len(corpus) >= MANY else {})
        self.device = next(self.retriever.parameters()).device
        self.precision = encoding_precision(precision, self.device)
        self.group = GROUPS.get(self.device.type, GROUP)
        size = min(batch_size, PASSAGES)
        self.section = IndexSection(name="auto", batch_size=size, precision=self.precision, options=options)
        self.encode = query_encoder(self.retriever)

    def build(self) -> None:
        from runs.indexing import build, index_device

        device = index_device(self.device)
        self.index = build(self.retriever, self.corpus, self.section, self.path, device=device)

    def open(self) -> Searcher:
        """The index must be there, and of this retriever."""
        from index import open_index
        from runs.indexing import encoder_of, index_device

        encoder = encoder_of(self.retriever, self.corpus[:1])
        self.index = open_index(self.path, encoder=encoder, device=index_device(self.device))
        if len(self.index) != len(self.corpus):
            raise UserError(
                f"the index '{self.path}' has {len(self.index)} passages, the texts are {len(self.corpus)}; build it "
                "again (--indexing --overwrite)."
            )
        return self

    def __call__(self, texts: Sequence[str], k: int) -> list[Ranking | None]:
        """One ranking per text; None for a blank one."""
        asked = [i for i, text in enumerate(texts) if text.strip()]
        out: list[Ranking | None] = [None] * len(texts)
        if not asked:
            return out
        pieces = self.retriever.tokenizer.tokenizer([texts[i] for i in asked], verbose=False)["input_ids"]
        tokens = {i: len(found) for i, found in zip(asked, pieces, strict=True)}
        asked.sort(key=tokens.__getitem__)  # little padding in each group
        with autocast(self.device, self.precision):  # one for all groups: it casts the weights once
            rows = TokenBatch.cat(
                [self.encode([Query(str(i), texts[i]) for i in asked[at : at + self.group]])
                 for at in range(0, len(asked), self.group)]
            )  # fmt: skip
        if not bool(rows.embeddings.isfinite().all()):
            raise UserError(
                f"texts like '{texts[asked[0]]:.40}' leave the range of {self.precision} in this model's encoder; take "
                "--precision bf16 or fp32."
            )
        found = self.index.search(rows.to(torch.float32), min(k, len(self.index)), effort=self.effort(k))
        for i, ranking in zip(asked, found, strict=True):
            out[i] = ranking
        return out

    @staticmethod
    def effort(k: int) -> str:
        """For the first few, a short list of candidates does."""
        return "fast" if k <= FEW else "balanced"


def check_texts(path: Path, corpus) -> None:
    """An index that lies there must be of these very texts: any others would answer in their places."""
    from runs.indexing import JOB, digest

    job = path / JOB
    if job.is_file() and (found := read_object(job).get("corpus")) != (now := digest(corpus)):
        raise UserError(
            f"the index '{path}' is of other texts ({found} there, {now} now); give another --index, or those texts "
            "again."
        )


def check_candidates(n_cands: int, texts: int, what: str) -> None:
    if n_cands < 1:
        raise UserError(f"--n_cands {n_cands}: ask for 1 or more.")
    if texts < n_cands:
        raise UserError(f"--n_cands {n_cands} is more than the {texts} {what}; ask for fewer.")


class Searching:
    """A worker of ``shares.run_share``: ``text`` of each item is searched, ``row(number, ranking)`` is kept."""

    def __init__(
        self, search: Searcher, k: int, text: Callable[[Any], str | None], row: Callable[[int, Ranking], dict]
    ) -> None:
        self.search, self.k, self.text, self.row = search, k, text, row

    def state(self) -> dict:
        return {}

    def go_on(self, state: dict) -> None:
        """Nothing is carried from block to block."""

    def __call__(self, part: Sequence[tuple[int, Any]], own: bool) -> list[dict]:
        if not own:
            return []
        found = self.search([self.text(item) or "" for _, item in part], self.k)
        return [
            {"n": n} if ranking is None else {"n": n, **self.row(n, ranking)} for (n, _), ranking in zip(part, found)
        ]


def rank_of(own: int, ids: Sequence[str], keys: np.ndarray) -> int | None:
    """The place, from 1, of the first result whose text is the own one; None when it is not among them.

    keys: a hash of each text, by place; ids: places as strings.
    """
    same = np.flatnonzero(keys[np.array(ids, dtype=np.int64)] == keys[own]) if len(ids) else []
    return int(same[0]) + 1 if len(same) else None
