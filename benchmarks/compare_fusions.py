"""Compare ways to put an image into a late-interaction query: train and judge every arm, and write the tables.

  python benchmarks/compare_fusions.py                               # all of cfgs/fusions, 3 seeds, 2 processes
  python benchmarks/compare_fusions.py --arms mire_clean cls --seeds 1 --data flagfacts
  python benchmarks/compare_fusions.py --tune                        # what cfgs/fusions/tuned.yaml was chosen from

A finished (data set, arm, seed) is one file under <out>/<data set>/results and is not run again while its config stays.
Afterwards <out>/results.json holds everything that docs/fusions.md shows. scripts/compare_fusions.sh prepares towers
and data first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

DATA = ("flagfacts", "wikilens")
SMOKE = {"data": {"limit": 4}, "train": {"steps": 4, "batch_size": 4, "warmup_steps": 1}}
"""What --smoke changes in every run: the same stages on a handful of records."""


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--configs", default="cfgs/fusions", help="folder of <data set>.yaml, arms.yaml and tuned.yaml")
    made.add_argument("--out", help="default experiments/fusions, or experiments/fusions-smoke with --smoke")
    made.add_argument("--data", nargs="+", default=list(DATA))
    made.add_argument("--arms", nargs="+", help="default: all")
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    made.add_argument("--processes", type=int, default=2, help="runs at a time, one torch thread each")
    made.add_argument("--docs", help="page whose tables and plot are replaced: docs/fusions.md")
    made.add_argument("--tune", action="store_true", help="write tuned.yaml: try temperatures on the validation split")
    made.add_argument("--report", action="store_true", help="run nothing, report what is finished")
    made.add_argument("--smoke", action="store_true", help="a minute-long tiny version")
    return made


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def work(settings: tuple, data: str, arm: str, seed: int, result: Path, changes: dict, splits: list | None) -> str:
    """One run in a worker process; returns the line that reports it."""
    from fusions import one, plan

    from core.errors import UserError

    try:
        out = one.run(plan.load(*settings), data, arm, seed, result, changes, splits)
    except UserError as error:
        return f"FAILED {data} {arm} seed {seed}: {error}"
    means = {
        split: f"{sum(found['Success@5'].values()) / len(found['Success@5']):.3f}"
        for split, found in out["splits"].items()
    }
    return f"{data} {arm} seed {seed}: Success@5 {means}, {out['seconds']}"


def in_processes(tasks: list[tuple], processes: int) -> int:
    """Run the tasks, a line for each; returns how many failed."""
    import multiprocessing

    failed, start = 0, time.perf_counter()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), one_thread) as pool:
        waiting = [pool.submit(work, *task) for task in tasks]
        for number, future in enumerate(as_completed(waiting), 1):
            line = future.result()
            failed += line.startswith("FAILED")
            print(f"[{number}/{len(tasks)}, {time.perf_counter() - start:.0f} s] {line}", flush=True)
    return failed


def main() -> int:
    made = arguments()
    args = made.parse_args()
    if args.smoke and args.tune:
        made.error("--tune takes the real data; leave --smoke out")
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    from fusions import plan, prepare, report

    from core.files import write_json

    out = Path(args.out or ("experiments/fusions-smoke" if args.smoke else "experiments/fusions"))
    changes = SMOKE if args.smoke else {}
    settings = (args.configs, out, args.data)
    made = plan.load(*settings)
    seeds = args.seeds[:1] if args.smoke else args.seeds
    failed = 0
    if not args.report:
        prepare.everything(made, args.arms, changes)
        failed = tuned(made, settings, args) if args.tune else trained(made, settings, args, seeds, changes)
    if not args.tune:
        found = report.facts(made, seeds, changes)
        write_json(out / "results.json", found)
        if args.docs:
            report.into_page(Path(args.docs), found, made.arms)
            report.plot(found, Path(args.docs).with_suffix(".png"))
    if failed:
        print(f"{failed} runs failed; give the same command again for these.", file=sys.stderr)
    return 1 if failed else 0


def trained(made, settings: tuple, args: argparse.Namespace, seeds: list[int], changes: dict) -> int:
    """Every run that is not finished yet; returns how many failed."""
    from fusions import one

    tasks = []
    for data, arm, seed in made.runs(seeds, args.arms):
        result = made.root / data / "results" / f"{arm}-{seed}.json"
        if not one.is_done(made, data, arm, seed, result, changes):
            tasks.append((settings, data, arm, seed, result, changes, None))
    return in_processes(tasks, args.processes)


def tuned(made, settings: tuple, args: argparse.Namespace) -> int:
    """Every trial that is not finished yet, then tuned.yaml; returns how many failed."""
    from fusions import one, tune

    tasks = []
    for data, family, _, result, changes in tune.trials(made):
        if not one.is_done(made, data, tune.ARMS[family], 1, result, changes):
            tasks.append((settings, data, tune.ARMS[family], 1, result, changes, [tune.SPLIT]))
    failed = in_processes(tasks, args.processes)
    if not failed:
        tune.write(made, Path(args.configs) / "tuned.yaml")
    return failed


if __name__ == "__main__":
    from core.errors import UserError

    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
