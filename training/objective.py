"""What a step minimises. The default is contrastive; queues and twins of other families get their own class."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core import distributed
from core.batch import Batch
from core.tokens import TokenBatch
from training.batches import TrainBatch
from training.config import Config
from training.losses import contrastive, false_negatives, query_accuracy


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
    """Each query must find its positive among its hard negatives and the other queries' documents."""

    def __init__(
        self,
        in_batch: bool = True,
        gather: bool = True,
        mask_false_negatives: bool = True,
        hard_negatives: str = "own_term",
    ) -> None:
        super().__init__()
        self.in_batch = in_batch
        self.gather = gather and in_batch
        self.mask_false_negatives = mask_false_negatives
        self.hard_negatives = hard_negatives

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
        same = false_negatives(keys, batch.nways, offset, len(queries)) if self.mask_false_negatives else None
        # Scores are sums over many rows: bf16 would round away the differences that the loss is about.
        with torch.autocast(queries.embeddings.device.type, enabled=False):
            out = contrastive(
                queries,
                documents,
                batch.nways,
                encode.temperature(),
                self.in_batch,
                same,
                offset=offset,
                hard_negatives=self.hard_negatives,
            )
        own = torch.arange(len(queries), device=keys.device) * batch.nways + offset
        compared, target = (out["kept"], own) if self.in_batch else (out["scores"], torch.zeros_like(own))
        losses = {"loss": out["loss"], "accuracy": query_accuracy(compared.detach(), target)}
        if self.in_batch and batch.nways > 1 and self.hard_negatives == "own_term":
            losses["in_batch_loss"] = out["in_batch"].detach()
            losses["nway_loss"] = (out["loss"] - out["in_batch"]).detach()
        return losses


def from_config(config: Config) -> Objective:
    return Contrastive(config.in_batch, config.gather, config.false_negatives == "mask", config.hard_negatives)


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate equal-sized [n, ...] tensors over the processes in rank order, without gradient."""
    parts = [torch.empty_like(rows) for _ in range(distributed.world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
