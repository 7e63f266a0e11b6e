"""Quality against batch size and time, and ours against the published step, on FlagFacts; a table and a plot.

  python scripts/prepare_towers.py
  python benchmarks/train_curve.py                            # given again, it goes on where it was stopped
  python benchmarks/train_curve.py --plot docs/training_curve.png

Every run starts from the same weights and sees the same number of examples. The model is that of
cfgs/flagfacts_mire.yaml without hard negatives and without noise on the features, so that what a batch offers as
negatives is all there is; the trunk is frozen, the projection and the fusion head learn. The rate grows with the square
root of the batch. "plain" is the published loss in fp32 with autograd through all similarities
(benchmarks/steps/plain.py) and equal negatives kept; ours is training.loop.fit with its defaults in bf16. Judged on
questions of the dev split among some of the passages (all answers among them), exactly.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from core import cli
from core.files import read_json, write_json

HOME = Path("experiments/train_curve")
CACHED_FROM = 256
"""Batches of so many queries go through the gradient cache, in units of 64."""

RATE = 1e-3 / 48**0.5
"""The recipe's, times the root of the batch."""


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128, 512])
    made.add_argument("--samples", type=int, default=2048)
    made.add_argument("--seeds", type=int, default=3, help="of ours and plain at --compare; the others get one")
    made.add_argument("--compare", type=int, default=32, help="the batch at which plain runs too")
    made.add_argument("--queries", type=int, default=200, help="of the dev split, for judging")
    made.add_argument("--documents", type=int, default=1500, help="passages among which they are answered")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--home", type=Path, default=HOME)
    made.add_argument("--plot", type=Path, help="write the picture of what was measured here")
    return made


def plan(args) -> list[tuple[str, int, int]]:
    """(who, batch, seed), the comparison first."""
    pairs = [(who, args.compare, seed) for seed in range(args.seeds) for who in ("ours", "plain")]
    return pairs + [("ours", batch, 0) for batch in args.batches if batch != args.compare]


def load(args, who: str, batch: int, seed: int):
    """The run's config, retriever and data."""
    import torch

    import dataset
    from runs.settings import load as load_config
    from runs.training import build_retriever

    steps = max(1, args.samples // batch)
    changes = {
        "run.out": args.home / f"{who}-{batch}-{seed}", "data.hard_negatives": 0, "model.mask_policy": "legacy",
        "model.visual_noise": 0.0, "train.steps": steps, "train.batch_size": batch, "train.nways": 1,
        "train.seed": seed, "train.lr": RATE * batch**0.5, "train.warmup_steps": max(1, steps // 10),
        "train.precision": "fp32" if who == "plain" else "bf16", "train.eval_every": "null", "run.device": "cpu",
        "train.grad_cache": 64 if batch >= CACHED_FROM else "null", "train.weight_decay": 0.0,
        "eval.valid_queries": args.queries, "eval.valid_documents": args.documents,
    }  # fmt: skip
    cfg = load_config("cfgs/flagfacts_mire.yaml", [f"{key}={value}" for key, value in changes.items()])
    torch.manual_seed(seed)
    return cfg, build_retriever(cfg), dataset.build(cfg.data)


def measure(args, who: str, batch: int, seed: int) -> dict:
    """One run: train, judge."""
    import torch

    from runs.training import text_states, validation, visual_features
    from training.loop import fit

    cfg, retriever, data = load(args, who, batch, seed)
    out = Path(cfg.run.out)
    shutil.rmtree(out, ignore_errors=True)
    visual, states = visual_features(cfg, retriever, data), text_states(cfg, retriever, data, out)
    begun = time.perf_counter()
    if who == "plain":
        plain_fit(retriever, data, cfg.train, visual, states)
    else:
        fit(retriever, data, cfg.train, visual=visual, states=states, out=out)
    seconds = time.perf_counter() - begun
    retriever.stage = "valid"
    with torch.no_grad():
        metrics = validation(cfg, data, visual, states)(retriever.eval())
    shutil.rmtree(out, ignore_errors=True)
    return {"who": who, "batch": batch, "seed": seed, "steps": cfg.train.steps, "seconds": seconds, **metrics}


def plain_fit(retriever, data, config, visual, states) -> None:
    """The published step on the same batches: fp32, the tensor of all similarities, plain AdamW, no clipping."""
    import torch
    from steps import plain

    from core.progress import progress
    from training.batches import Collator, Order, stream
    from training.parallel import train_mode
    from training.schedule import lr_factor

    retriever.stage = "train"
    train_mode(retriever)
    order = Order(data, config.split, config.batch_size, config.nways, config.seed)
    collator = Collator(order, retriever, visual, states)
    learns = [p for p in retriever.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=config.lr, weight_decay=config.weight_decay)
    with progress(None, "plain", total=config.steps, unit="step") as bar:
        for step in range(config.steps):
            epoch, within = divmod(step, len(order))
            order.set_epoch(epoch)
            batch = next(stream(collator, within, within + 1))
            q, d = batch.queries, batch.documents
            inputs = plain.Inputs(
                query_mask=q["mask"], document_keep=d["keep"], query_states=q["states"], document_states=d["states"],
                features=(q.images.global_, q.images.patches),
            )  # fmt: skip
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(step, config.steps, config.warmup_steps, config.schedule)
            optimizer.zero_grad()
            plain.loss(retriever, inputs, False, retriever.temperature()).backward()
            optimizer.step()
            bar.update()


def show(found: list[dict]) -> None:
    print(
        "| who | batch | steps | seeds | seconds | Success@1 | Success@5 | MRR@10 |\n|---|---|---|---|---|---|---|---|"
    )
    for (who, batch), runs in grouped(found).items():
        names = ("Success@1", "Success@5", "MRR@10")
        cells = [" ".join(f"{run[name]:.3f}" for run in runs) for name in names]
        seconds = statistics.median(run["seconds"] for run in runs)
        print(f"| {who} | {batch} | {runs[0]['steps']} | {len(runs)} | {seconds:.0f} | " + " | ".join(cells) + " |")


def grouped(found: list[dict]) -> dict[tuple[str, int], list[dict]]:
    groups: dict[tuple[str, int], list[dict]] = {}
    for run in sorted(found, key=lambda r: (r["who"], r["batch"], r["seed"])):
        groups.setdefault((run["who"], run["batch"]), []).append(run)
    return groups


def plot(found: list[dict], path: Path) -> None:
    """Left: quality over batch size. Right: the same points over training time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from core.files import atomic_file

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for who, colour in (("ours", "#1f6f8b"), ("plain", "#c0392b")):
        points = [
            (batch, statistics.median(r["seconds"] for r in runs), [r["MRR@10"] for r in runs])
            for (name, batch), runs in grouped(found).items()
            if name == who
        ]
        if not points:
            continue
        for axes, column in ((left, 0), (right, 1)):
            x, y = [p[column] for p in points], [statistics.mean(p[2]) for p in points]
            spread = [[m - min(p[2]) for m, p in zip(y, points)], [max(p[2]) - m for m, p in zip(y, points)]]
            style = "o-" if column == 0 else "o"
            axes.errorbar(x, y, yerr=spread, fmt=style, color=colour, label=who, capsize=3, markersize=5)
        for batch, seconds, values in points:
            right.annotate(f" {batch}", (seconds, statistics.mean(values)), fontsize=8, color=colour)
    left.set_xscale("log", base=2)
    left.set_xlabel("queries per batch (log)")
    left.set_ylabel("MRR@10, dev")
    right.set_xlabel("seconds of training (numbers: batch)")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png", dpi=130)


def run(argv: Sequence[str]) -> None:
    args = arguments().parse_args(argv)
    file = args.home / f"runs-{args.samples}.json"
    found = read_json(file, "curve") if file.is_file() else []
    done = {(r["who"], r["batch"], r["seed"]) for r in found}
    if left := [job for job in plan(args) if job not in done]:
        import torch

        torch.set_num_threads(args.threads)
        for job in left:
            found.append(measure(args, *job))
            write_json(file, found)
            print(found[-1], flush=True)
    show(found)
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    cli.main(run)
