"""What a step minimises. The default is contrastive; queues and twins of other families get their own class."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core import distributed
from core.batch import Batch
from core.device import tf32
from core.errors import UserError
from core.tokens import TokenBatch
from training.batches import TrainBatch
from training.config import Config
from training.losses import contrastive, false_negatives, query_accuracy
from training.memory_queue import MemoryQueue
from training.slices import in_slices, slice_size


class Encode(Protocol):
    """What an objective may ask of the retriever."""

    def encode_queries(self, batch: Batch) -> TokenBatch: ...
    def encode_documents(self, batch: Batch) -> TokenBatch: ...
    def temperature(self) -> float: ...


class Objective(nn.Module):
    """Base class. Its parameters train with the retriever's, its state_dict is part of the checkpoint."""

    def step(self, batch: TrainBatch, encode: Encode) -> dict[str, Tensor]:
        """Scalars of one micro-batch: "loss" is minimised, the others are logged (detached)."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each optimizer step (a momentum encoder would follow here)."""


class Contrastive(Objective):
    """Each query must find its positive among its hard negatives, the other queries' documents and remembered ones."""

    def __init__(
        self,
        in_batch: bool = True,
        gather: bool = True,
        false_negatives: str = "mask",
        hard_negatives: str = "own_term",
        memory: int = 0,
        distillation: str = "kl",
        teacher_scale: float = 1.0,
    ) -> None:
        """The keys of ``train`` with the same names. A batch's teacher scores are used when it has them."""
        super().__init__()
        self.in_batch = in_batch
        self.gather = gather and in_batch
        self.false_negatives = false_negatives
        self.hard_negatives = hard_negatives
        self.memory = MemoryQueue(memory) if memory else None
        self.distillation, self.teacher_scale = distillation, teacher_scale

    def step(self, batch: TrainBatch, encode: Encode) -> dict[str, Tensor]:
        """Gives "loss", "accuracy" (share of queries whose positive scores highest among what the loss compares it
        with), and the two terms when both exist."""
        queries = encode.encode_queries(batch.queries).to(torch.float32)
        documents = encode.encode_documents(batch.documents).to(torch.float32)
        keys, offset = batch.keys, 0
        if self.gather and distributed.world() > 1:
            # After both encodings, so that in the backward pass these collectives come before DDP's on every rank.
            documents, keys = distributed.gather_tokens(documents), gather_rows(keys)
            offset = distributed.rank() * len(batch.keys)
        fresh, fresh_keys = documents, keys
        if self.memory is not None:
            documents, keys = self.memory.extend(documents, keys)

        def loss(part: slice, taken: TokenBatch, candidates: TokenBatch) -> dict[str, Tensor]:
            teacher = None if batch.teacher is None else batch.teacher[part]
            first = offset + part.start * batch.nways
            return self._losses(taken, candidates, keys, first, batch.nways, encode.temperature(), teacher)

        # Scores are sums over many rows: bf16 would round away the differences that the loss is about.
        kind = queries.embeddings.device.type
        with tf32(kind == "cuda" and torch.is_autocast_enabled(kind)), torch.autocast(kind, enabled=False):
            losses = in_slices(loss, queries, documents, slice_size(queries, documents))
        if self.memory is not None and self.training:
            self.memory.add(fresh, fresh_keys)
        return losses

    def _losses(
        self,
        queries: TokenBatch,
        documents: TokenBatch,
        keys: Tensor,
        offset: int,
        nways: int,
        temperature: float,
        teacher: Tensor | None,
    ) -> dict[str, Tensor]:
        """The numbers of queries whose own documents begin at row ``offset``."""
        same = None
        if self.false_negatives != "keep":
            by_image = self.false_negatives == "mask_same_image"
            same = false_negatives(keys, nways, offset, len(queries), by_image)
        out = contrastive(
            queries,
            documents,
            nways,
            temperature,
            self.in_batch,
            same,
            teacher,
            self.teacher_scale,
            offset,
            self.hard_negatives,
            self.distillation,
        )
        own = torch.arange(len(queries), device=keys.device) * nways + offset
        compared, target = (out["kept"], own) if self.in_batch else (out["scores"], torch.zeros_like(own))
        losses = {"loss": out["loss"], "accuracy": query_accuracy(compared.detach(), target)}
        if self.in_batch and nways > 1 and (self.hard_negatives == "own_term" or teacher is not None):
            losses["in_batch_loss"] = out["in_batch"].detach()
            losses["nway_loss"] = (out["loss"] - out["in_batch"]).detach()
        return losses


def from_config(config: Config) -> Objective:
    """The contrastive objective of ``train``. A batch of one document on all processes together is an error."""
    queries = config.batch_size * (distributed.world() if config.gather else 1)
    if config.in_batch and queries * config.nways == 1 and not config.memory:
        raise UserError("train.batch_size 1 on one process leaves no negatives; raise train.batch_size or train.nways.")
    return Contrastive(
        config.in_batch,
        config.gather,
        config.false_negatives,
        config.hard_negatives,
        config.memory,
        config.distillation,
        config.teacher_scale,
    )


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate equal-sized [n, ...] tensors over the processes in rank order, without gradient."""
    parts = [torch.empty_like(rows) for _ in range(distributed.world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
