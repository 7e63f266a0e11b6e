"""What a step must compute, and what the device can: multiply-adds count two, padding and skipped layers nothing.

Counted are the products with weights, attention, MaxSim; not norms, activations or the optimizer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch


def step(retriever, arm: str, case: str, queries: Sequence[int], documents: Sequence[int]) -> float:
    """FLOPs of one step. queries, documents: attended tokens of each. arm: "plain" computes every tower, "cached" finds
    what is frozen; "ours" too, and has MIRe's shorter head. A backward pass costs two forward ones where both sides of
    a product learn, one where only the weight does."""
    text, trains = retriever.text, 1 if case == "pretrain" else 3
    total = 0.0
    if arm == "plain" or case != "pretrain":
        total += trains * (trunk(text.trunk.config, queries) + trunk(text.trunk.config, documents))
    if arm != "ours" or case != "pretrain":
        total += trains * 2 * (sum(queries) + sum(documents)) * text.hidden_size * text.linear.out_features
    query_rows = sum(queries)
    if case != "text":
        n, head = len(queries), retriever.fusion
        patches = (retriever.config.vision.grid or _side(retriever)) ** 2
        total += n * _head(head, retriever.vision.hidden_size, patches, sum(queries) / n, arm == "ours")
        total += n * vision(retriever) if arm == "plain" else 0
        query_rows = n * (head.tokens + head.heads) + (0 if case == "pretrain" else query_rows)
    return total + maxsim(query_rows, documents, text.linear.out_features, both=case != "pretrain")


def trunk(config, lengths: Sequence[int]) -> float:
    """One pass of a transformer over sequences of these lengths."""
    h, inner = config.hidden_size, getattr(config, "intermediate_size", None) or config.hidden_size * config.mlp_ratio
    each = sum(2 * n * (4 * h * h + 2 * h * inner) + 4 * n * n * h for n in lengths)
    return float(config.num_hidden_layers * each)


def vision(retriever) -> float:
    """The vision tower on one image."""
    config, side = retriever.vision.trunk.config, _side(retriever)
    embedding = 2 * side * side * 3 * config.patch_size**2 * config.hidden_size
    return trunk(config, [side * side + 1]) + embedding


def _side(retriever) -> int:
    """Patches along one edge."""
    config = retriever.vision.trunk.config
    crop = retriever.pixel_source().describe().get("crop_size", {}).get("height", config.image_size)
    return crop // config.patch_size


def _head(head, v: int, patches: int, rows: float, ours: bool) -> float:
    """MIRe's head on one image, forward and backward; what comes from frozen towers gets no gradient."""
    inner, d = head.heads * head.dim, head.dim
    first = 2 * patches * v * 2 * inner + 2 * v * head.tokens * d // 2
    keys = 2 * patches * 2 * inner * inner
    look = 2 * rows * inner * patches
    if ours:  # attention meets the patches before the value projection
        values = 2 * head.heads * patches * 2 * inner + 2 * 2 * inner * inner
    else:
        values = 2 * patches * 2 * inner * inner + look
    last = 2 * head.heads * d * d + 2 * (head.tokens * d) ** 2 // 2
    return 2 * first + 3 * (keys + look + values + last)


def maxsim(query_rows: int, documents: Sequence[int], dim: int, both: bool) -> float:
    """All similarities once; backward one vector per query row and document, for each side that learns."""
    return 2.0 * dim * query_rows * (sum(documents) + (2 if both else 1) * len(documents))


def ceiling(device: str, seconds: float = 1.0, quick: bool = False, clock: str = "wall") -> dict[str, float]:
    """FLOP/s of a matrix product, the best of some sizes, in fp32 and bf16 (without TF32)."""
    sizes, best = [256] if quick else [1024, 2048] if device == "cpu" else [4096, 8192], {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for n in sizes:
            a = torch.randn(n, n, device=device, dtype=dtype)
            times = []
            for _ in range(3):
                a @ a
            begun = time.perf_counter()
            while not times or (time.perf_counter() - begun < seconds and len(times) < 50):
                start = now(device, clock)
                a @ a
                times.append(now(device, clock) - start)
            best[name] = max(best.get(name, 0.0), 2 * n**3 / statistics.median(times))
    return best


def now(device: str, clock: str = "wall") -> float:
    """Seconds, after the device has done what it was asked. clock "cpu": those that this process computed, which on a
    machine that others use too say more."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() if clock == "cpu" else time.perf_counter()
