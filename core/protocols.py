"""The seams of the house. Rooms meet through these and never import each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from core.batch import Batch
from core.records import Document, Example, ImageRef, Query
from core.tokens import TokenBatch
from core.visual import VisualSource

STAGES = ("train", "valid", "eval")
"""A retriever's ``stage`` picks the row set, lengths and temperature that its config gives for that use."""


class TextStates(Protocol):
    """Frozen-trunk states of texts, computed once (see ``training.states``)."""

    def get(self, side: str, texts: Sequence[str]) -> list[Tensor]:
        """side: "query" or "document" -> one [n, h] tensor per text; of a document whose rows are frozen, these."""
        ...

    def remembers(self, queries: int, some: Sequence[str]) -> bool:
        """Whether so many queries' states stay in memory once computed. some: texts of a few of them."""
        ...


@runtime_checkable
class Retriever(Protocol):
    """An encoder of queries and documents. It is also a ``torch.nn.Module``.

    A module ``models/<name>.py`` exposes ``Config`` (pydantic) and ``build(config) -> Retriever``.
    """

    config: Any
    stage: str  # one of STAGES; "eval" after from_pretrained

    def collate_queries(
        self, records: Sequence[Query], visual: VisualSource | None = None, states: TextStates | None = None
    ) -> Batch: ...
    def collate_documents(
        self, records: Sequence[Document], visual: VisualSource | None = None, states: TextStates | None = None
    ) -> Batch: ...
    def encode_queries(self, batch: Batch) -> TokenBatch: ...
    def encode_documents(self, batch: Batch) -> TokenBatch: ...

    def temperature(self) -> float:
        """Divisor of the scores in the loss, for the present stage."""
        ...

    def identity(self, images: bool = False) -> dict:
        """What an index or a state cache made with these weights must name (family, config, weight digest)."""
        ...

    def frozen_text_key(self, side: str) -> dict | None:
        """Key of the frozen text trunk's states for "query"/"document" at the present stage; None when it trains."""
        ...

    def text_states(self, side: str, texts: Sequence[str]) -> list[Tensor]:
        """Trunk states, one [n, h] tensor per text (no gradient)."""
        ...

    def save_pretrained(self, path: str | Path, provenance: dict | None = None) -> None: ...


@runtime_checkable
class RetrievalDataset(Protocol):
    """What is asked and what can answer. A module ``dataset/<name>.py`` exposes ``Config`` and ``build(config)``.

    Two methods are a data set's choice: ``corpus_of(split)``, where splits are judged on passages of their own (then
    ``corpus()`` is the test splits'), and ``judge(query, document) -> bool``, whether a passage holds an answer; with
    it come the answers in ``query.meta["answers"]`` (strings and ``core.answers.Range``), which Pseudo metrics read.
    """

    train_split: str  # its examples are drawn
    valid_split: str  # validates while training
    test_splits: Sequence[str]  # what evaluation judges when the YAML names no splits

    def corpus(self) -> Sequence[Document]: ...
    def queries(self, split: str) -> Sequence[Query]: ...

    def examples(self, split: str, epoch: int, seed: int) -> Sequence[Example]:
        """Deterministic per (seed, epoch, position), the same on every rank; wordings and positives may be redrawn.
        A Sequence: ``len`` and random access by position, so that resuming needs no replay."""
        ...

    def qrels(self, split: str) -> Mapping[str, Mapping[str, int]]:
        """query id -> {document id: relevance > 0}."""
        ...

    def images(self) -> Sequence[ImageRef]:
        """Every image that a query or document of any split can show, each once: what a feature cache must hold."""
        ...


@dataclass(frozen=True)
class Ranking:
    """What an index answers for one query: ids and scores, best first, ties in id order of the index.

    May be shorter than k when fewer documents were candidates.
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]


class Index(Protocol):
    """Where document vectors live. Knows ids and vectors only. ``index/<name>.py`` exposes a class ``Index``."""

    @classmethod
    def build(
        cls,
        path: str | Path,
        stream: Iterable[tuple[str, np.ndarray]],
        *,
        dim: int,
        encoder: dict,
        total: int | None = None,
        **options: Any,
    ) -> Index: ...
    @classmethod
    def open(cls, path: str | Path, encoder: dict | None = None, device: str = "cpu") -> Index: ...

    def search(
        self, queries: TokenBatch, k: int, allowed_ids: set[str] | Sequence[set[str]] | None = None, **effort: Any
    ) -> list[Ranking]: ...
    def ids(self) -> Sequence[str]: ...
    def vectors(self) -> Iterator[tuple[str, np.ndarray]]: ...
    def verify(self) -> list[str]: ...
    def stats(self) -> dict: ...
