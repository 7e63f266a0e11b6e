"""MaxSim's forward and backward pass: ours against plain autograd through the dense similarity tensor.

  python benchmarks/maxsim_backward.py --synthetic
  python benchmarks/maxsim_backward.py --device cuda --queries 128 --documents 384

Both run in turn in one process; printed are medians and their ratio. Values and gradients are compared first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--synthetic", action="store_true", help="random unit vectors (the only input there is)")
    made.add_argument("--queries", type=int, default=48)
    made.add_argument("--query_rows", type=int, default=44)
    made.add_argument("--documents", type=int, default=144)
    made.add_argument("--document_rows", type=int, default=96)
    made.add_argument("--dim", type=int, default=128)
    made.add_argument("--device", default="cpu")
    made.add_argument("--rounds", type=int, default=11)
    return made


def main() -> None:
    args = arguments().parse_args()
    import torch
    from torch.nn.functional import normalize

    from core.maxsim import maxsim
    from core.tokens import TokenBatch

    torch.manual_seed(0)
    q = normalize(torch.randn(args.queries, args.query_rows, args.dim, device=args.device), dim=-1).requires_grad_()
    d = normalize(
        torch.randn(args.documents, args.document_rows, args.dim, device=args.device), dim=-1
    ).requires_grad_()
    q_mask = torch.ones(q.shape[:2], dtype=torch.bool, device=args.device)
    d_mask = torch.rand(d.shape[:2], device=args.device) < 0.6
    d_mask[:, 0] = True
    weights = torch.randn(args.queries, args.documents, device=args.device)

    def ours():
        return maxsim(TokenBatch(q, q_mask), TokenBatch(d, d_mask))

    def dense():
        sims = (q.flatten(0, 1) @ d.flatten(0, 1).T).view(args.queries, args.query_rows, *d.shape[:2])
        return sims.masked_fill(~d_mask, torch.finfo(sims.dtype).min).amax(-1).sum(1)

    def step(score) -> tuple[float, tuple]:
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        grads = torch.autograd.grad((score() * weights).sum(), (q, d))
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start, grads

    for a, b in zip(step(ours)[1], step(dense)[1]):
        assert torch.allclose(a, b, atol=1e-3), "the gradients differ"
    times = [(step(ours)[0], step(dense)[0]) for _ in range(args.rounds)]
    mine, theirs = (statistics.median(t) for t in zip(*times))
    print(f"ours {1000 * mine:.1f} ms, dense autograd {1000 * theirs:.1f} ms, ratio {theirs / mine:.2f}")


if __name__ == "__main__":
    main()
