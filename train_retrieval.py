"""Train a retriever: one YAML is one run.

  python -m torch.distributed.run --nproc_per_node=2 train_retrieval.py --config_path cfgs/flagfacts_mire.yaml
  python train_retrieval.py --config_path cfgs/flagfacts_mire.yaml train.steps=100

A run that was stopped or killed goes on where it was when the same command is given again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.cli import main
from runs.common import parse, parser


def arguments():
    made = parser(__doc__, "train_retrieval.py")
    made.add_argument("--caching", action="store_true", help="only build the caches of frozen towers, then stop")
    made.add_argument("--check", action="store_true", help="validate the config and build the model, then stop")
    return made


def run(argv: Sequence[str]) -> int | None:
    args = parse(arguments(), argv)
    if not args.config_path:
        arguments().error("give --config_path, e.g. --config_path cfgs/flagfacts_mire.yaml")

    import torch

    import dataset
    from core import distributed
    from core.device import pick_device
    from runs.settings import load
    from runs.training import (
        build_retriever,
        cap_batch,
        check_data,
        save_config,
        text_states,
        validation,
        visual_features,
    )
    from training.loop import fit
    from training.same_run import check_same_run
    from training.tracker import check_trackers

    cfg = load(args.config_path, args.overrides, args.limit)
    distributed.init(cfg.run.device)
    try:
        torch.manual_seed(cfg.train.seed)
        out = Path(cfg.run.out)
        device = pick_device(cfg.run.device)

        # 1. who learns, and from what
        retriever = build_retriever(cfg).to(device)
        if distributed.is_main():
            count = sum(p.numel() for p in retriever.parameters() if p.requires_grad)
            print(f"{cfg.model.name}: {count:,} trainable parameters on {device}, {cfg.train.precision}")
        if args.check:
            return check_data(cfg)
        if not args.caching:
            check_trackers(cfg.train)
        data = dataset.build(cfg.data)
        if args.limit is not None:
            cap_batch(cfg, data)
        # Defaults included: a default written out later is no difference when the run goes on.
        facts = {"config": {**cfg.raw, "model": cfg.model.model_dump(), "data": cfg.data.model_dump()}}
        check_same_run(out, cfg.train, facts)
        save_config(cfg, out)

        # 2. what frozen towers say, computed once
        visual = visual_features(cfg, retriever, data)
        states = text_states(cfg, retriever, data, out)
        if args.caching:
            return

        # 3. learn, look at the validation split from time to time, keep the best
        outcome = fit(
            retriever, data, cfg.train, out=out, visual=visual, states=states,
            validate=validation(cfg, data, visual, states), provenance=facts,
        )  # fmt: skip
        if outcome.stopped:
            if distributed.is_main():
                print(f"stopped by a signal after step {outcome.step} of {outcome.total}; the same command goes on.")
            return 130
    finally:
        distributed.close()


if __name__ == "__main__":
    main(run)
