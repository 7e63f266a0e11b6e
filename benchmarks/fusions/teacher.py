"""An objective with a teacher that costs nothing: what the answer, read as a query, says of the other passages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from core.maxsim import maxsim
from core.tokens import TokenBatch
from training.batches import TrainBatch
from training.losses import contrastive, false_negatives
from training.objective import Objective


class PassageTeacher(Objective):
    """The contrastive loss plus ``weight`` times the divergence of each query's scores from its teacher's.

    The teacher of a query is its positive passage: MaxSim of the passage's rows with every passage of the batch, their
    mean per row over ``SHARPNESS``. So a passage about the same country, or the same field of another one, is a better
    wrong answer than any other. Single process.
    """

    SHARPNESS = 0.1

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def step(self, batch: TrainBatch, encode) -> dict[str, Tensor]:
        queries, documents = encode.encode_queries(batch.queries), encode.encode_documents(batch.documents)
        same = false_negatives(batch.keys, batch.nways, 0, len(queries))
        out = contrastive(queries, documents, batch.nways, encode.temperature(), True, same)
        target = teacher_scores(documents, batch.nways) / self.SHARPNESS
        learned = kl_div(out["all"].log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True)
        return {"loss": out["loss"] + self.weight * learned, "teacher_loss": learned.detach()}


@torch.no_grad()
def teacher_scores(documents: TokenBatch, nways: int) -> Tensor:
    """[B * nways, T, D] -> [B, B * nways]: mean over the rows of each positive of its best match in every document."""
    positives = documents.select(slice(0, None, nways)).detach()
    return maxsim(positives, documents.detach()) / positives.mask.sum(1, keepdim=True).clamp(min=1)
