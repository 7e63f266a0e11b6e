"""Our training step against the published one and against sentence-transformers 6, in one go.

  python scripts/prepare_towers.py                                       # once: MiniLM and DINOv2
  python benchmarks/train_bench.py --json experiments/train_bench/cpu.json
  python benchmarks/train_bench.py --device cuda --synthetic --batch 512 --largest --json gpu.json   # no network needed
  python benchmarks/train_bench.py --smoke                               # a minute, tiny towers

Cases: finetune (all but the vision tower trains) and pretrain (only the fusion head) are MIRe on pictures and
questions; text is ColBERT on questions. Contestants: plain is the published step as it is (fp32, queries filled to 40
and passages to 400 tokens, the tensor of all similarities, every tower run in every step), cached the same padded to
the longest passage with what is frozen taken out of memory, ours is training.loop.fit in bf16; sentence-transformers
trains the text case in a virtual environment of its own. Same weights, same batches; the losses of the first batch are
compared before any clock runs. Contestants take turns, each in its own process, and a ratio is the median over turns
of their time per query / ours; on a GPU whose memory does not hold a contestant's batch, half of it is tried.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from core import cli
from core.errors import UserError
from core.files import write_json

HOME = Path("experiments/train_bench")
PEER = "sentence-transformers"


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--cases", default="pretrain,finetune,text", help="(%(default)s)")
    made.add_argument("--peers", default=PEER, help="of the text case (%(default)s); '' for none")
    made.add_argument("--synthetic", action="store_true", help="random towers and made-up data: nothing is downloaded")
    made.add_argument("--size", choices=["base", "small", "tiny"], default="base", help="of the random towers")
    made.add_argument("--batch", type=int, help="queries per step (32 on cpu, 512 on cuda)")
    made.add_argument("--steps", type=int, default=6, help="timed steps per turn; plain on cpu does one")
    made.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall",
        help="cpu: seconds that the process computed, for a machine that others use too",
    )  # fmt: skip
    made.add_argument("--quality", type=int, default=0, help="text case: then train both for so many steps and judge")
    made.add_argument("--largest", action="store_true", help="cuda: also the largest batch in --fraction-gb")
    made.add_argument("--fraction-gb", type=float, default=80.0, help="GPU memory for --largest (%(default)s)")
    made.add_argument("--wheels", type=Path, help="pip download -r benchmarks/peers/requirements-*.txt into it")
    made.add_argument("--home", type=Path, default=HOME, help="folder of environments and logs (%(default)s)")
    made.add_argument(
        "--smoke", action="store_true", help="tiny random towers, two steps, one turn, no peer, one process"
    )
    made.add_argument("--json", type=Path, help="write everything that was measured here")
    return made


def check(args: argparse.Namespace) -> list[str]:
    """The cases; wrong values stop here."""
    from steps.setting import CASES

    if args.smoke:
        args.synthetic, args.size, args.batch, args.steps, args.rounds, args.peers = True, "tiny", 8, 2, 1, ""
    cases = [case for case in args.cases.split(",") if case]
    if wrong := [case for case in cases if case not in CASES]:
        raise UserError(f"--cases {wrong[0]}: there is no such case; choose from {', '.join(CASES)}.")
    if args.peers not in ("", PEER):
        raise UserError(f"--peers {args.peers}: there is no such peer; choose {PEER} or ''.")
    args.batch = args.batch or (32 if args.device == "cpu" else 512)
    for name in ("batch", "steps", "rounds", "threads"):
        if getattr(args, name) < (2 if name == "batch" else 1):
            raise UserError(f"--{name} {getattr(args, name)}: it must be {2 if name == 'batch' else 1} or more.")
    if args.clock == "cpu" and args.device != "cpu":
        raise UserError("--clock cpu counts the processor's work; on a GPU give --clock wall.")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: there is no GPU here; use --device cpu.")
    elif args.largest:
        raise UserError("--largest measures GPU memory; give --device cuda.")
    if not args.synthetic and not Path("ckpts/minilm-l6").is_dir():
        raise UserError(
            "the towers are not here; make them with python scripts/prepare_towers.py, or give --synthetic."
        )
    return cases


def describe(args: argparse.Namespace) -> dict:
    import torch

    options = {k: v if isinstance(v, (int, float)) else str(v) for k, v in vars(args).items()}
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    machine = {"cpus": os.cpu_count(), "processor": platform.processor(), "gpu": gpu, "load_before": os.getloadavg()}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "options": options, "machine": machine, "versions": versions}


def visual_case(args, case: str) -> tuple[dict, dict[str, float]]:
    """finetune or pretrain: (numbers, ratios)."""
    from steps import race

    options = options_of(args, case)
    arms = {name: race.start(name, options, local=args.smoke) for name in ("plain", "cached", "ours")}
    steps = {"plain": 1 if args.device == "cpu" else args.steps, "cached": args.steps, "ours": args.steps}
    try:
        found = race.run(options, arms, args.rounds, steps)
    finally:
        for arm in arms.values():
            arm.close()
    against = {"plain": f"{case}_vs_plain", "cached": f"{case}_vs_plain_cached"}
    return found, {key: race.ratio(found["arms"][arm], found["arms"]["ours"]) for arm, key in against.items()}


def text_case(args) -> tuple[dict, dict[str, float]]:
    """Our ColBERT training beside the peer's."""
    from steps import race, text

    options = options_of(args, "text", nways=2)
    arms = {"ours": race.start("ours", options, local=args.smoke)}
    try:
        if args.peers:
            more = (args.rounds, args.steps, args.quality)
            arms[PEER] = text.start_peer(options, args.home / "venvs", args.wheels, *more)
        found = race.run(options, arms, args.rounds, dict.fromkeys(arms, args.steps))
        if args.peers and args.quality:
            found["quality"] = text.quality(options, arms[PEER], args.quality)
    finally:
        for arm in arms.values():
            arm.close()
    both = {f"vs_{PEER}": race.ratio(found["arms"][PEER], found["arms"]["ours"])} if args.peers else {}
    return found, both


def options_of(args, case: str, nways: int = 1):
    from steps.setting import Options

    data = args.size if args.synthetic else "real"
    return Options(
        case, data, str(args.home / f"made-{data}"), args.device, args.batch, nways, args.threads, args.clock
    )


def look_up(report: dict, args) -> None:
    """Measure what the device can do, keep the best so far (others may be busy on it), and each contestant's share."""
    from steps import cost

    found = cost.ceiling(args.device, 0.05 if args.smoke else 1.0, quick=args.smoke, clock=args.clock)
    before = report.get("ceiling", {})
    report["ceiling"] = {name: max(value, before.get(name, 0.0)) for name, value in found.items()}
    best = max(report["ceiling"].values())
    for case in report["cases"].values():
        for one in case["arms"].values():
            one["mfu"] = one["gflop_per_s"] * 1e9 / best


def show(report: dict) -> None:
    for case, found in report["cases"].items():
        print(f"\n{case}: first losses " + ", ".join(f"{k} {v:.4f}" for k, v in found["losses"].items()))
        print("| | batch | samples/s | s/step | GFLOP/step | MFU | peak GB |\n|---|---|---|---|---|---|---|")
        for name, one in found["arms"].items():
            numbers = [
                one["batch"],
                one["samples_per_s"],
                one["step_s"],
                one["gflop_per_step"],
                one["mfu"],
                one["peak_gb"],
            ]
            print(f"| {name} | " + " | ".join(f"{x:.3g}" for x in numbers) + " |")
        if "quality" in found:
            print(f"after {found['quality']['samples']} samples: {found['quality']['dev']}")
    print("\n" + ", ".join(f"{k} product {v / 1e9:.0f} GFLOP/s" for k, v in report["ceiling"].items()))
    for key, value in report["ratios"].items():
        print(f"{key}: {value:.2f}")
    for arm, batch in report.get("largest", {}).items():
        print(f"largest batch, {arm}: {batch}")


def run(argv: Sequence[str]) -> None:
    args = arguments().parse_args(argv)
    cases = check(args)
    import torch

    torch.set_num_threads(args.threads)
    report = {**describe(args), "ratios": {}, "cases": {}}
    look_up(report, args)
    for case in cases:
        found, ratios = text_case(args) if case == "text" else visual_case(args, case)
        report["cases"][case] = found
        report["ratios"] |= ratios
        look_up(report, args)
        report["machine"]["load_after"] = os.getloadavg()
        if args.json:
            write_json(args.json, report)  # after each case: a later one may fail
    if args.largest:
        from steps import largest

        report["largest"] = largest.measure(options_of(args, "finetune"), args.fraction_gb)
        if args.json:
            write_json(args.json, report)
    show(report)


if __name__ == "__main__":
    cli.main(run)
