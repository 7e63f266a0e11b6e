"""Token pooling: fewer vectors per document (Clavié et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import UserError


def pool_tokens(rows: Tensor, factor: int, protected: int = 0) -> Tensor:
    """[n, d] unit rows -> about n / factor rows: means of Ward clusters, not normalised again.

    The first ``protected`` rows stay as they are and come last. Clusters are formed, as in colbert-ai, on the rows
    of the 1 - cosine matrix, at most ``n // factor`` of them with the protected rows counted in n.
    """
    if factor < 1:
        raise UserError(f"pool factor is {factor}; give 1 (no pooling) or more.")
    head, body = rows[:protected], rows[protected:]
    if factor == 1 or len(body) < 2:
        return rows
    from scipy.cluster.hierarchy import fcluster, linkage

    distances = 1 - (body @ body.T).double().cpu().numpy()
    labels = fcluster(linkage(distances, method="ward"), t=max(1, len(rows) // factor), criterion="maxclust")
    means = [body[torch.from_numpy(labels == k)].mean(0) for k in range(1, labels.max() + 1)]
    return torch.cat([torch.stack(means), head])
