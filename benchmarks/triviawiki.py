"""TriviaWiki: does training make text late interaction better than BM25 and than the tower as it came?

  python scripts/prepare_towers.py --only minilm-l6 && python scripts/build_triviawiki.py --fetch
  python benchmarks/triviawiki.py                     # all of it; given again, it goes on where it was stopped
  python benchmarks/triviawiki.py --smoke             # the same stages on a handful of records

Makes the untrained retriever, trains it with cfgs/triviawiki_colbert.yaml, and judges both, BM25 (bm25s) and the mean
of the tower's token states on all test questions over all leads, searched exactly. What a baseline leaves open is
chosen on the dev split. A finished system is one file under <out>/results and is not run again while data, weights and
settings stay. Afterwards <out>/results.json and <out>/table.md hold what docs/TRIVIAWIKI.md shows.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

SMOKE = ["data.limit=8", "train.steps=4", "train.batch_size=4", "train.warmup_steps=1", "train.eval_every=2"]
"""What --smoke changes."""

METRIC = "Success@10"
"""What the comparison is decided by, on all test questions."""

LEVEL = 0.01
RIVALS = ("bm25", "untrained", "single")
NAMES = {
    "bm25": "BM25", "single": "single vector (mean of the token states)", "untrained": "MaxSim, untrained",
    "trained": "MaxSim, trained",
}  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--config", default="cfgs/triviawiki_colbert.yaml", help="default %(default)s")
    made.add_argument("--out", help="default experiments/triviawiki, or experiments/triviawiki-smoke with --smoke")
    made.add_argument("--smoke", action="store_true", help="a handful of records and four steps")
    made.add_argument("overrides", nargs="*", metavar="section.key=value", help="change single keys of the YAML")
    return made


def run(argv: Sequence[str]) -> int | None:
    args = arguments().parse_intermixed_args(list(argv))
    out = Path(args.out or f"experiments/triviawiki{'-smoke' if args.smoke else ''}")
    places = [f"run.out={out / 'trained'}", f"run.init={out / 'start'}"]
    overrides = [*places, *(SMOKE if args.smoke else []), *args.overrides]
    from triviawiki_start import make_start

    import dataset
    from runs.settings import load

    cfg = load(args.config, overrides)
    data = dataset.build(cfg.data)
    make_start(cfg, data, cfg.run.init)
    if stopped := train(args.config, overrides):
        return stopped
    found = {name: judged(name, cfg, data, out) for name in NAMES}
    write(found, data, out)
    return None


def train(config: str, overrides: Sequence[str]) -> int | None:
    """``train_retrieval.py`` itself; a finished run does no step. 130 when a signal stopped it."""
    import train_retrieval

    return train_retrieval.run(["--config_path", config, *overrides])


def judged(name: str, cfg, data, out: Path) -> dict:
    """A system's result, from its file when that is of the same data, weights and settings."""
    from triviawiki_systems import SYSTEMS, Bench

    from core.files import fingerprint, read_json, write_json
    from evaluation.files import write_run
    from evaluation.metrics import evaluate

    path, key = out / "results" / f"{name}.json", fingerprint(facts(name, cfg, data))
    if path.is_file() and (stored := read_json(path, "benchmark result"))["key"] == key:
        print(f"{name}: was complete", flush=True)
        return stored
    print(f"{name}: ...", flush=True)
    began = time.perf_counter()
    chosen, tried, rankings = SYSTEMS[name](Bench(cfg, data, out))
    seconds = time.perf_counter() - began
    scores = {split: evaluate(found, data.qrels(split), cfg.eval.metrics) for split, found in rankings.items()}
    for split, found in rankings.items():
        write_run(out / "runs" / f"{name}.{split}.trec", found, tag=name)
    result = {"key": key, "chosen": chosen, "tried_on_dev": tried, "seconds": round(seconds, 1), "scores": scores}
    write_json(path, result)
    for folder in (out / "index").glob(f"{name}-*"):
        shutil.rmtree(folder)
    return result


def facts(name: str, cfg, data) -> dict:
    """What a system's result depends on."""
    from core.files import read_json
    from models.artifacts import weight_digest
    from runs.common import open_retriever

    weights = {"bm25": None, "trained": cfg.run.out}.get(name, cfg.run.init)
    return {
        "system": name,
        "data": [read_json(data.root / "manifest.json", "TriviaWiki manifest")["sha256"], cfg.data.limit],
        "weights": weights and weight_digest(open_retriever(weights)),
        "settings": [] if weights is None else [cfg.model.eval.model_dump(), cfg.train.precision],
        "eval": [cfg.eval.k, cfg.eval.metrics],
    }


# ---- what it comes to


def write(found: Mapping[str, dict], data, out: Path) -> None:
    """results.json and table.md from the systems' per-query scores."""
    from core.files import atomic_file, write_json

    report = {
        "systems": {name: summary(result, data) for name, result in found.items()},
        "comparisons": comparisons({n: r["scores"]["test"][METRIC] for n, r in found.items()}, data),
        "tried_on_dev": {name: result["tried_on_dev"] for name, result in found.items()},
    }
    write_json(out / "results.json", report)
    text = table(report)
    with atomic_file(out / "table.md", "w") as handle:
        handle.write(text)
    print(text)


def parts(data) -> list[str]:
    """The test splits; with data.limit none of the few test questions may be an answerable one."""
    return [split for split in data.test_splits if data.queries(split)]


def part(values: Mapping[str, float], split: str, data) -> dict[str, float]:
    """The values of the questions of a test split, which is all of test or a part of it."""
    return {query.id: values[query.id] for query in data.queries(split)}


def summary(result: Mapping, data) -> dict:
    """Means and intervals of one system, on dev and on each test split; intervals redraw whole article families."""
    from evaluation.paired import group_interval

    rows: dict = {"chosen": result["chosen"], "seconds": result["seconds"]}
    for split in (data.valid_split, *parts(data)):
        scores = result["scores"][split if split == data.valid_split else "test"]
        groups, rows[split] = families_of(data, split), {}
        for metric, values in scores.items():
            mine = part(values, split, data)
            rows[split][metric] = {"mean": sum(mine.values()) / len(mine),
                                   "interval": list(group_interval(mine, groups))}  # fmt: skip
    return rows


def comparisons(scores: Mapping[str, Mapping[str, float]], data) -> dict:
    """The trained system against each rival by the paired randomisation test, on each test split.

    Questions that one article answers change sign together. ``holm`` is corrected for the rivals of a split.
    """
    from evaluation.paired import differences, group_interval, holm, randomisation_test

    found: dict = {}
    for split in parts(data):
        groups, ours = families_of(data, split), part(scores["trained"], split, data)
        theirs = {rival: part(scores[rival], split, data) for rival in RIVALS}
        p = {rival: randomisation_test(ours, values, groups, rounds=100_000) for rival, values in theirs.items()}
        corrected = dict(zip(RIVALS, holm([p[rival] for rival in RIVALS]), strict=True))
        found[split] = {}
        for rival, values in theirs.items():
            gaps = differences(ours, values)
            gap = sum(gaps.values()) / len(gaps)
            found[split][rival] = {
                "gap": gap, "interval": list(group_interval(gaps, groups)), "p": p[rival], "holm": corrected[rival],
                "better": gap > 0 and corrected[rival] < LEVEL,
            }  # fmt: skip
    return found


def families_of(data, split: str) -> dict[str, str]:
    """query id -> name of the articles that its answers tie together."""
    from scripts.build_triviawiki import families

    qrels = data.qrels(split)
    ids, rows = list(qrels), [{"positives": sorted(judged)} for judged in qrels.values()]
    return {ids[i]: str(number) for number, group in enumerate(families(rows)) for i in group}


def table(report: Mapping) -> str:
    """Markdown: one table per test split, and one of the comparisons."""
    systems, lines = report["systems"], []
    splits = list(report["comparisons"])
    metrics = list(next(iter(systems.values()))[splits[0]])
    for split in splits:
        lines += [f"| {split} | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
        for name, label in NAMES.items():
            cells = [f"{v['mean']:.3f}" + (" [{:.3f}, {:.3f}]".format(*v["interval"]) if metric == METRIC else "")
                     for metric, v in systems[name][split].items()]  # fmt: skip
            note = f" ({systems[name]['chosen']})" if systems[name]["chosen"] else ""
            lines.append(f"| {label}{note} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        f"| {METRIC}, trained against | split | difference | p | p (Holm) | better at {LEVEL} |",
        "|---" * 6 + "|",
    ]
    for split, rivals in report["comparisons"].items():
        for rival, c in rivals.items():
            low, high = c["interval"]
            lines.append(
                f"| {NAMES[rival]} | {split} | {c['gap']:+.3f} [{low:+.3f}, {high:+.3f}] | {c['p']:.2g} | "
                f"{c['holm']:.2g} | {'yes' if c['better'] else 'no'} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from core.cli import main

    main(run)
