"""Learning from a teacher's scores: the two losses, and the file that holds the scores.

A teacher (a cross-encoder, a larger retriever) has scored queries with documents before training. The file is a TSV of
lines ``query id, document id, score``; lines that begin with ``#`` are notes. ``python -m runs.score_examples`` writes
one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div, mse_loss

from core.errors import UserError
from core.records import Example
from training.batches import number_of

DISTILLATIONS = ("kl", "margin_mse")


def distillation(scores: Tensor, teacher: Tensor, kind: str = "kl") -> Tensor:
    """Loss of a query's scores [B, n] of its own documents, positive first, against the teacher's [B, n].

    kl: divergence of the two softmaxed rows, summed over documents (ColBERTv2). margin_mse: squared difference of how
    far the positive is above each negative, mean over all of them (Hofstätter et al. 2020); it has the teacher's scale.
    """
    teacher = teacher.to(scores)
    if kind == "margin_mse":
        return mse_loss(scores[:, :1] - scores[:, 1:], teacher[:, :1] - teacher[:, 1:])
    return kl_div(scores.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


class TeacherScores:
    """The scores of a file, found by query id and document id: 16 bytes a pair in memory."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        names, values = array("q"), array("d")
        try:
            with open(self.path, encoding="utf-8") as handle:
                for number, line in enumerate(handle, 1):
                    if line.startswith("#"):
                        continue
                    query, document, score = self._parts(line, number)
                    names.append(number_of(query, document))
                    values.append(score)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"teacher scores '{path}' cannot be read ({error}); make them with python -m runs.score_examples."
            ) from None
        keys, scores = np.asarray(names, dtype=np.int64), np.asarray(values)
        order = keys.argsort(kind="stable")
        self._keys, self._values = keys[order], scores[order]

    def __len__(self) -> int:
        return len(self._keys)

    def _parts(self, line: str, number: int) -> tuple[str, str, float]:
        try:
            query, document, text = line.rstrip("\r\n").split("\t")
            score = float(text)
        except ValueError:
            score = float("nan")
        if not np.isfinite(score):
            raise UserError(
                f"line {number} of teacher scores '{self.path}' is {line.strip()[:60]!r}; a line is query id, document "
                "id and a finite score, separated by tabs: correct or remove it."
            )
        return query, document, score

    def of(self, examples: Sequence[Example], nways: int) -> Tensor:
        """[B, nways] float32: scores of each example's positive and first ``nways - 1`` negatives."""
        rows = [[self._one(e.query.id, d.id) for d in (e.positive, *e.negatives[: nways - 1])] for e in examples]
        return torch.tensor(rows, dtype=torch.float32)

    def _one(self, query: str, document: str) -> float:
        wanted = number_of(query, document)
        at = int(np.searchsorted(self._keys, wanted))
        if at == len(self._keys) or self._keys[at] != wanted:
            raise UserError(
                f"teacher scores '{self.path}' have none for query '{query}' and document '{document}'; score these "
                "examples with python -m runs.score_examples (same data, seed and number of epochs), or unset "
                "train.teacher_scores."
            )
        return float(self._values[at])
