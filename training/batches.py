"""Which examples a step sees: one order for all processes, cut into contiguous rows by rank."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from core import distributed
from core.batch import Batch
from core.errors import UserError
from core.protocols import RetrievalDataset, Retriever, TextStates
from core.records import Document, Example
from core.visual import VisualSource
from training.phases import phase
from training.units import Plan, plan


@dataclass
class TrainBatch:
    """One micro-batch of one process: B queries, B * nways documents (nways consecutive per query, positive first).

    keys [B * nways, 4] int64: see ``document_keys``. teacher [B, nways]: a teacher's scores of each query's documents.
    plan: how it is cut where it is not encoded at once.
    """

    queries: Batch
    documents: Batch
    keys: Tensor
    nways: int
    teacher: Tensor | None = None
    plan: Plan | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TrainBatch:
        sides = (side.to(device, non_blocking) for side in (self.queries, self.documents))
        teacher = None if self.teacher is None else self.teacher.to(device, non_blocking=non_blocking)
        return TrainBatch(*sides, self.keys.to(device, non_blocking=non_blocking), self.nways, teacher, self.plan)

    def pin_memory(self) -> TrainBatch:
        """The same in page-locked memory (the loader's own thread calls it, see ``stream``)."""
        teacher = None if self.teacher is None else self.teacher.pin_memory()
        sides = (side.pin_memory() for side in (self.queries, self.documents))
        return TrainBatch(*sides, self.keys.pin_memory(), self.nways, teacher, self.plan)


class Order:
    """The order of the examples of each epoch, a function of (seed, epoch) alone.

    Row block ``[r * b, (r + 1) * b)`` of global batch k belongs to rank r, so W processes with batch b see exactly what
    one process with batch W * b sees. A global batch that would not be full is dropped.
    """

    def __init__(
        self,
        dataset: RetrievalDataset,
        split: str,
        batch_size: int,
        nways: int = 1,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        self.dataset, self.split, self.nways, self.seed = dataset, split, nways, seed
        self.rank = distributed.rank() if rank is None else rank
        self.world = distributed.world() if world is None else world
        self.batch_size = batch_size
        self.epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Redraw the examples and shuffle them anew. Too few examples for one global batch are an error."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self.items: Sequence[Example] = self.dataset.examples(self.split, epoch, self.seed)
        # PCG64 with a seed sequence: the same numbers on every platform and rank.
        self.permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        if len(self) == 0:
            raise UserError(
                f"split '{self.split}' has {len(self.items)} examples, fewer than one batch of {self.batch_size} on "
                f"{self.world} process(es); lower train.batch_size or train.accumulation."
            )

    def __len__(self) -> int:
        """Global batches in the epoch."""
        return len(self.items) // (self.batch_size * self.world)

    def rows(self, index: int) -> list[int]:
        """Positions in ``examples`` that this process takes of global batch ``index``."""
        start = (index * self.world + self.rank) * self.batch_size
        return self.permutation[start : start + self.batch_size].tolist()

    def examples(self, index: int) -> list[Example]:
        """This process's examples of global batch ``index``, each with enough hard negatives."""
        chosen = [self.items[row] for row in self.rows(index)]
        for example in chosen:
            if len(example.negatives) < self.nways - 1:
                raise UserError(
                    f"example '{example.query.id}' has {len(example.negatives)} hard negatives, train.nways "
                    f"{self.nways} wants {self.nways - 1}; lower train.nways or add negatives to the data."
                )
        return chosen


class Teacher(Protocol):
    """What knows a teacher's scores (see ``distill.TeacherScores``)."""

    def of(self, examples: Sequence[Example], nways: int) -> Tensor: ...


class Collator:
    """Examples to a TrainBatch. ``self[i]`` is global batch i of the order's present epoch, on the CPU."""

    def __init__(
        self,
        order: Order,
        retriever: Retriever,
        visual: VisualSource | None = None,
        states: TextStates | None = None,
        teacher: Teacher | None = None,
        unit_rows: int | None = None,
        unit_tokens: int | None = None,
        remember: bool = True,
    ) -> None:
        """unit_rows, unit_tokens: limits of the batches' plans (see ``units.plan``). remember: whether queries' states
        come from ``states`` too; otherwise they are computed in the step."""
        self.order, self.retriever, self.visual, self.states = order, retriever, visual, states
        self.teacher, self.unit_rows, self.unit_tokens = teacher, unit_rows, unit_tokens
        self.query_states = states if remember else None

    def __getitem__(self, index: int) -> TrainBatch | UserError:
        try:
            return self.collate(self.order.examples(index))
        except UserError as error:  # travels as a value: a worker process would wrap it in its traceback
            return error

    def collate(self, examples: Sequence[Example]) -> TrainBatch:
        nways = self.order.nways
        documents = [d for e in examples for d in (e.positive, *e.negatives[: nways - 1])]
        with phase("collate"):
            asked = self.retriever.collate_queries([e.query for e in examples], self.visual, self.query_states)
            answers = self.retriever.collate_documents(documents, self.visual, self.states)
            teacher = None if self.teacher is None else self.teacher.of(examples, nways)
            units = plan(asked, answers, self.unit_rows, self.unit_tokens)
            return TrainBatch(asked, answers, document_keys(examples, nways), nways, teacher, units)


def stream(
    collator: Collator, first: int, stop: int, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[TrainBatch]:
    """Micro-batches ``first`` to ``stop`` of the order's present epoch, in order, whatever the number of workers.

    pin_memory: a thread puts what workers made into page-locked memory (needs CUDA).
    """
    if num_workers == 0:
        source: Iterator = (collator[i] for i in range(first, stop))
    else:
        # fork: workers share the retriever's tokenizer and the memory-mapped stores without pickling them.
        context = multiprocessing.get_context("fork") if sys.platform == "linux" else None
        source = iter(
            DataLoader(
                collator,  # type: ignore[arg-type]
                batch_size=None,
                sampler=range(first, stop),
                num_workers=num_workers,
                pin_memory=pin_memory,
                multiprocessing_context=context,
                worker_init_fn=leave_signals_to_the_run,
                generator=torch.Generator(),  # its own, so that the loader draws nothing from the training RNG
            )
        )
    for item in source:
        if isinstance(item, UserError):
            raise item
        yield item


def leave_signals_to_the_run(number: int) -> None:
    """In a worker process: only the process that started it can end it.

    Schedulers, torchrun and terminals signal a whole group of processes. The run answers with a checkpoint, which would
    fail if its workers were gone by then. (They end by themselves when the run is no more.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()


def document_keys(examples: Sequence[Example], nways: int) -> Tensor:
    """[B * nways, 4] int64 names of documents: id, content, and for a positive its query and the query's pictures.

    Two documents with the same id or content answer alike; so do two positives of one query. 0 = does not apply.
    """
    rows = []
    for example in examples:
        query = example.query
        # Regions of one picture are that picture.
        shown = sorted({image.id for image in query.images})
        for i, document in enumerate((example.positive, *example.negatives[: nways - 1])):
            asked = [number_of("query", query.id), number_of("images", *shown) if shown else 0] if i == 0 else [0, 0]
            rows.append([number_of("id", document.id), number_of("content", *_content(document)), *asked])
    return torch.tensor(rows, dtype=torch.int64)


def _content(document: Document) -> tuple[str, ...]:
    text = " ".join(document.text.split()) or document.title
    return (text, *(image.key for image in document.images))


def number_of(*parts: str) -> int:
    """A 64-bit number that stands for these strings; never 0."""
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) | 1
