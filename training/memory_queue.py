"""Cross-batch memory (Wang et al. 2020, arXiv 1912.06798): documents of earlier batches stay negatives for a while.

Weights move little from one step to the next, so vectors that are a few steps old are still good enough to be wrong
answers, and cost no encoding. They get no gradient.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from core.tokens import TokenBatch


class MemoryQueue(nn.Module):
    """Vectors (float16), masks and keys (``batches.document_keys``) of the last ``size`` batches, the oldest first.

    They are part of ``state_dict``, so a resumed run has the same negatives. Every process must add the same, gathered
    documents: a checkpoint holds the first one's.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._batches: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._batches)

    def extend(self, documents: TokenBatch, keys: Tensor) -> tuple[TokenBatch, Tensor]:
        """The documents [N, T, D] and keys [N, k] with what is remembered behind them."""
        if not self._batches:
            return documents, keys
        own, device = documents.embeddings, keys.device
        old = [TokenBatch(e.to(device, own.dtype), m.to(device)) for e, m, _ in self._batches]
        return TokenBatch.cat([documents, *old]), torch.cat([keys, *(k.to(device) for _, _, k in self._batches)])

    def add(self, documents: TokenBatch, keys: Tensor) -> None:
        """Remember a batch; one with a vector that is not finite would spoil every later step and is left out."""
        values = documents.embeddings.detach().to(torch.float16)
        if bool(values.isfinite().all()):
            self._batches.append((values, documents.mask, keys))

    def get_extra_state(self) -> Any:
        return [tuple(t.cpu() for t in batch) for batch in self._batches]

    def set_extra_state(self, state: Any) -> None:
        self._batches.clear()
        self._batches.extend(tuple(batch) for batch in state)
