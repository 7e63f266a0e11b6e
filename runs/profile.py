"""Where does a training step's time go? A table, profile.svg and profile.json.

  python -m runs.profile --config_path cfgs/flagfacts_mire.yaml --steps 20

Trains so many steps of the run (after a few that warm up) in a folder of its own, which is removed again: the run
itself is not touched. On a GPU every phase waits for the device, so that its time is its own; the sum is then a little
more than an unwatched step, whose phases overlap. Caches of frozen towers are built first if the run has them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from core.errors import UserError
from runs.common import at_least, check_option, need, parse, parser, plan


def arguments():
    made = parser(__doc__, "python -m runs.profile")
    made.add_argument("--steps", type=int, default=20, metavar="N", help="steps that are measured (%(default)s)")
    made.add_argument("--warm_up", type=int, default=3, metavar="N", help="steps before them (%(default)s)")
    made.add_argument("--out", help="folder for profile.svg and profile.json (default: that of the run)")
    check_option(made)
    return made


def run(argv: Sequence[str]) -> None:
    args = parse(arguments(), argv)
    need(args.config_path, "give --config_path, the run whose steps are measured.")
    at_least(1, steps=args.steps)
    at_least(0, warm_up=args.warm_up)

    import torch

    import dataset
    from core import distributed
    from core.device import pick_device
    from core.files import write_json
    from runs.settings import load
    from runs.training import build_retriever, cap_batch, text_states, visual_features
    from training import stopwatch
    from training.loop import fit
    from training.phases import watched

    cfg = load(args.config_path, args.overrides, args.limit)
    out = Path(args.out or cfg.run.out)
    if args.check:
        return plan(f"measure {args.steps} training steps of '{args.config_path}' and write '{out / 'profile.svg'}'")
    distributed.init(cfg.run.device)
    try:
        torch.manual_seed(cfg.train.seed)
        device = pick_device(cfg.run.device)
        retriever = build_retriever(cfg).to(device)
        data = dataset.build(cfg.data)
        if args.limit is not None:
            cap_batch(cfg, data)
        visual = visual_features(cfg, retriever, data)
        states = text_states(cfg, retriever, data, Path(cfg.run.out))
        steps = {"steps": args.warm_up + args.steps, "epochs": None, "warmup_steps": 0, "eval_every": None,
                 "save_every": None, "trackers": [], "patience": None}  # fmt: skip
        watch = stopwatch.Stopwatch(args.warm_up, torch.cuda.synchronize if device.type == "cuda" else None)
        folder = out / ".profile"
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)
        distributed.barrier()
        try:
            with watched(watch), stopwatch.timed(retriever, watch):
                train = cfg.train.model_copy(update=steps)
                outcome = fit(retriever, data, train, out=folder, visual=visual, states=states)
        finally:
            if distributed.is_main():
                shutil.rmtree(folder, ignore_errors=True)
        if outcome.stopped:
            raise UserError(f"stopped by a signal after step {outcome.step}; nothing written.")
        if distributed.is_main():
            found = watch.per_step()
            facts = {"device": str(device), "batch_size": cfg.train.batch_size, "nways": cfg.train.nways,
                     "precision": cfg.train.precision, "processes": distributed.world()}  # fmt: skip
            write_json(out / "profile.json", {"steps": watch.steps, "seconds_per_step": found, **facts})
            title = f"{cfg.model.name}, batch {cfg.train.batch_size}, {device}, {watch.steps} steps"
            stopwatch.chart(found, title, out / "profile.svg")
            print("\n".join(stopwatch.table(found)))
            print(f"chart: {out / 'profile.svg'}")
    finally:
        distributed.close()


if __name__ == "__main__":
    main(run)
