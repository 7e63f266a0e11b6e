"""MaxSim's forward and backward pass: ours, plain autograd through the dense similarity tensor, and
late-interaction-kernels.

  python benchmarks/maxsim_backward.py --synthetic
  python benchmarks/maxsim_backward.py --synthetic --device cuda --queries 512 --documents 512 --peer --wheels wheels

All run in turn in one process on the same vectors; printed are medians, what dense takes over each, and on CUDA the
peak memory above the inputs. Scores and gradients are compared first. On CUDA "ours" are the kernels of
core/maxsim_triton.py, and the same in plain torch runs too.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from core import cli
from core.errors import UserError

PEER = "late-interaction-kernels"
HOME = Path("experiments/maxsim_bench")


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--synthetic", action="store_true", help="random unit vectors (the only input there is)")
    made.add_argument("--queries", type=int, default=48)
    made.add_argument("--query_rows", type=int, default=44)
    made.add_argument("--documents", type=int, default=144)
    made.add_argument("--document_rows", type=int, default=96)
    made.add_argument("--dim", type=int, default=128)
    made.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    made.add_argument("--tf32", action="store_true", help="CUDA may round factors of fp32 products, as bf16 training")
    made.add_argument("--device", default="cpu")
    made.add_argument("--rounds", type=int, default=11)
    made.add_argument("--peer", action="store_true", help=f"race {PEER} too (CUDA only)")
    made.add_argument("--wheels", type=Path, help=f"folder with its wheel: pip download --no-deps {PEER}")
    return made


def peer(wheels: Path | None, cuda: bool):
    """Its maxsim, installed beside nothing else."""
    if not cuda or importlib.util.find_spec("triton") is None:
        raise UserError(f"{PEER} needs CUDA and Triton; leave out --peer, or give --device cuda.")
    folder = HOME / PEER
    if not (folder / "late_interaction_kernels").is_dir():
        offline = ["--no-index", "--find-links", str(wheels)] if wheels else []
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *offline]
        if subprocess.run([*command, PEER]).returncode:
            raise UserError(f"{PEER} could not be installed; give its wheel with --wheels, or leave out --peer.")
    sys.path.insert(0, str(folder.resolve()))
    import late_interaction_kernels

    return late_interaction_kernels.maxsim


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    import torch
    from torch.nn.functional import normalize

    from core import maxsim as ours
    from core.device import tf32
    from core.tokens import TokenBatch

    cuda = args.device.startswith("cuda")
    torch.manual_seed(0)

    def vectors(count: int, rows: int):
        made = normalize(torch.randn(count, rows, args.dim, device=args.device), dim=-1)
        return made.to({"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]).requires_grad_()

    q, d = vectors(args.queries, args.query_rows), vectors(args.documents, args.document_rows)
    q_mask = torch.ones(q.shape[:2], dtype=torch.bool, device=args.device)
    d_mask = torch.rand(d.shape[:2], device=args.device) < 0.6
    d_mask[:, 0] = True
    weights = torch.randn(args.queries, args.documents, device=args.device)

    def dense():
        sims = (q.flatten(0, 1) @ d.flatten(0, 1).T).view(args.queries, args.query_rows, *d.shape[:2])
        return sims.masked_fill(~d_mask, torch.finfo(sims.dtype).min).amax(-1).float().sum(1)

    arms = {"ours": lambda: ours.maxsim(TokenBatch(q, q_mask), TokenBatch(d, d_mask)), "dense autograd": dense}
    if ours._function(q, len(d)) is not ours._MaxSim:
        arms["ours, plain torch"] = lambda: ours._MaxSim.apply(q, q_mask, d, d_mask, ours.BUDGET_BYTES)
    if args.peer:
        theirs = peer(args.wheels, cuda)
        arms[PEER] = lambda: theirs(q, d, q_mask=q_mask, d_mask=d_mask)

    def step(score) -> tuple[float, float, tuple]:
        """Seconds, peak bytes above what was there, and (scores, gradients)."""
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        scores = score()
        grads = torch.autograd.grad((scores * weights).sum(), (q, d))
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return seconds, torch.cuda.max_memory_allocated() - before if cuda else 0, (scores.detach(), *grads)

    with tf32(args.tf32):
        expected = step(dense)[2]
        for name, score in arms.items():
            for a, b in zip(step(score)[2], expected):
                wrong = (a.float() - b.float()).norm() / b.float().norm()
                limit = 1e-4 if args.dtype == "fp32" and not args.tf32 and name != PEER else 2e-2
                if wrong > limit:
                    raise UserError(f"{name}: scores or gradients are off by {wrong:.1e} of their norm.")
        turns = [{name: step(score)[:2] for name, score in arms.items()} for _ in range(args.rounds)]
    print("| | ms | times dense | peak MB |\n|---|---|---|---|")
    for name in arms:
        ms = 1000 * statistics.median(turn[name][0] for turn in turns)
        ratio = statistics.median(turn["dense autograd"][0] / turn[name][0] for turn in turns)
        peak = f"{max(turn[name][1] for turn in turns) / 2**20:.0f}" if cuda else "-"
        print(f"| {name} | {ms:.1f} | {ratio:.2f} | {peak} |")


if __name__ == "__main__":
    cli.main(main)
