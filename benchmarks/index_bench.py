"""Our index against the published engines, on the same vectors, in one go.

  python benchmarks/index_vectors.py --docs 16156                               # once: the vectors
  python benchmarks/index_bench.py --docs 6123 --json experiments/index_bench/6123.json
  python benchmarks/index_bench.py --vs-exact                                   # ours against brute force only
  python benchmarks/index_bench.py --synthetic --docs 300 --queries 20 --peers exact   # nothing downloaded

Every engine has a process of its own, the peers in virtual environments that are made the first time (without network:
--wheels DIR). Rules: the same vectors, bits and threads; imports, compilation and warm-up are not timed; at most 1.05
times the peer's bytes per vector; speed is read at our cheapest setting that is not below the peer's point in both
overlap@10 and overlap@100 with exact search, and is "not reached" when there is none. Since machines are noisy, engines
take turns in rounds, each on its share of the queries, and a ratio is the median over rounds of peer time / our time.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import index_vectors
from peers import floor, race
from peers.bench import Bench
from peers.runner import PEERS

from core import cli
from core.errors import UserError
from core.files import read_json, write_json

HEADER = ["engine", "setting", "build s", "bytes/vector", "ms, batch 1", "ms, batch 64", "overlap@10", "overlap@100"]


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--docs", type=int, default=6123)
    made.add_argument("--queries", type=int, default=1000)
    made.add_argument("--nbits", type=int, default=4)
    made.add_argument("--peers", default="fast-plaid,colbert-ai,exact", help="(%(default)s); exact runs in any case")
    made.add_argument("--vectors", type=Path, default=index_vectors.OUT, help="a folder that index_vectors.py made")
    made.add_argument("--synthetic", action="store_true", help="seeded vectors instead, for a machine without network")
    made.add_argument("--wheels", type=Path, help="pip download -r benchmarks/peers/requirements-*.txt into it")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--rounds", type=int, default=3, help="turns of the searches, each on its share of the queries")
    made.add_argument("--build-rounds", type=int, default=3)
    made.add_argument("--vs-exact", action="store_true", help="only: brute force over ours at the --sizes")
    made.add_argument("--sizes", default="1000,3000,10000,50000", help="documents, for --vs-exact (%(default)s)")
    made.add_argument("--coarse", action="store_true", help="try only every ninth of our settings: for a first look")
    made.add_argument("--json", type=Path, help="write everything that was measured here")
    return made


def check(args: argparse.Namespace) -> list[str]:
    """The peers' names; wrong values stop here, before anything is installed or built."""
    names = [name for name in args.peers.split(",") if name]
    if wrong := [name for name in names if name not in (*PEERS, "exact")]:
        raise UserError(f"--peers {wrong[0]}: there is no such peer; choose from {', '.join(PEERS)}, exact.")
    if args.vs_exact:
        if not all(size.isdigit() and int(size) > 0 for size in args.sizes.split(",")):
            raise UserError(f"--sizes {args.sizes}: give numbers of documents, such as 1000,3000.")
        names, args.docs = [], max(map(int, args.sizes.split(",")))
    for name in ("docs", "queries", "threads", "rounds", "build_rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be 1 or more.")
    if args.synthetic:
        args.vectors = index_vectors.OUT / f"synthetic-{args.docs}-{args.queries}"
        index_vectors.run(["--synthetic", f"--docs={args.docs}", f"--queries={args.queries}", f"--out={args.vectors}"])
    index_vectors.load(args.docs, args.queries, args.vectors)  # says what is missing
    return names


def describe(args: argparse.Namespace) -> dict:
    options = {key: value if isinstance(value, int) else str(value) for key, value in vars(args).items()}
    machine = {"cpus": os.cpu_count(), "processor": processor(), "load_before": os.getloadavg()}
    source = read_json(args.vectors / "vectors.json", "vectors")
    return {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "options": options, "machine": machine, "vectors": source}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor())


def rows(report: dict) -> list[list]:
    """The table: brute force, then every point of a peer with our setting of equal overlap below it."""

    def row(engine: str, point: dict, times: dict, who: str) -> list:
        made = report["builds"].get(engine, {})
        ms = [statistics.median(times[f"{who}@{b}"]) for b in (1, 64)]
        shares = [point["overlap@10"], point["overlap@100"]]
        return [engine, race.name_of(point["setting"]), made.get("seconds"), made.get("bytes_per_vector"), *ms, *shares]

    table = [row("exact", report["exact"], report["exact"]["times"], "peer")]
    for point in report["points"]:
        table.append(row(point["peer"], point, point["times"], "peer"))
        if point["ours"]:
            table.append(row("ours", point["ours"], point["times"], "ours"))
    for preset in report["presets"]:
        table.append(row("ours", preset, preset["times"], "ours"))
    return table


def show(report: dict) -> None:
    print("\n" + race.table(rows(report), HEADER) + "\n")
    for key, value in report["ratios"].items():
        print(f"{key}: {race.NOT_REACHED if value is None else f'{value:.2f}'}")
    for point in report["points"]:
        name = f"{point['peer']} {race.name_of(point['setting'])}"
        if point["text"]:
            print(f"  {name}: {point['text']}")
            continue
        print(
            f"  {name}: {point['ratio_batch_1']:.2f} at batch 1, {point['ratio']:.2f} with its best batch "
            f"({point['best_batch']}), {point['ratio_both_batched']:.2f} with both batched; "
            f"ours gains {point['our_gain_at_64']:.2f} from 1 to 64"
        )
        least = point["floor"]
        print(
            f"    floor {least['ms']:.2f} ms ({least['bytes'] / 1e6:.1f} MB: {least['bytes_ms']:.2f} ms, "
            f"{least['flop'] / 1e6:.0f} MFLOP: {least['flop_ms']:.2f} ms); ours takes {least['times_floor']:.1f} x that"
        )


def show_exact(report: dict) -> None:
    header = ["documents", "batch", "exact ms", "ours ms", "exact / ours"]
    lines = [
        [r["docs"], r["batch"], statistics.median(r["exact_ms"]), statistics.median(r["ours_ms"]), r["ratio"]]
        for r in report["vs_exact"]
    ]
    print("\n" + race.table(lines, header))


def run(argv: Sequence[str]) -> None:
    args = arguments().parse_args(argv)
    names = check(args)
    report = describe(args)
    speed = floor.measure(args.threads, args.device)
    print(
        f"{report['machine']['processor']}, {args.threads} threads, load {os.getloadavg()[0]:.2f}; "
        f"{speed['bytes_per_s'] / 1e9:.1f} GB/s, {speed['flops'] / 1e9:.0f} GFLOP/s in fp32",
        flush=True,
    )
    work = index_vectors.OUT / f"work-{os.getpid()}"
    bench = Bench(args, names, index_vectors.OUT, work)
    try:
        if args.vs_exact:
            bench.race_exact([int(size) for size in args.sizes.split(",")])
        else:
            bench.race_builds()
            bench.race_search()
            bench.floors(speed)
    finally:
        bench.close()
    report |= bench.report | {"speed": speed}
    report["machine"]["load_after"] = os.getloadavg()
    (show_exact if args.vs_exact else show)(report)
    if args.json:
        write_json(args.json, report)
    shutil.rmtree(work)  # kept with the engines' logs when something failed


if __name__ == "__main__":
    cli.main(run)
