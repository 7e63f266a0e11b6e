"""How far a search is from what the machine allows: bytes over measured bandwidth, operations over measured peak."""

from __future__ import annotations

import time

DIM = 128


def measure(threads: int, device: str) -> dict[str, float]:
    """{"bytes_per_s": of summing an array that no cache holds, "flops": of a large fp32 product}, the best of five."""
    import torch

    torch.set_num_threads(threads)
    big, square = torch.ones(1 << 27, device=device), torch.rand(2048, 2048, device=device)

    def best(work) -> float:
        times = []
        for _ in range(6):  # the first one warms up and loses
            start = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    return {"bytes_per_s": 4 * big.numel() / best(big.sum), "flops": 2 * 2048**3 / best(lambda: square @ square)}


def floor(
    measured: dict[str, float], centroids: int, n_candidates: int, tokens: float, nbits: int, rows: int = 32
) -> dict[str, float]:
    """The least that any search of this kind does for one query of ``rows`` vectors: read all centroids and multiply
    them with it, then read, decompress and multiply the vectors of n_candidates documents of ``tokens`` vectors each.
    Finding the candidates (inverted lists, codes) comes on top and is not counted.
    """
    exact = n_candidates * tokens
    touched = 4 * centroids * DIM + exact * (DIM * nbits / 8 + 4)  # fp32 centroids, int32 codes
    operations = 2 * rows * DIM * (centroids + exact)
    memory, products = 1000 * touched / measured["bytes_per_s"], 1000 * operations / measured["flops"]
    return {"bytes": touched, "bytes_ms": memory, "flop": operations, "flop_ms": products, "ms": max(memory, products)}
