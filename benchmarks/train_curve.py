"""Quality against batch size, negatives and time, and ours against the published step; a table and a plot.

  python scripts/prepare_towers.py
  python benchmarks/train_curve.py                            # FlagFacts; given again, it goes on where it was stopped
  python benchmarks/train_curve.py --plot docs/training_curve.png
  python benchmarks/train_curve.py --data triviawiki          # after python benchmarks/triviawiki.py --smoke

Every run of a data set starts from the same weights. Four series:

  compare     ours and plain at one batch size, several seeds; and the start, untrained
  negatives   the same batch with each question's own hard negatives (FlagFacts 2, TriviaWiki 1)
  examples    other batch sizes, as many examples in all: larger batches take fewer steps
  steps       other batch sizes, as many steps: larger batches see more examples

FlagFacts: the model of cfgs/flagfacts_mire.yaml without noise on the features, the trunk frozen; the projection and the
fusion head learn. TriviaWiki: cfgs/triviawiki_colbert.yaml, all of MiniLM learns. The rate grows with the square root
of the batch. "plain" is the published loss in fp32 with autograd through all similarities (benchmarks/steps/plain.py),
equal negatives kept, no clipping; ours is training.loop.fit with its defaults in bf16, on FlagFacts without clipping
too. Judged on questions of the dev split among some of the passages (all answers among them), exactly. Seconds are the
process's own (one thread).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from core import cli
from core.files import read_json, write_json

HOME = Path("experiments/train_curve")
CACHED_FROM = 256
"""Batches of so many queries go through the gradient cache, in units of 64."""

SERIES = ("compare", "negatives", "examples", "steps")


@dataclass(frozen=True)
class Setting:
    """rate: at batch 32. hard: documents per query in the series "negatives". changes: to the YAML."""

    config: str
    rate: float
    hard: int
    changes: dict


SETTINGS = {
    "flagfacts": Setting(
        "cfgs/flagfacts_mire.yaml",
        1e-3 * (32 / 48) ** 0.5,
        3,
        {"model.mask_policy": "legacy", "model.visual_noise": 0, "train.clip": "null"},
    ),
    "triviawiki": Setting("cfgs/triviawiki_colbert.yaml", 5e-5, 2, {"train.hard_negatives": "own_term"}),
}


@dataclass(frozen=True)
class Job:
    who: str  # ours, plain, start
    batch: int
    nways: int
    steps: int
    seed: int


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", choices=SETTINGS, default="flagfacts")
    made.add_argument("--series", nargs="+", choices=SERIES, default=SERIES)
    made.add_argument("--batches", type=int, nargs="+", default=[8, 128, 512], help="of the series examples and steps")
    made.add_argument("--batch", type=int, default=32, help="of the series compare and negatives")
    made.add_argument("--steps", type=int, default=64, help="of the series compare, negatives and steps")
    made.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    made.add_argument("--queries", type=int, default=200, help="of the dev split, for judging")
    made.add_argument("--documents", type=int, default=1500, help="passages among which they are answered")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--home", type=Path, default=HOME)
    made.add_argument("--plot", type=Path, help="write the picture of what was measured here")
    return made


def plan(args) -> list[Job]:
    """All runs of the series, each once."""
    seeds, total = range(args.seeds), args.batch * args.steps
    jobs = {
        "compare": [
            *(Job(who, args.batch, 1, args.steps, s) for s in seeds for who in ("ours", "plain")),
            Job("start", 0, 1, 0, 0),
        ],
        "negatives": [Job("ours", args.batch, SETTINGS[args.data].hard, args.steps, s) for s in seeds],
        "examples": [Job("ours", b, 1, max(1, total // b), s) for b in (args.batch, *args.batches) for s in seeds],
        "steps": [Job("ours", b, 1, args.steps, s) for b in (args.batch, *args.batches) for s in seeds],
    }
    return list(dict.fromkeys(job for name in args.series for job in jobs[name]))


def load(args, job: Job):
    """The run's config, retriever and data."""
    import torch

    import dataset
    from runs.settings import load as load_config
    from runs.training import build_retriever

    setting = SETTINGS[args.data]
    changes = {
        "run.out": args.home / "-".join(map(str, asdict(job).values())), "run.device": "cpu",
        "data.hard_negatives": job.nways - 1, "train.steps": job.steps or 1, "train.batch_size": job.batch or 2,
        "train.nways": job.nways, "train.seed": job.seed, "train.lr": setting.rate * ((job.batch or 32) / 32) ** 0.5,
        "train.warmup_steps": max(0, min(max(1, job.steps // 10), job.steps - 1)),
        "train.precision": "fp32" if job.who == "plain" else "bf16",
        "train.grad_cache": 64 if job.batch >= CACHED_FROM else "null", "train.weight_decay": 0.0,
        "train.eval_every": "null", "train.save_every": job.steps or 1, "train.metric": "null",
        "eval.valid_queries": args.queries, "eval.valid_documents": args.documents, **setting.changes,
    }  # fmt: skip
    cfg = load_config(setting.config, [f"{key}={value}" for key, value in changes.items()])
    torch.manual_seed(job.seed)
    return cfg, build_retriever(cfg), dataset.build(cfg.data)


def measure(args, job: Job) -> dict:
    """One run: train, judge."""
    import torch

    from runs.training import text_states, validation, visual_features
    from training.loop import fit

    cfg, retriever, data = load(args, job)
    out = Path(cfg.run.out)
    shutil.rmtree(out, ignore_errors=True)
    visual, states = visual_features(cfg, retriever, data), text_states(cfg, retriever, data, out)
    began = time.process_time()
    if job.who == "plain":
        plain_fit(retriever, data, cfg.train, visual, states)
    elif job.who == "ours":
        fit(retriever, data, cfg.train, visual=visual, states=states, out=out)
    seconds = time.process_time() - began
    retriever.stage = "valid"
    with torch.no_grad():
        metrics = validation(cfg, data, visual, states)(retriever.eval())
    shutil.rmtree(out, ignore_errors=True)
    return {**asdict(job), "seconds": seconds, **metrics}


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
    groups: dict[float, list] = {}
    for name, parameter in retriever.named_parameters():
        if parameter.requires_grad:
            scale = next((f for prefix, f in config.lr_scale.items() if name.startswith(prefix)), 1.0)
            groups.setdefault(scale, []).append(parameter)
    optimizer = torch.optim.AdamW([{"params": p, "scale": s} for s, p in groups.items()], weight_decay=0.0)
    with progress(None, "plain", total=config.steps, unit="step") as bar:
        for step in range(config.steps):
            epoch, within = divmod(step, len(order))
            order.set_epoch(epoch)
            batch = next(stream(collator, within, within + 1))
            factor = lr_factor(step, config.steps, config.warmup_steps, config.schedule)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * group["scale"] * factor
            optimizer.zero_grad()
            plain.loss(retriever, inputs(batch), False, retriever.temperature()).backward()
            optimizer.step()
            bar.update()


def inputs(batch):
    """A batch of ours as the published step reads it: stored states and features where there are any."""
    from steps import plain

    q, d = batch.queries, batch.documents
    side = {"query": q.tensors, "document": d.tensors}
    found = {f"{name}_{what}": t[what] for name, t in side.items() for what in ("ids", "states") if what in t}
    return plain.Inputs(
        query_mask=q["mask"], document_keep=d["keep"], document_mask=d["mask"], nways=batch.nways, **found,
        features=(q.images.global_, q.images.patches) if q.images is not None else None,
    )  # fmt: skip


def label(run: dict) -> str:
    return run["who"] + (f", {run['nways'] - 1} hard" if run["nways"] > 1 else "")


def grouped(found: list[dict]) -> dict[tuple[str, int, int], list[dict]]:
    """(label, batch, steps) -> the runs of all seeds."""
    groups: dict[tuple[str, int, int], list[dict]] = {}
    for run in sorted(found, key=lambda r: (label(r), r["steps"] * r["batch"], r["batch"], r["seed"])):
        groups.setdefault((label(run), run["batch"], run["steps"]), []).append(run)
    return groups


def show(found: list[dict]) -> None:
    print("| step | batch | steps | examples | seeds | seconds | Success@1 | Success@5 | MRR@10 |\n" + "|---" * 9 + "|")
    for (who, batch, steps), runs in grouped(found).items():
        names = ("Success@1", "Success@5", "MRR@10")
        cells = [" ".join(f"{run[name]:.3f}".lstrip("0") for run in runs) for name in names]
        seconds = statistics.median(run["seconds"] for run in runs)
        print(f"| {who} | {batch} | {steps} | {batch * steps:,} | {len(runs)} | {seconds:.0f} | {' | '.join(cells)} |")


def plot(args, found: list[dict], path: Path) -> None:
    """Left: quality over batch size. Right: the same points over training time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from core.files import atomic_file

    ours = {(batch, steps) for who, batch, steps in grouped(found) if who == "ours"}
    totals = [n for n in sorted({b * n for b, n in ours}) if len({b for b, m in ours if b * m == n}) > 1]
    blues = ("#7fb3c8", "#1f6f8b", "#123f50")
    series = [
        *((f"ours, {n:,} examples each", c, lambda who, b, m, n=n: who == "ours" and b * m == n)
          for n, c in zip(totals, blues)),
        (f"ours, {args.steps} steps each", "#7aa95c", lambda who, b, m: who == "ours" and m == args.steps),
        ("ours with hard negatives", "#d08c2f", lambda who, b, m: "hard" in who),
        ("plain", "#c0392b", lambda who, b, m: who == "plain"),
    ]  # fmt: skip
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for name, colour, belongs in series:
        points = [
            (batch, statistics.median(r["seconds"] for r in runs), [r["MRR@10"] for r in runs])
            for (who, batch, steps), runs in grouped(found).items()
            if belongs(who, batch, steps)
        ]
        points.sort()
        for axes, column in ((left, 0), (right, 1)):
            x, y = [p[column] for p in points], [statistics.mean(p[2]) for p in points]
            spread = [[m - min(p[2]) for m, p in zip(y, points)], [max(p[2]) - m for m, p in zip(y, points)]]
            style = "o-" if column == 0 else "o"
            axes.errorbar(x, y, yerr=spread, fmt=style, color=colour, label=name, capsize=3, markersize=5)
        for batch, seconds, values in points:
            right.annotate(f" {batch}", (seconds, statistics.mean(values)), fontsize=8, color=colour)
    left.set_xscale("log", base=2)
    left.set_xlabel("queries per batch (log)")
    left.set_ylabel("MRR@10, dev")
    right.set_xscale("log")
    right.set_xlabel("seconds of training (log; numbers: batch)")
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png", dpi=130)


def run(argv: Sequence[str]) -> None:
    args = arguments().parse_args(argv)
    file = args.home / f"{args.data}.json"
    found = read_json(file, "curve") if file.is_file() else []
    done = {Job(r["who"], r["batch"], r["nways"], r["steps"], r["seed"]) for r in found}
    if left := [job for job in plan(args) if job not in done]:
        import torch

        torch.set_num_threads(args.threads)
        for job in left:
            found.append(measure(args, job))
            write_json(file, found)
            print(found[-1], flush=True)
    show(found)
    if args.plot:
        plot(args, found, args.plot)


if __name__ == "__main__":
    cli.main(run)
